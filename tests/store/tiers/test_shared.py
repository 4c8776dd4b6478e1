"""The shared tier as users meet it: published once, taken from the nearest, verified, not missed where it is gone."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from arstore import Store
from arstore.formats.record import HEADER_BYTES
from arstore.store.errors import StorageFailed
from arstore.store.tiers.sealed import SealedExtent
from tests.support.command import arstore, cli, ended, start
from tests.support.kv_made import made
from tests.support.published import LENGTH, SUM_BYTES, came_from, gone, lying, memory, published, put, store
from tests.support.staging import damage
from tests.support.tier_places import open_arena

__all__ = ["memory", "store"]  # fixtures

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system here")


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def in_host(store: Store, content: bytes) -> None:
    """See that an artifact lies in the host tier, and which bytes it has."""
    with store.prefetch(["m"]) as staged:
        assert staged.staging.staged[0].source == "host"
        assert bytes(staged["m"].files["f"]) == content


def attached(content: bytes, name: str = "m") -> None:
    """See that a command gets an artifact."""
    show = f"import arstore, sys; sys.stdout.write(bytes(arstore.attach()[{name!r}].files['f']).hex())"
    ran = arstore("prefetch", name, "--", sys.executable, "-c", show)
    assert (ran.code, ran.out) == (0, content.hex())


# ---- published once, taken from there


def test_a_published_artifact_is_read_from_the_shared_tier_and_not_from_segments(
    store: Store, tmp_path: Path, memory: Path
) -> None:
    content = put(store, tmp_path)
    first = cli("--json", "prefetch", "m", "--to", "shared")
    assert came_from(first) == ["local"]
    assert [(one["tier"], one["bytes"]) for one in first.json["staged"]] == [("shared", LENGTH)]
    assert came_from(cli("--json", "prefetch", "m", "--to", "shared")) == ["shared"]
    damage(store)
    second = cli("--json", "prefetch", "m")
    assert came_from(second) == ["shared"]
    assert (second.json["degraded"], second.json["moved_bytes"]) == ([], LENGTH)
    attached(content)
    assert cli("unstage", "--all").code == 0
    assert cli("prefetch", "m").code == 13, "it is damaged"


@pytest.mark.parametrize("name", ["weights", "kv"])
def test_tensors_and_kv_go_through_the_shared_tier_to_a_device(store: Store, name: str) -> None:
    kv = {key: torch.from_numpy(one) for key, one in made(range(39)).items()}
    identity = {"model": "m", "revision": "1", "precision": "fp16", "block_tokens": 16}
    store.put(tensors=kv, name="weights", codec="stored")
    store.kv.put(kv, name="kv", tokens=range(39), identity=identity)
    with store.prefetch([name], to="shared", ttl_s=60) as there:
        assert {key: one.numpy().tobytes() for key, one in there[name].items()} == bytes_of(kv)
    damage(store, name)
    with store.prefetch([name], to="device:cpu") as staged:
        assert staged.staging.staged[0].source == "shared"
        assert {key: one.numpy().tobytes() for key, one in staged[name].items()} == bytes_of(kv)


def bytes_of(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: one.numpy().tobytes() for name, one in tensors.items()}


def test_the_nearest_tier_goes_first_unless_from_names_another(store: Store, tmp_path: Path) -> None:
    published(store, tmp_path)
    for words, source in (([], "shared"), (["--from", "local"], "local"), (["--from", "shared"], "shared")):
        assert came_from(cli("--json", "prefetch", "m", "--ttl", "0s", *words)) == [source]
    with store.prefetch(["m"], to="device:cpu") as staged:
        assert staged.staging.staged[0].source == "shared"
    with store.prefetch(["m"]), store.prefetch(["m"], to="device:cpu") as staged:
        assert staged.staging.staged[0].source == "host"
    with store.prefetch(["m"]), store.prefetch(["m"], to="device:cpu", from_="shared") as staged:
        assert staged.staging.staged[0].source == "shared"
    put(store, tmp_path, "n")
    assert came_from(cli("--json", "prefetch", "n", "--from", "shared")) == ["local"], "where else"


@pytest.mark.parametrize(
    "words",
    ["--from host", "--from device", "--from moon", "--from shared --to shared", "--from host --to shared",
     "--to local", "--to shared -- true"],
)  # fmt: skip
def test_a_source_that_does_not_lie_below_is_refused(store: Store, tmp_path: Path, memory: Path, words: str) -> None:
    put(store, tmp_path)
    run = arstore if "-- " in words else cli
    assert run("prefetch", "m", *words.split()).code == 2
    assert lying(memory) == lying(memory, "host") == []


def test_the_shared_tier_is_absent_where_no_directory_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, tmp_path)
    monkeypatch.delenv("ARSTORE_SHARED_DIR")
    for words in (["--to", "shared"], ["--from", "shared"]):
        ran = cli("prefetch", "m", *words)
        assert ran.code == 2
        assert "ARSTORE_SHARED_DIR" in ran.err
    assert "shared" not in [one["tier"] for one in cli("--json", "tiers").json["tiers"]]


# ---- bad or gone: the job is done from the store


@pytest.mark.parametrize("to", ["host", "device:cpu"])
@pytest.mark.parametrize("at", [-1, 60, 4096 + 5 * SUM_BYTES])
def test_a_flipped_bit_is_made_good_from_the_store_and_wiped(
    store: Store, tmp_path: Path, memory: Path, to: str, at: int
) -> None:
    content = published(store, tmp_path)
    [extent] = lying(memory)
    flip(extent, at)
    with extent.open("rb") as file, store.prefetch(["m"], to=to, ttl_s=60) as staged:
        assert bytes(staged["m"].files["f"]) == content if to == "host" else staged["m"]._held.length_bytes == LENGTH
        assert staged.staging.staged[0].source == "local"
        assert set(staged.staging.degraded) == ({"shared"} if at != 60 else set()), "of no extent nobody speaks"
        assert not any(file.read())
    assert lying(memory) == []


def test_a_bad_published_copy_is_reported(store: Store, tmp_path: Path, memory: Path) -> None:
    content = published(store, tmp_path)
    flip(lying(memory)[0])
    ran = cli("--json", "prefetch", "m")
    assert came_from(ran) == ["local"]
    assert [one["tier"] for one in ran.json["degraded"]] == ["shared"]
    assert "warning: without tier shared" in ran.err
    assert lying(memory) == []
    in_host(store, content)
    assert cli("prefetch", "m", "--to", "shared").code == 0
    assert cli("unstage", "m").code == 0


def test_prefetch_does_without_a_shared_tier_that_is_gone_from_the_start(
    store: Store, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = published(store, tmp_path)
    path = gone(memory, monkeypatch)
    for words in ([], ["--from", "shared"]):
        ran = cli("--json", "prefetch", "m", "--ttl", "0s", *words)
        assert came_from(ran) == ["local"]
        assert [one["tier"] for one in ran.json["degraded"]] == ["shared"]
        assert "warning: without tier shared" in ran.err
        assert str(path) in ran.err
    with store.prefetch(["m"]) as staged:
        assert bytes(staged["m"].files["f"]) == content
    assert cli("prefetch", "m", "--to", "shared").code == 1
    for words in (["gc"], ["show", "m"], ["stats"], ["verify"], ["ls"], ["tiers"]):
        assert cli(*words).code == 0, words
    assert not path.exists()


def reads_and_then(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Let something happen before the so-manieth reading of one sum."""
    read, left = SealedExtent._read_piece, [number]

    def counted(one: SealedExtent, piece: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            act()
        read(one, piece)  # type: ignore[arg-type]

    monkeypatch.setattr(SealedExtent, "_read_piece", counted)


@pytest.mark.parametrize("number", [1, 5, LENGTH // SUM_BYTES])
@pytest.mark.parametrize("how", ["truncated", "overwritten", "an error", "an error of the memory"])
def test_a_copy_whose_shared_tier_goes_in_the_middle_comes_from_the_store(
    store: Store, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, number: int, how: str
) -> None:
    content = published(store, tmp_path)
    [extent] = lying(memory)

    def act() -> None:
        if how == "truncated":
            os.truncate(extent, 4096)
        elif how == "overwritten":
            extent.write_bytes(os.urandom(extent.stat().st_size))
        elif how == "an error":
            raise StorageFailed("shared", "is gone")
        else:
            monkeypatch.setattr(os, "preadv", failing)

    def failing(fd: int, *more: object) -> int:
        if "shared" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(5, "Input/output error")
        return kept(fd, *more)  # type: ignore[arg-type]

    kept = os.preadv
    reads_and_then(monkeypatch, number, act)
    ran = cli("--json", "prefetch", "m")
    assert came_from(ran) == ["local"]
    assert [one["tier"] for one in ran.json["degraded"]] == ["shared"]
    assert "warning: without tier shared" in ran.err
    assert len(lying(memory, "host")) == 1
    in_host(store, content)
    assert len(lying(memory)) == (0 if how in ("truncated", "overwritten") else 1), "what is bad is wiped"


def test_a_disk_is_no_shared_memory(
    store: Store, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tmp_path.stat().st_dev == memory.stat().st_dev:
        pytest.skip("the tests' own directory lies in memory")
    put(store, tmp_path)
    (disk := tmp_path / "disk").mkdir(mode=0o700)
    monkeypatch.setenv("ARSTORE_SHARED_DIR", str(disk))
    ran = cli("prefetch", "m", "--to", "shared")
    assert ran.code == 1
    assert "memory file system" in ran.error
    assert came_from(cli("--json", "prefetch", "m")) == ["local"]
    assert list(disk.iterdir()) == []


@pytest.fixture
def mount(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Give what mounts, or mounts anew, a shared tier of its own with options."""
    (path := tmp_path / "mount").mkdir()
    monkeypatch.setenv("ARSTORE_SHARED_DIR", str(path))

    def mount(options: str) -> None:
        words = ["mount", "-t", "tmpfs", "-o", f"size=1m,mode=0700,{options}", "arstore-test", str(path)]
        if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a tmpfs")

    yield mount
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


def test_a_shared_tier_that_can_only_be_read_serves_its_objects(
    store: Store, tmp_path: Path, mount: Callable[[str], None]
) -> None:
    mount("rw")
    published(store, tmp_path)
    assert cli("prefetch", "m", "--to", "shared").code == 0
    put(store, tmp_path, "n")
    store.prefetch(["n"], to="shared", ttl_s=0.01).release()  # soon over time, and nobody can take it away
    mount("remount,ro")
    assert came_from(cli("--json", "prefetch", "m")) == ["shared"]
    for words in (["gc"], ["show", "m"], ["tiers"], ["verify"]):
        assert cli(*words).code == 0, words
    assert [one["state"] for one in cli("--json", "tiers").json["tiers"] if one["tier"] == "shared"] == ["ready"]
    assert cli("erase", "m").code == 1
    assert cli("get", "m", tmp_path / "out").code == 0


def test_a_full_shared_tier_keeps_nobody_from_the_store(
    store: Store, tmp_path: Path, mount: Callable[[str], None]
) -> None:
    mount("nr_inodes=1")  # not one directory more
    put(store, tmp_path)
    assert cli("prefetch", "m", "--to", "shared").code in (1, 14)
    ran = cli("--json", "prefetch", "m")
    assert came_from(ran) == ["local"]
    assert [one["tier"] for one in ran.json["degraded"]] == ["shared"]
    for words in (["gc"], ["show", "m"], ["tiers"], ["verify"]):
        assert cli(*words).code == 0, words


def test_an_artifact_that_does_not_fit_is_not_published(store: Store, tmp_path: Path, memory: Path) -> None:
    published(store, tmp_path)
    put(store, tmp_path, "n")
    with store.prefetch(["m"], to="shared"):
        assert cli("prefetch", "n", "--to", "shared", "--budget", f"{2 * LENGTH - 1}B").code == 14
        assert cli("prefetch", "n", "--to", "shared", "--budget", f"{2 * LENGTH}B").code == 0
    assert len(lying(memory)) == 2


# ---- healed from there, shown, raced for


@pytest.mark.parametrize("bad", [False, True])
def test_verify_heals_from_a_published_copy_unless_that_is_bad_too(
    store: Store, tmp_path: Path, memory: Path, bad: bool
) -> None:
    content = published(store, tmp_path)
    damage(store)
    if bad:
        flip(lying(memory)[0])
    ran = cli("--json", "verify")
    assert (ran.code, len(ran.json["healed"]), len(ran.json["corrupt"])) == ((13, 0, 1) if bad else (0, 1, 0))
    if not bad:
        assert cli("unstage", "--all").code == 0
        assert cli("verify", "--deep").code == 0
        assert cli("get", "m", tmp_path / "out").code == 0
        assert (tmp_path / "out/f").read_bytes() == content


def test_verify_heals_the_good_tensors_of_a_copy_that_is_bad_in_part(store: Store, memory: Path) -> None:
    tensors = {f"t{number}": torch.randn(5 * SUM_BYTES // 4) for number in range(3)}
    store.put(tensors=tensors, name="m", codec="stored")
    assert cli("prefetch", "m", "--to", "shared").code == 0
    for row in list(store._parts.catalog.all_blobs()):
        if row.place.plain_bytes >= SUM_BYTES:
            flip(store._parts.directory / f"{row.place.segment:016x}.seg", row.place.offset + HEADER_BYTES)
    flip(lying(memory)[0], 4096)
    ran = cli("--json", "verify")
    assert (ran.code, len(ran.json["healed"]), len(ran.json["corrupt"])) == (13, 2, 1)


def test_tiers_and_show_name_the_tier_of_an_artifact(
    store: Store, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(store, tmp_path)
    shown = {one["tier"]: one for one in cli("--json", "tiers").json["tiers"]}
    assert list(shown) == ["device", "host", "shared", "local"]
    assert (shown["shared"]["state"], shown["shared"]["used_bytes"]) == ("ready", LENGTH)
    assert Path(shown["shared"]["path"]).parent == memory / "shared"
    assert shown["shared"]["capacity_bytes"] > LENGTH
    assert cli("--json", "show", "m").json["tiers"]["shared"] == {"bytes": LENGTH}
    assert "shared" in cli("show", "m").out
    path = gone(memory, monkeypatch)
    shown = {one["tier"]: one for one in cli("--json", "tiers").json["tiers"]}
    assert (shown["shared"]["state"], shown["shared"]["path"]) == ("gone", str(path))
    assert shown["shared"]["capacity_bytes"] is None
    assert list(cli("--json", "show", "m").json["tiers"]) == ["local"]


def test_two_processes_publish_the_same_artifact_once(store: Store, tmp_path: Path, memory: Path) -> None:
    put(store, tmp_path, "m", 40 << 20)
    words = ["--json", "prefetch", "m", "--to", "shared", "--wait"]
    both = [ended(one) for one in [start(*words) for _ in range(2)]]
    assert [one.code for one in both] == [0, 0]
    assert sorted(one.json["moved_bytes"] for one in both) == [0, 40 << 20]
    assert len(lying(memory)) == 1


def test_a_process_is_told_that_another_publishes_the_same(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path)
    tier = store.tiers.arenas.shared()
    assert tier
    with tier.filling(store.get("m").summary.id, wait=False):
        assert cli("prefetch", "m", "--to", "shared").code == 11
    assert cli("prefetch", "m", "--to", "shared").code == 0


def test_shared_memory_is_a_memory_file_system(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        if path.exists() and path.stat().st_dev == Path("/dev/shm").stat().st_dev:
            pytest.skip("the tests' own directory lies in memory")
        with pytest.raises(StorageFailed):
            open_arena("shared", path)
        assert not list(tmp_path.iterdir())
