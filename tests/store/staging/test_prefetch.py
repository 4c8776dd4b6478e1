"""Prefetch: objects are staged once, verified, held while they are used, and wiped after."""

import gc
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arstore import Corrupt, Store, StoreError, attach, create_store, open_store
from arstore.store.artifacts.tensors import _TORCH_NAMES, tensor_bytes
from arstore.store.config import default_store
from arstore.store.disk import Disk
from tests.support.command import arstore, cli, ended, start
from tests.support.mortal_disk import killed
from tests.support.staging import damage, extents, in_host, left, put_file, stage_three, store, wait_for, weights

__all__ = ["store"]  # fixtures


def waits_for_a_lock(pid: int) -> bool:
    """Say whether the kernel has a process in line for a lock on a file: `N: -> FLOCK ADVISORY WRITE PID ...`."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(words[1] == "->" and words[5] == str(pid) for words in lines)


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    same = (found.dtype, found.shape, found.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    return same and bytes(tensor_bytes(found)) == bytes(tensor_bytes(wanted))


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


def test_a_later_process_finds_the_copy_and_reads_nothing_again(store: Store, tmp_path: Path, host: Path) -> None:
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


def test_writes_to_a_tensor_go_to_a_private_copy(store: Store) -> None:
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


def test_an_artifact_of_two_names_or_versions_is_staged_once_and_found_by_each(store: Store, host: Path) -> None:
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


# ---- time and room


def test_the_time_of_a_copy_is_kept_and_extended_but_never_shortened(store: Store, host: Path) -> None:
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


def test_copies_over_their_time_go_first_then_those_with_the_least_time(
    store: Store, tmp_path: Path, host: Path
) -> None:
    keys = stage_three(store, tmp_path)
    os.utime(host / f"{extents(host)[0].parent.name}/{keys[1]}.extent", (1, 1))  # b's time is over
    put_file(store, tmp_path, "d", 64 * 1000)
    assert cli("prefetch", "d", "--ttl", "4h", "--budget", f"{3 * 64_000}B").code == 0
    there = {path.stem for path in extents(host)}
    assert there == {keys[0], keys[2], store.get("d").summary.id}
    put_file(store, tmp_path, "e", 64 * 1000)
    assert cli("prefetch", "e", "--budget", f"{3 * 64_000}B").code == 0
    assert {path.stem for path in extents(host)} == there - {keys[0]} | {store.get("e").summary.id}


def test_a_prefetch_without_room_moves_nothing_and_removes_nothing(store: Store, tmp_path: Path, host: Path) -> None:
    stage_three(store, tmp_path)
    put_file(store, tmp_path, "d", 64 * 1000)
    with store.prefetch(["b"]):
        ran = cli("prefetch", "d", "--budget", f"{2 * 64_000 - 1}B")
        assert (ran.code, len(ran.error.splitlines())) == (14, 1)
        assert len(extents(host)) == 3  # a and c could have gone, and it would not have helped
        assert cli("prefetch", "d", "--budget", f"{2 * 64_000}B").code == 0  # to the byte
        assert {path.stem for path in extents(host)} == {store.get(name).summary.id for name in "bd"}
    assert cli("prefetch", "b", "d", "--budget", f"{2 * 64_000}B").code == 0  # run again, it is all there
    assert cli("prefetch", "a", "b", "c", "--budget", f"{3 * 64_000 - 1}B").code == 14
    assert {path.stem for path in extents(host)} == {store.get(name).summary.id for name in "bd"}
    assert len(left(host)) == len(extents(host))


# ---- several at once


def test_two_processes_stage_the_same_artifact_once(store: Store, tmp_path: Path, host: Path) -> None:
    put_file(store, tmp_path, "m", 48 << 20)
    both = [ended(one) for one in [start("--json", "prefetch", "m", "--wait") for _ in range(2)]]
    assert [one.code for one in both] == [0, 0]
    assert sorted(one.json["moved_bytes"] for one in both) == [0, 48 << 20]
    assert cli("unstage", "--all").code == 0
    both = [ended(one) for one in [start("--json", "prefetch", "m") for _ in range(2)]]
    assert sorted(one.code for one in both) in ([0, 0], [0, 11])
    assert sum(one.json["moved_bytes"] for one in both if not one.code) == 48 << 20
    assert len(left(host)) == 1


def test_a_process_that_does_not_wait_is_told_and_one_that_waits_takes_over(
    store: Store, tmp_path: Path, host: Path
) -> None:
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


def test_a_tensor_alone_keeps_its_copy_in_place(store: Store, host: Path) -> None:
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


def test_an_artifact_whose_stager_is_killed_at_any_operation_is_staged_by_the_next(host: Path) -> None:
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


def test_an_interrupted_prefetch_leaves_no_copy_that_nobody_will_release(store: Store, host: Path) -> None:
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


def test_other_tiers_and_odd_words_are_refused(store: Store) -> None:
    store.put(tensors=weights(), name="m")
    for words in (["--to", "moon"], ["--budget", "much"], ["--run", "[]"]):
        assert cli("prefetch", "m", *words).code == 2
    assert cli("prefetch", "nobody").code == 3
    assert cli("prefetch").code == 2
