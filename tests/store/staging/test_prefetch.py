"""Staged artifacts: the bytes that were stored or an error, held while they are used, wiped after, whatever dies."""

import contextlib
import gc
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arstore import Corrupt, NoRoom, NotFound, Store, StoreError, attach, create_store, open_store
from arstore.formats.record import HEADER_BYTES
from arstore.formats.tensor import TensorSpan
from arstore.store.artifacts.tensors import _TORCH_NAMES, tensor_bytes
from arstore.store.config import default_store
from arstore.store.disk import Disk, Out, try_lock, wait_lock
from arstore.store.errors import BadInput, StorageFailed
from arstore.store.keys.keyring import Keyring
from arstore.store.maintenance import erase as erase_room
from arstore.store.maintenance.shred import shred
from arstore.store.parts import Parts
from arstore.store.staging.prefetch import Prefetched
from arstore.store.tiers import filling as filling_room
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.extent import attach_extent, remove_extent
from arstore.store.tiers.filling import filling, mark_erased, partial_path, take_lock
from arstore.store.tiers.local import Local, StoredObject
from tests.support.command import PATIENCE_S, Ran, arstore, cli, ended, start
from tests.support.mortal_disk import killed
from tests.support.tier_faults import Given
from tests.support.tier_suite import whole

KEY, OTHER = "a" * 64, "b" * 64
# What a command does that attaches, says so, and goes on until it is told to end; it then checks what it holds.
HOLDER = """
import arstore, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
held = {name: one.files["f"] for name, one in arstore.attach().items()}
first = {name: bytes(one) for name, one in held.items()}
(here / "up").touch()
while not (here / "end").exists():
    time.sleep(0.01)
sys.exit(0 if all(bytes(held[name]) == one and one.count(0) < len(one) / 2 for name, one in first.items()) else 9)
"""


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test a host tier of its own, in memory where there is such a file system, and leave nothing in it."""
    memory = Path("/dev/shm")
    path = (memory if memory.is_dir() else tmp_path) / f"arstore-test-{secrets.token_hex(8)}"
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(path))
    yield path
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture
def store() -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def weights(seed: int = 0, count: int = 20_000) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"w": torch.randn(count), "b": torch.randn(7, 3)}


def put_file(store: Store, folder: Path, name: str, length: int = 100_000) -> bytes:
    """Put an artifact that is one file, `f`, without a tensor."""
    (path := folder / f"of-{name}").mkdir()
    (path / "f").write_bytes(content := secrets.token_bytes(length))
    store.put(path, name=name, kind="file")
    return content


def in_host(store: Store, names: list[str], ttl_s: float = 0.0) -> Prefetched:
    stage = store.prefetch(names, ttl_s=ttl_s)
    assert isinstance(stage, Prefetched)
    return stage


def extents(host: Path) -> list[Path]:
    return sorted(host.glob("*/*.extent"))


def left(host: Path) -> list[str]:
    """Return every file that is left in the tier, of whatever kind."""
    return [path.name for path in host.rglob("*") if path.is_file()]


def wait_for(ready: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < until, f"{what} never came"
        time.sleep(0.01)


def waits_for_a_lock(pid: int) -> bool:
    """Say whether the kernel has a process in line for a lock on a file: `N: -> FLOCK ADVISORY WRITE PID ...`."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in lines)


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    same = (found.dtype, found.shape, found.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    return same and bytes(tensor_bytes(found)) == bytes(tensor_bytes(wanted))


class Held:
    """`arstore prefetch NAMES -- CMD` with a CMD that holds what it attached until it is told to end."""

    def __init__(self, folder: Path, *names: str, cwd: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir()
        program = [sys.executable, "-P", "-c", "from arstore.cli.main import main; main()", "prefetch", *names]
        command = ["--", sys.executable, "-P", "-c", HOLDER, str(folder)]
        self.process = subprocess.Popen(
            program + command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for((folder / "up").exists, "the command")

    def end(self) -> Ran:
        (self.folder / "end").touch()
        return ended(self.process)


# ---- what is staged


def test_tensors_of_every_dtype_are_those_of_the_store(store: Store) -> None:
    torch.manual_seed(0)
    given = {}
    names = set(_TORCH_NAMES.values()) - {"complex128"}  # which safetensors lacks
    for name, dtype in ((name, getattr(torch, name)) for name in names):
        raw = torch.randint(0, 2 if dtype is torch.bool else 256, (4, 96), dtype=torch.uint8)
        given[name] = raw.view(dtype)
    given |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "one byte": torch.tensor([5], dtype=torch.int8)}
    store.put(tensors=given, name="m")
    with store.prefetch(["m"]) as staged:
        assert list(staged) == ["m"]
        assert set(staged["m"]) == set(given)
        for name, wanted in given.items():
            assert equal(staged["m"][name], wanted), name


def test_strided_and_shared_tensors_and_files_without_any(store: Store, tmp_path: Path) -> None:
    (source := tmp_path / "in/sub").mkdir(parents=True)
    whole = torch.randn(30, 50)
    torch.save(
        {"t": whole.t(), "same": whole, "step": whole[::3, 1::7], "c": torch.randn(5).to(torch.complex128)},
        tmp_path / "in/model.pt",
    )
    save_file(weights(), tmp_path / "in/more.safetensors")
    (source / "tokenizer.json").write_bytes(b"{}")
    (source / "empty").write_bytes(b"")
    store.put(tmp_path / "in", name="m")
    with in_host(store, ["m"]) as staged:
        wanted = store.get("m").tensors()
        assert len(wanted) == 6
        assert {name: equal(staged["m"][name], one) for name, one in wanted.items()} == dict.fromkeys(wanted, True)
        assert any(not one.is_contiguous() for one in staged["m"].values())
        files = {name: bytes(one) for name, one in staged["m"].files.items()}
        assert files == {"sub/tokenizer.json": b"{}", "sub/empty": b""}


@pytest.mark.parametrize(("layout", "shape"), [("NHD", (700, 4, 32)), ("HND", (4, 700, 32))])
def test_kv_is_staged_in_its_layout(store: Store, layout: str, shape: tuple[int, ...]) -> None:
    given = {f"layers.{n}.{side}": torch.randn(shape).bfloat16() for n in range(2) for side in ("key", "value")}
    identity = {"model": "m", "revision": "1", "precision": "bf16", "layout": layout}
    store.kv.put(given, name="chat/system", tokens=range(700), identity=identity)
    with store.prefetch(["chat/system"]) as staged:
        assert set(staged["chat/system"]) == set(given)
        assert all(equal(staged["chat/system"][name], one) for name, one in given.items())


def test_a_later_process_finds_it_and_reads_nothing_again(store: Store, tmp_path: Path, host: Path) -> None:
    content = put_file(store, tmp_path, "m")
    first = cli("--json", "prefetch", "m").json
    assert [(one["name"], one["tier"], one["bytes"]) for one in first["staged"]] == [("m", "host", 100_000)]
    assert first["moved_bytes"] == first["bytes"] == 100_000
    assert {path.stat().st_mode & 0o777 for path in extents(host)} == {0o600}
    damage(store, "m")  # whoever reads it now fails
    show = "import arstore, sys; sys.stdout.buffer.write(bytes(arstore.attach()['m'].files['f']).hex().encode())"
    second = arstore("--json", "prefetch", "m", "--", sys.executable, "-c", show)
    assert second.code == 0, second.err
    assert bytes.fromhex(second.out) == content
    assert json.loads(second.err)["moved_bytes"] == 0
    assert len(extents(host)) == 1  # the first one's time is not over


def test_writes_go_to_private_copies(store: Store) -> None:
    store.put(tensors=(given := weights()), name="m")
    with store.prefetch(["m"]) as mine, store.prefetch(["m"]) as yours:
        tensor = mine["m"]["w"]
        tensor.zero_()
        assert not tensor.any()
        assert torch.equal(yours["m"]["w"], given["w"])
        with store.prefetch(["m"]) as later:
            assert torch.equal(later["m"]["w"], given["w"])


def test_two_versions_of_a_name_and_one_artifact_asked_for_twice(store: Store) -> None:
    for seed in range(2):
        store.put(tensors=weights(seed), name="m")
    store.put(tensors=weights(2), name="n")
    with store.prefetch(["m@1", "n", "m@2", "m", "n@1"]) as staged:
        assert list(staged) == ["m@1", "n", "m@2"]
        for seed, name in enumerate(["m@1", "m@2", "n"]):
            assert torch.equal(staged[name]["w"], weights(seed)["w"])


def test_an_artifact_goes_before_a_file_of_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(weights(), "m.safetensors")
    store.put("m.safetensors", name="m.safetensors")
    assert cli("prefetch", "m.safetensors").code == 0
    (tmp_path / "n.toml").write_text('[job]\nto = "host"\nweights = ["m.safetensors"]\n')
    assert cli("--json", "prefetch", "n.toml").json["staged"][0]["name"] == "m.safetensors"


def test_what_has_two_names_or_versions_is_staged_once_and_found_by_each(store: Store, host: Path) -> None:
    for name in ("m", "n", "n"):
        store.put(tensors=weights(), name=name)
    with in_host(store, ["m", "n@1", "n@2"]) as staged:
        assert set(staged) == {"m", "n@1", "n@2"}
        assert len(extents(host)) == 1
        assert staged.staging.moved_bytes == extents(host)[0].stat().st_size - 4096
    names = "import arstore; print(*arstore.attach())"
    ran = arstore("prefetch", "m", "n@1", "n@2", "--", sys.executable, "-c", names)
    assert ran.out.split() == ["m", "n@1", "n@2"], ran.err
    assert left(host) == []


# ---- held for a command


@pytest.mark.parametrize(("command", "code"), [("echo out; exit 7", 7), ("exit 130", 130), ("kill -9 $$", 137)])
def test_the_exit_code_and_stdout_are_the_commands(store: Store, host: Path, command: str, code: int) -> None:
    store.put(tensors=weights(), name="m")
    ran = arstore("--json", "prefetch", "m", "--", "sh", "-c", f'test -f "$ARSTORE_STAGED" || exit 99; {command}')
    assert ran.code == code, ran.err
    assert ran.out == ("out\n" if "echo" in command else "")
    assert json.loads(ran.err)["staged"][0]["name"] == "m"
    assert left(host) == []


def test_words_after_the_dashes_are_not_ours(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    ran = arstore("prefetch", "m", "-q", "--", "echo", "--json", "--", "prefetch", "")
    assert (ran.code, ran.out) == (0, "--json -- prefetch \n")
    for words, code in ((["--"], 2), (["--", "no-such-program"], 3)):
        assert arstore("prefetch", "m", *words).code == code
    assert left(host) == []


def test_signals_reach_the_command_and_its_code_comes_back(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")

    def run(command: list[str], sent: Callable[[int], None], *, then_end: bool = False) -> tuple[int, str]:
        words = [sys.executable, "-c", "from arstore.cli.main import main; main()", "prefetch", "m", "--", *command]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        sent(process.pid)
        heard = process.stdout.read(1) if then_end else ""
        if then_end:
            process.terminate()
        out, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, heard + out

    def ctrl_c(pid: int) -> None:
        os.kill(pid, signal.SIGINT)  # the part of it that we see is not sent on
        time.sleep(0.3)
        os.killpg(pid, signal.SIGINT)

    loop = "echo up; while :; do sleep 0.02; done"
    for name, number in (("TERM", signal.SIGTERM), ("USR1", signal.SIGUSR1)):
        command = ["bash", "-c", f"trap 'echo {name}; exit 5' {name}; {loop}"]
        assert run(command, lambda pid, number=number: os.kill(pid, number)) == (5, f"{name}\n")  # type: ignore[misc]
    # Each arrival as a byte, however fast one follows the other.
    count = "import os, signal, time; signal.signal(signal.SIGINT, lambda *_: None); os.set_blocking(1, False)\n"
    count += "signal.set_wakeup_fd(1); os.write(1, b'up\\n')\nwhile True: time.sleep(1)"
    ended_by_term = (128 + signal.SIGTERM, chr(signal.SIGINT))
    assert run([sys.executable, "-c", count], ctrl_c, then_end=True) == ended_by_term  # one SIGINT, from the terminal
    assert run(["bash", "-c", loop], lambda pid: os.killpg(pid, signal.SIGINT))[0] == 130
    assert left(host) == []


def test_what_is_ignored_the_command_ignores_too(store: Store) -> None:
    store.put(tensors=weights(), name="m")
    words = ["nohup", sys.executable, "-c", "from arstore.cli.main import main; main()", "prefetch", "m", "--"]
    done = subprocess.run(
        [*words, "sh", "-c", "kill -HUP $$; exit 3"], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("how", ["ends", "command killed", "arstore killed"])
def test_it_is_wiped_after_the_run_whatever_is_killed(store: Store, tmp_path: Path, host: Path, how: str) -> None:
    content = put_file(store, tmp_path, "m")
    (tmp_path / "json.py").write_text("raise RuntimeError")  # what lies about where a user works is no module of ours
    held = Held(tmp_path / "run", "m", cwd=tmp_path)
    [extent] = extents(host)
    with extent.open("rb") as file:
        assert content in file.read()
        if how == "arstore killed":
            held.process.kill()
            held.process.wait()
            time.sleep(0.3)
            file.seek(0)
            assert content in file.read()  # the command goes on with it
            (held.folder / "end").touch()
            wait_for(lambda: not left(host), "the end of it")
        elif how == "command killed":
            [child] = Path(f"/proc/{held.process.pid}/task/{held.process.pid}/children").read_text().split()[-1:]
            os.kill(int(child), signal.SIGKILL)
            assert ended(held.process).code == 137
        else:
            assert held.end().code == 0
        assert left(host) == []

        def zeros() -> bool:
            file.seek(0)
            return not any(file.read())

        wait_for(zeros, "the overwriting")


def test_the_end_of_one_run_takes_nothing_from_another(store: Store, tmp_path: Path, host: Path) -> None:
    put_file(store, tmp_path, "m")
    first = Held(tmp_path / "first", "m")
    second = Held(tmp_path / "second", "m")
    assert first.end().code == 0
    assert second.process.poll() is None  # the first didn't wait for it: it ends only when it is told to
    time.sleep(0.2)
    assert len(extents(host)) == 1
    assert second.end().code == 0
    wait_for(lambda: not left(host), "the end of it")


def test_attach_says_what_is_wrong(store: Store, tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput):
        attach()
    monkeypatch.setenv("ARSTORE_STAGED", str(tmp_path / "gone.json"))
    with pytest.raises(NotFound):
        attach()
    name = {"name": "m", "key": KEY}
    deep = b"[" * 100_000
    bad = [b"", b"{", b"[]", deep, {"format": 2, "artifacts": [name]}, {"format": 1}, {"artifacts": [name]}]
    for key in ("../../etc/passwd", "a" * 63, "A" * 64, 7):
        bad.append({"format": 1, "artifacts": [{"name": "m", "key": key}]})
    for value in bad:
        (tmp_path / "bad.json").write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        with pytest.raises(Corrupt):
            attach(tmp_path / "bad.json")
    (tmp_path / "good.json").write_text(json.dumps({"format": 1, "artifacts": [name]}))
    with pytest.raises(NotFound):
        attach(tmp_path / "good.json")
    with pytest.raises(StorageFailed):
        attach(tmp_path)


# ---- time and room


def test_time_is_kept_and_extended_but_never_shortened(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    for ttl, least in (("10m", 600), ("2h", 7200), ("1m", 7200)):
        now = time.time()
        assert cli("prefetch", "m", "--ttl", ttl).code == 0
        assert least - 50 <= extents(host)[0].stat().st_mtime - now <= least + 50, ttl
    with store.prefetch(["m"]):
        pass
    assert len(extents(host)) == 1  # a run that found it there leaves it
    assert cli("prefetch", "m", "--ttl", "0s").code == 0
    assert cli("prefetch", "m", "--ttl", "soon").code == 2
    assert len(extents(host)) == 1


def stage_three(store: Store, tmp_path: Path) -> list[str]:
    for number, name in enumerate("abc"):
        put_file(store, tmp_path, name, 64 * 1000)
        assert cli("prefetch", name, "--ttl", f"{number + 1}h").code == 0
    return [store.get(name).summary.id for name in "abc"]


def test_what_is_over_time_goes_first_then_what_would_be_first(store: Store, tmp_path: Path, host: Path) -> None:
    keys = stage_three(store, tmp_path)
    os.utime(host / f"{extents(host)[0].parent.name}/{keys[1]}.extent", (1, 1))  # b's time is over
    put_file(store, tmp_path, "d", 64 * 1000)
    assert cli("prefetch", "d", "--ttl", "4h", "--budget", str(3 * 64_000)).code == 0
    there = {path.stem for path in extents(host)}
    assert there == {keys[0], keys[2], store.get("d").summary.id}
    put_file(store, tmp_path, "e", 64 * 1000)
    assert cli("prefetch", "e", "--budget", str(3 * 64_000)).code == 0
    assert {path.stem for path in extents(host)} == there - {keys[0]} | {store.get("e").summary.id}


def test_without_room_nothing_moves_and_nothing_goes(store: Store, tmp_path: Path, host: Path) -> None:
    stage_three(store, tmp_path)
    put_file(store, tmp_path, "d", 64 * 1000)
    with store.prefetch(["b"]):
        ran = cli("prefetch", "d", "--budget", str(2 * 64_000 - 1))
        assert (ran.code, len(ran.error.splitlines())) == (14, 1)
        assert len(extents(host)) == 3  # a and c could have gone, and it would not have helped
        assert cli("prefetch", "d", "--budget", str(2 * 64_000)).code == 0  # to the byte
        assert {path.stem for path in extents(host)} == {store.get(name).summary.id for name in "bd"}
    assert cli("prefetch", "b", "d", "--budget", str(2 * 64_000)).code == 0  # run again, it is all there
    assert cli("prefetch", "a", "b", "c", "--budget", str(3 * 64_000 - 1)).code == 14
    assert {path.stem for path in extents(host)} == {store.get(name).summary.id for name in "bd"}
    assert len(left(host)) == len(extents(host))


def test_what_others_are_staging_takes_room_too(store: Store, host: Path) -> None:
    tier = Arena("host", host / "tenant", 100_000, Disk())
    span = TensorSpan("f", "U8", (60_000,), 0, 60_000)

    def meanwhile(_: int, out: Out) -> None:
        with pytest.raises(NoRoom):
            tier.make_room(50_000, frozenset([OTHER]))
        tier.make_room(60_000, frozenset([KEY]))  # it is what we wait for

    with tier.filling(KEY, wait=False):
        tier.fill(KEY, StoredObject("m@1", (span,), meanwhile))


def test_a_full_memory_file_system_is_no_room(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mount := tmp_path / "small").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "arstore-test", str(mount)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small tmpfs")
    try:
        monkeypatch.setenv("ARSTORE_HOST_DIR", str(mount))
        for name in "ab":
            put_file(store, tmp_path, name, 3 << 20)
        assert store.tiers.arenas.host().capacity_bytes == 2 << 20  # half of what is mounted there
        assert cli("prefetch", "a").code == 14
        assert cli("prefetch", "a", "--budget", "1GiB").code == 0
        ran = cli("prefetch", "b", "--budget", "1GiB")
        assert (ran.code, len(ran.error.splitlines())) == (14, 1)
        assert left(mount) == [path.name for path in extents(mount)]
        assert len(extents(mount)) == 1
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# ---- several at once


def test_two_that_stage_the_same_do_it_once(store: Store, tmp_path: Path, host: Path) -> None:
    put_file(store, tmp_path, "m", 48 << 20)
    both = [ended(one) for one in [start("--json", "prefetch", "m", "--wait") for _ in range(2)]]
    assert [one.code for one in both] == [0, 0]
    assert sorted(one.json["moved_bytes"] for one in both) == [0, 48 << 20]
    assert cli("unstage", "--all").code == 0
    both = [ended(one) for one in [start("--json", "prefetch", "m") for _ in range(2)]]
    assert sorted(one.code for one in both) in ([0, 0], [0, 11])
    assert sum(one.json["moved_bytes"] for one in both if not one.code) == 48 << 20
    assert len(left(host)) == 1


def test_who_does_not_wait_is_told_and_who_waits_takes_over(store: Store, tmp_path: Path, host: Path) -> None:
    content = put_file(store, tmp_path, "m")
    key = store.get("m").summary.id
    tier = store.tiers.arenas.host()
    with tier.filling(key, wait=False):
        ran = cli("--json", "prefetch", "m")
        assert (ran.code, ran.json["error"]["kind"]) == (11, "fenced")
        waiting = start("--json", "prefetch", "m", "--wait")
        wait_for(lambda: waits_for_a_lock(waiting.pid), "the other one")
        assert waiting.poll() is None
    done = ended(waiting)
    assert (done.code, done.json["moved_bytes"]) == (0, 100_000)
    with tier.filling(key, wait=False):  # what is there needs nobody's leave
        assert cli("prefetch", "m").code == 0
    with in_host(store, ["m"]) as staged:
        assert bytes(staged["m"].files["f"]) == content
    assert len(left(host)) == 1


def test_many_threads_stage_use_and_drop_the_same(store: Store) -> None:
    for seed in range(2):
        store.put(tensors=weights(seed), name=f"m{seed}")
    wanted = [weights(seed)["w"] for seed in range(2)]
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(12):
            try:
                with store.prefetch(["m0", "m1"], wait=True) as staged:
                    for seed in range(2):
                        if not torch.equal(staged[f"m{seed}"]["w"], wanted[seed]):
                            wrong.append("wrong bytes")
                if number == turn % 4:
                    store.tiers.unstage()
            except StoreError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert store.tiers.unstage().in_use == []


class Meddling(Disk):
    """Lets somebody else act right after an operation took effect, once."""

    def __init__(self, operation: str, act: Callable[[], object]) -> None:
        self._operation, self._act = operation, act

    def _after(self, operation: str) -> None:
        if operation == self._operation:
            self._operation = ""
            self._act()

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        fd = super().open(path, create=create, direct=direct, mode=mode)
        self._after("open")
        return fd

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._after("rename")


def fill(tier: Arena, byte: int, until_s: float = 0.0) -> object:
    def read(at: int, out: Out) -> None:
        out[:] = bytes([byte]) * len(out)

    return tier.fill(KEY, StoredObject("m@1", (TensorSpan("f", "U8", (5000,), 0, 5000),), read), until_s)


def test_what_was_just_published_is_held_already(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    taken: list[bool] = []
    held = fill(Arena("host", host / "tenant", 1 << 20, Meddling("rename", lambda: taken.append(plain.remove(KEY)))), 1)
    assert taken == [False]
    assert plain.find(KEY)
    del held
    assert plain.remove(KEY)


def test_removing_takes_no_other_extent_that_has_the_name_by_then(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    fill(plain, 1)
    kept: list[object] = []

    def again() -> None:
        assert plain.remove(KEY)
        kept.append(fill(plain, 2))

    Arena("host", host / "tenant", 1 << 20, Meddling("open", again)).remove(KEY)
    assert kept
    assert set(attach_extent(extents(host)[0], KEY).view) == {2}


def test_what_got_more_time_meanwhile_is_not_over(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    fill(plain, 1)
    more = Meddling("open", lambda: plain.hold(KEY, time.time() + 60))
    assert not remove_extent(extents(host)[0], more, expired_only=True)
    assert plain.find(KEY)


def test_who_attaches_while_it_is_looked_at_waits(host: Path) -> None:
    fill(Arena("host", host / "tenant", 1 << 20, Disk()), 1)
    [extent] = extents(host)
    with extent.open("rb") as file:
        assert try_lock(file.fileno())
        threading.Timer(0.3, file.close).start()
        assert set(attach_extent(extent, KEY).view) == {1}


def test_a_tensor_alone_keeps_it_in_place(store: Store, host: Path) -> None:
    store.put(tensors=(given := weights()), name="m")
    stage = store.prefetch(["m"])
    tensor = stage["m"]["w"][5:]
    stage.release()
    assert len(stage) == 0
    assert store.tiers.unstage().in_use
    assert cli("unstage", "--all").code == 4
    assert torch.equal(tensor, given["w"][5:])
    del tensor
    assert cli("unstage", "--all").code == 0
    assert left(host) == []


def test_no_file_stays_open(store: Store, host: Path) -> None:
    store.put(tensors=weights(count=100), name="m")

    def opened() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = 0
    for _ in range(200):
        with store.prefetch(["m"]) as staged:
            assert staged["m"]["w"].numel() == 100
        before = before or opened()
    assert opened() == before
    assert left(host) == []


# ---- killed, damaged, interrupted


def test_killed_at_any_operation_it_is_staged_by_the_next(host: Path) -> None:
    """A stager that dies leaves nothing that is served, nothing that is in the way, and what it had published."""
    create_store()
    with open_store() as store:
        for seed, name in enumerate("ab"):
            store.put(tensors=weights(seed), name=name)
    resumed = 0

    def work(disk: Disk) -> None:
        with Store(default_store(), disk=disk) as mine:
            mine.prefetch(["a", "b"], ttl_s=60.0)

    for at in range(1, 60):
        if not killed(at, work):
            break
        with open_store() as store:
            with in_host(store, ["a", "b"]) as staged:
                resumed += sum(not one.fresh for one in staged.staging.staged)
                for seed, name in enumerate("ab"):
                    assert torch.equal(staged[name]["w"], weights(seed)["w"])
            assert store.tiers.unstage().in_use == []
        assert [name for name in left(host) if not name.endswith(".lock")] == []
    assert 6 < at < 59
    assert resumed


def test_interrupted_while_staging_nothing_stays_that_nobody_will_release(store: Store, host: Path) -> None:
    for seed, name in enumerate("ab"):
        store.put(tensors=weights(seed), name=name)
    steps: list[int] = []

    def interrupt(tier: str, done: int, total: int) -> None:
        steps.append(done)
        if sum(steps) > total // 2:  # the first of them is there
            raise KeyboardInterrupt

    for ttl_s, stay in ((0.0, 0), (60.0, 1)):
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            store.prefetch(["a", "b"], ttl_s=ttl_s, progress=interrupt)
        assert len(left(host)) == len(extents(host)) == stay
    assert steps


def damage(store: Store, name: str) -> None:
    """Flip a bit of the largest blob of an artifact."""
    blob = max(store.get(name).manifest.blobs, key=lambda one: one.length)
    [row] = store._parts.catalog.find_blobs([blob.digest]).values()
    [path] = (default_store() / "segments").iterdir()
    with path.open("r+b") as file:
        file.seek(row.place.offset + HEADER_BYTES)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_a_bad_blob_is_quarantined_and_never_mapped(store: Store, tmp_path: Path, host: Path) -> None:
    for seed, name in enumerate("ab"):
        store.put(tensors=weights(seed), name=name)
    damage(store, "a")
    ran = cli("--json", "prefetch", "a")
    assert (ran.code, ran.json["error"]["kind"]) == (13, "corrupt")
    assert left(host) == []
    ran = cli("--json", "prefetch", "a", "b")
    assert ran.code == 4
    assert [one["name"] for one in ran.json["failed"]] == ["a@1"]
    assert "quarantine" in ran.json["failed"][0]["why"]
    assert [one["name"] for one in ran.json["staged"]] == ["b"]
    assert len(extents(host)) == 1
    ran = arstore("prefetch", "a", "b", "--", "touch", tmp_path / "ran")
    assert ran.code == 4
    assert not (tmp_path / "ran").exists()
    store.put(tensors=weights(0), name="a")  # heals it
    assert cli("prefetch", "a", "b").code == 0


def damaged(extent: bytes, how: str) -> bytes:
    if how == "table":
        return extent[:60] + bytes([extent[60] ^ 1]) + extent[61:]
    return {"cut": extent[:-1], "longer": extent + b"x", "head": b"X" + extent[1:], "empty": b"", "page": extent[:4096],
            "length": extent[:8] + b"\xff" * 8 + extent[16:], "zeros": bytes(len(extent))}[how]  # fmt: skip


@pytest.mark.parametrize("how", ["cut", "longer", "head", "empty", "page", "length", "table", "zeros", "foreign"])
def test_a_damaged_extent_is_never_served_and_staged_anew(store: Store, host: Path, how: str) -> None:
    for seed, name in enumerate("ab"):
        store.put(tensors=weights(seed), name=name)
        assert cli("prefetch", name).code == 0
    keys = [store.get(name).summary.id for name in "ab"]
    mine, other = (next(path for path in extents(host) if path.stem == key) for key in keys)
    mine.write_bytes(other.read_bytes() if how == "foreign" else damaged(mine.read_bytes(), how))
    session = mine.parent / "session-x.json"
    session.write_text(json.dumps({"format": 1, "artifacts": [{"name": "a", "key": keys[0]}]}))
    with pytest.raises(Corrupt):
        attach(session)
    assert len(store.tiers.arenas.host().residents()) == 2  # so that it can be taken away
    with in_host(store, ["a"]) as staged:
        assert staged.staging.staged[0].fresh
        assert torch.equal(staged["a"]["w"], weights(0)["w"])


def test_unstage_takes_away_what_is_no_extent(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    assert cli("prefetch", "m").code == 0
    extents(host)[0].write_bytes(bytes(10_000))
    assert cli("--json", "unstage", "--all").json["bytes"] == 10_000
    assert left(host) == []


# ---- released and erased


def test_unstage_names_and_all(store: Store, tmp_path: Path, host: Path) -> None:
    stage_three(store, tmp_path)
    assert [one["name"] for one in cli("--json", "unstage", "a").json["unstaged"]] == ["a@1"]
    assert cli("--json", "unstage", "a").json["unstaged"] == []
    with store.prefetch(["b"]):
        ran = cli("--json", "unstage", "--all")
        assert ran.code == 4
        assert ran.json["in_use"] == ["b@1"]
        assert [one["name"] for one in ran.json["unstaged"]] == ["c@1"]
    assert cli("unstage", "--all").code == 0
    assert left(host) == []
    for words in ([], ["a", "--all"]):
        assert cli("unstage", *words).code == 2
    assert cli("unstage", "nobody").code == 3


def test_erase_wipes_staged_copies_first_or_refuses(store: Store, host: Path) -> None:
    for seed, name in enumerate("ab"):
        store.put(tensors=weights(seed), name=name)
        assert cli("prefetch", name).code == 0
    key = store.get("a").summary.id
    with store.prefetch(["a"]):
        assert cli("erase", "a").code == 11
        assert store.get("a").tensors()
    with store.tiers.arenas.host().filling(key, wait=False):  # of what is being staged right now the same is true
        assert cli("erase", "a").code == 11
    assert cli("erase", "a", "--dry-run").code == 0
    assert len(extents(host)) == 2
    file = os.open(next(path for path in extents(host) if path.stem == key), os.O_RDONLY)
    assert cli("erase", "a").code == 0
    assert not any(os.read(file, 1 << 20))
    os.close(file)
    assert [path.stem for path in extents(host)] == [store.get("b").summary.id]


class DeadBeforeTheEnd(Disk):
    """Ends the process when all of an artifact is staged, and not yet published."""

    def rename(self, source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("words", ["erase m", "unstage --all", "prefetch other --ttl 0s"])
def test_the_remains_of_a_killed_stager_are_wiped_by(words: str, host: Path) -> None:
    create_store()
    with open_store() as store:
        store.put(tensors=weights(), name="m")
        store.put(tensors=weights(1), name="other")
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException), Store(default_store(), disk=DeadBeforeTheEnd()) as mine:
            mine.prefetch(["m"])
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    [partial] = host.glob("*/.*.partial")
    plain = bytes(tensor_bytes(weights()["w"]))
    with partial.open("rb") as file:
        assert plain in file.read()
        assert cli(*words.split()).code == 0
        file.seek(0)
        assert not any(file.read())
    assert left(host) == []


def test_tenants_are_apart_and_removing_one_wipes_what_it_had(store: Store, host: Path) -> None:
    assert cli("tenant", "add", "other").code == 0
    store.put(tensors=weights(), name="m")
    assert cli("prefetch", "m").code == 0
    with open_store(tenant="other") as other:
        with pytest.raises(NotFound):
            other.prefetch(["m"])
        other.put(tensors=weights(), name="m")
        with in_host(other, ["m"]) as staged:
            assert staged.staging.staged[0].fresh  # the same bytes under the same name, and nothing shared
            assert len({path.parent for path in extents(host)}) == len({path.stem for path in extents(host)}) == 2
            assert cli("tenant", "rm", "other", "--erase").code == 11
            assert other.tiers.unstage(["m"]).in_use
        assert in_host(other, ["m"], ttl_s=60).staging.staged
    assert [one.name for one in store.tiers.arenas.host().residents()] == ["m@1"]
    gc.collect()
    assert cli("tenant", "rm", "other", "--erase").code == 0
    assert [path.stem for path in extents(host)] == [store.get("m").summary.id]


@pytest.mark.parametrize("which", ["parent", "directory"])
@pytest.mark.parametrize("how", ["open to all", "a link", "a file", "somebody else's"])
def test_a_directory_that_is_not_ours_alone_is_refused(
    store: Store, tmp_path: Path, host: Path, which: str, how: str
) -> None:
    store.put(tensors=weights(), name="m")
    place = store.tiers.arenas.host().directory
    place = place if which == "directory" else place.parent
    shutil.rmtree(place)
    (away := tmp_path / "away").mkdir(mode=0o700)
    if how == "a link":
        place.symlink_to(away)
    elif how == "a file":
        place.touch(mode=0o600)
    else:
        place.mkdir(mode=0o700)
        if how == "open to all":
            place.chmod(0o777)
        elif os.geteuid():
            pytest.skip("only root can give a directory away")
        else:
            os.chown(place, 12345, 12345)
    ran = cli("prefetch", "m")
    assert ran.code == 1
    assert "mode 0700" in ran.error
    assert not any(away.iterdir())


def test_other_tiers_and_odd_words_are_refused(store: Store) -> None:
    store.put(tensors=weights(), name="m")
    for words in (["--to", "moon"], ["--budget", "much"], ["--run", "[]"]):
        assert cli("prefetch", "m", *words).code == 2
    assert cli("prefetch", "nobody").code == 3
    assert cli("prefetch").code == 2


# ---- what went wrong once


def test_the_janitor_wipes_what_was_half_staged_and_leaves_what_another_stages(tmp_path: Path) -> None:
    directory = tmp_path / "tenant"
    directory.mkdir()
    for key in (KEY, OTHER):
        partial_path(directory, key).write_bytes(b"secret")
    with partial_path(directory, KEY).open("rb") as file, filling(directory, OTHER, Disk(), wait=False):
        command = [sys.executable, "-m", "arstore.store.staging.janitor", str(directory / "session-1.json")]
        subprocess.run(command, input=f"{KEY}\n{OTHER}\n", text=True, check=True, timeout=PATIENCE_S)
        assert file.read() == bytes(6)
        assert [path.name for path in directory.glob("*.partial")] == [partial_path(directory, OTHER).name]


def test_a_lock_that_is_swept_as_it_is_taken_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    swept: list[int] = []

    def swept_first(fd: int) -> None:
        if not swept:
            path.unlink()
        swept.append(fd)
        wait_lock(fd)

    monkeypatch.setattr(filling_room, "wait_lock", swept_first)
    fd = take_lock(path, Disk())
    assert len(swept) == 2
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


def test_a_command_finds_what_is_staged_from_any_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARSTORE_HOST_DIR", "host")
    elsewhere = "import os; os.chdir('/'); import arstore; print(*arstore.attach())"
    ran = arstore("prefetch", "m", "--", sys.executable, "-c", elsewhere)
    assert (ran.code, ran.out) == (0, "m\n"), ran.err


def between(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen in the middle of the next erase: names are dropped, and keys not destroyed yet."""
    real = shred

    def shred_later(parts: Parts) -> int:
        happens()
        return real(parts)

    monkeypatch.setattr(erase_room, "shred", shred_later)


def copy_of(store: Store, name: str) -> tuple[str, Given]:
    """Return the key of an artifact and what a stager has read of it."""
    key = store.get(name).summary.id
    held = Local(store.get, lambda key: None).hold(key)
    assert held
    return key, Given(held.name, tuple(held.spans), whole(held))


def test_a_copy_staged_in_the_middle_of_an_erase_is_said_and_goes_with_its_user(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    (key, copy), arena, held = copy_of(store, "m"), store.tiers.arenas.host(), list[object]()
    between(monkeypatch, lambda: held.append(arena.fill(key, copy, time.time() + 100)))
    assert store.erase("m").still_staged == ("m@1",)
    assert left(host) == []  # nobody else finds it
    assert whole(held[0]) == copy.content  # type: ignore[arg-type]


def test_a_stager_at_work_in_an_erase_drops_what_it_staged(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    (key, copy), arena = copy_of(store, "m"), store.tiers.arenas.host()
    at_work, go_on, ended = threading.Event(), threading.Event(), list[object]()

    class Slow(Given):
        def read(self, at: int, out: Out) -> None:
            super().read(at, out)
            at_work.set()
            go_on.wait(PATIENCE_S)

    def stage() -> None:
        try:
            with arena.filling(key, wait=False):
                arena.fill(key, Slow(copy.name, copy.spans, copy.content), time.time() + 100)
        except NotFound as error:
            ended.append(error)

    stager = threading.Thread(target=stage)

    def begins() -> None:
        stager.start()
        assert at_work.wait(PATIENCE_S)

    between(monkeypatch, begins)
    assert store.erase("m").still_staged == (key[:16],)
    go_on.set()
    stager.join(PATIENCE_S)
    assert len(ended) == 1
    assert left(host) == []


def test_a_removal_beside_a_stager_harms_nothing(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    (key, copy), arena = copy_of(store, "m"), store.tiers.arenas.host()
    with arena.filling(key, wait=False):
        store.rm("m")
        held = arena.fill(key, copy, time.time() + 100)
    assert arena.find(key)
    assert whole(held) == copy.content


def test_a_tier_that_fails_after_an_erase_is_in_the_receipt(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    assert cli("prefetch", "m").code == 0

    def broken(arena: Arena) -> set[str]:
        raise OSError(5, "Input/output error")

    between(monkeypatch, lambda: monkeypatch.setattr(Arena, "coming", broken))
    assert store.erase("m").still_staged == ("tier host",)
    assert cli("get", "m", host / "x").code == 3


def test_a_tenant_that_is_removed_says_what_was_staged_meanwhile(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("tenant", "add", "other").code == 0
    with open_store(tenant="other") as other:
        other.put(tensors=weights(), name="m")
        (key, copy), arena, held = copy_of(other, "m"), other.tiers.arenas.host(), list[object]()
    real = Keyring.remove_tenant

    def remove(keyring: Keyring, number: int) -> None:
        held.append(arena.fill(key, copy, time.time() + 100))
        real(keyring, number)

    monkeypatch.setattr(Keyring, "remove_tenant", remove)
    ran = cli("--json", "tenant", "rm", "other", "--erase")
    assert ran.json["still_staged"] == ["m@1"]
    assert "not wiped" in ran.err
    assert extents(host) == []


def test_word_of_an_erase_finds_a_stager_or_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stager looks for it when the lock is free already, so that none is left after it has looked."""
    disk, lock = Disk(), tmp_path / f".{KEY}.lock"
    assert not mark_erased(tmp_path, KEY, disk)
    lock.touch()
    assert not mark_erased(tmp_path, KEY, disk)  # whoever had it has gone
    lock.unlink()
    with pytest.raises(NotFound), filling(tmp_path, KEY, disk, wait=False):
        assert mark_erased(tmp_path, KEY, disk)
    free, real = list[bool](), os.fstat

    def fstat(fd: int) -> os.stat_result:
        free.append(try_lock(other))
        return real(fd)

    with monkeypatch.context() as patched, filling(tmp_path, KEY, disk, wait=False):
        other = os.open(lock, os.O_RDWR)
        patched.setattr(os, "fstat", fstat)
    os.close(other)
    assert free == [True]
