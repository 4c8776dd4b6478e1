"""Real processes that are killed, interrupted, or run out of room, on a real disk.

Whatever happens to a put: nothing of it is visible, the next command works at once, what was acknowledged stays,
and the same put run again takes up every blob that had reached its segment. (Kills by the thousand, and of every other
command: test_kill_loop.py.)
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore import StorageFailed, open_store
from arstore.formats.record import KIND_BLOB
from arstore.store.artifacts.sources import FileSource
from tests.support.command import Ran, arstore, cli, ended, resume, stopped
from tests.support.segment_scan import check_keys_are_used_once, records

MIB = 1 << 20
CLOCK_REALTIME_COARSE = 5  # what the kernel stamps files with


def write_checkpoint(path: Path, tensors_count: int, tensor_bytes: int, seed: int) -> Path:
    """Write tensors of random bytes, which no codec makes smaller."""
    values = np.random.default_rng(seed)
    save_file({f"t{n:03}": np.frombuffer(values.bytes(tensor_bytes), np.uint8) for n in range(tensors_count)}, path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path / "store"


def segments_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "segments").iterdir())


def put_until(source: Path, written_bytes: int) -> "subprocess.Popen[str]":
    """Start a put that stops when it has written so much to its segments."""
    return stopped("put", source, "big", "--json", part=".seg", written_bytes=written_bytes)


def names() -> list[str]:
    listed = cli("ls", "--json")
    assert listed.code == 0, listed.err
    return [one["name"] for one in listed.json["artifacts"]]


def check_readable(acknowledged: dict[str, Path], out: Path) -> None:
    """Assert that what was acknowledged reads back as it was put, and that nothing in the store is bad."""
    with open_store() as opened:
        for name, source in acknowledged.items():
            opened.get_to(name, out)
            assert out.read_bytes() == source.read_bytes(), f"{name} is not what was put"
            out.unlink()
        assert opened.verify(deep=True).corrupt == ()
        check_keys_are_used_once(opened._parts.root)


@dataclass(frozen=True, slots=True)
class Tail:
    """The blobs whose records lie in the segments whole."""

    records_count: int
    plain_bytes: int


def whole_records(store: Path) -> Tail:
    found = [header for header, whole in records(store) if whole and header.binding.kind == KIND_BLOB]
    return Tail(len(found), sum(header.binding.plain_bytes for header in found))


# ---- kill -9


def test_a_killed_put_is_taken_up_where_it_stood(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 32, 8 * MIB, seed=1)
    process = put_until(source, 128 * MIB)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    tail = whole_records(store)
    assert tail.plain_bytes > 64 * MIB, "too little was written for the test to say anything"
    assert names() == []

    again = cli("put", source, "big", "--json")
    assert again.code == 0, again.err
    assert again.json["version"] == 1
    assert again.json["blobs_reused"] == tail.records_count
    assert again.json["blobs_new"] == 33 - tail.records_count  # 32 tensors and the header of the file
    assert again.json["bytes_stored"] <= source.stat().st_size - tail.plain_bytes + MIB
    check_readable({"big": source}, tmp_path / "out")


def test_a_put_killed_twice_is_taken_up_twice(store: Path, tmp_path: Path) -> None:
    """The second try dies when it has taken in the tail of the first and begins to write: nothing is lost."""
    source = write_checkpoint(tmp_path / "big.safetensors", 16, 4 * MIB, seed=2)
    process = put_until(source, 40 * MIB)
    process.kill()
    ended(process)
    first = whole_records(store)
    process = put_until(source, 1)
    process.kill()
    ended(process)
    again = cli("put", source, "big", "--json")
    assert again.code == 0, again.err
    assert again.json["blobs_reused"] >= first.records_count > 0
    check_readable({"big": source}, tmp_path / "out")


def test_a_killed_get_leaves_nothing_at_its_destination(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 16, 8 * MIB, seed=5)
    assert cli("put", source, "big").code == 0
    out = tmp_path / "restored" / "big.safetensors"
    process = stopped("get", "big", out, part=".arstore-", written_bytes=40 * MIB)
    assert list(tmp_path.glob("restored/.arstore-*/tree"))
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    assert not out.exists()
    assert cli("get", "big", out).code == 0
    assert out.read_bytes() == source.read_bytes()


# ---- signals that ask


def test_an_interrupted_put_exits_130_and_is_taken_up(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 24, 8 * MIB, seed=6)
    process = put_until(source, 40 * MIB)
    resume(process, signal.SIGINT)
    ran = ended(process)
    assert ran.code == 130
    assert ran.error == "arstore: error: put: interrupted; the store is consistent"
    assert ran.json["error"]["exit_code"] == 130
    taken_up(source, tmp_path)


def test_a_terminated_put_is_taken_up(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 24, 8 * MIB, seed=7)
    process = put_until(source, 40 * MIB)
    resume(process, signal.SIGTERM)
    assert ended(process).code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    taken_up(source, tmp_path)


def taken_up(source: Path, folder: Path) -> None:
    assert names() == []
    again = cli("put", source, "big", "--json")
    assert again.code == 0, again.err
    assert 1 < again.json["blobs_reused"] < 25  # 24 tensors and the header of the file
    check_readable({"big": source}, folder / "out")


# ---- no room


@contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own in memory; skips the test where that can't be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"a small tmpfs can't be mounted here: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = write_checkpoint(tmp_path / "small.safetensors", 4, MIB, seed=8)
    large = write_checkpoint(tmp_path / "large.safetensors", 16, 4 * MIB, seed=9)
    with small_disk(tmp_path / "mount", 112) as mount:
        monkeypatch.setenv("ARSTORE_STORE", str(mount / "store"))
        assert cli("init").code == 0
        assert cli("put", small, "small").code == 0
        filler = mount / "filler"
        filler.write_bytes(bytes(64 * MIB))
        refused(large, "no-room")
        assert shutil.disk_usage(mount).free > 30 * MIB, "a put that failed keeps its room"
        check_readable({"small": small}, tmp_path / "out")

        fill(filler)
        refused(large, "no-room")
        refused(small, "no-room")
        assert cli("verify").code == 0
        assert cli("get", "small", tmp_path / "out").code == 0
        check_readable({"small": small}, tmp_path / "out")

        filler.unlink()
        assert cli("put", large, "large").code == 0
        check_readable({"small": small, "large": large}, tmp_path / "out")


def fill(path: Path) -> None:
    """Append to a file until there is no room left."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_limit_on_the_size_of_files(store: Path, tmp_path: Path) -> None:
    small = write_checkpoint(tmp_path / "small.safetensors", 4, MIB, seed=10)
    large = write_checkpoint(tmp_path / "large.safetensors", 16, 4 * MIB, seed=11)
    assert cli("put", small, "small").code == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 * MIB, before[1]))
    try:
        refused(large, "no-room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert segments_bytes(store) < 8 * MIB, "a put that failed keeps its room"
    assert cli("put", large, "large").code == 0
    check_readable({"small": small, "large": large}, tmp_path / "out")


def test_a_full_disk_at_the_destination_of_a_get(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "large.safetensors", 16, 2 * MIB, seed=12)
    assert cli("put", source, "large").code == 0
    with small_disk(tmp_path / "mount", 24) as mount:
        ran = arstore("get", "large", mount / "out", "--json")
        assert ran.code == 14
        assert ran.json["error"]["kind"] == "no-room"
        assert list(mount.iterdir()) == []


def refused(source: Path, kind: str) -> Ran:
    before = names()
    ran = arstore("put", source, "refused", "--json")
    assert ran.code == 14
    assert ran.json["error"]["kind"] == kind
    assert ran.error.startswith("arstore: error: put: ")
    assert names() == before
    return ran


# ---- sources that move


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"x")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    path.with_name("copy").rename(path)


def set_back(path: Path) -> None:
    """Change bytes of a file in place and set its mtime back, as a copy that keeps times does."""
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remake(path: Path) -> None:
    """Put other bytes in the place of a file: the new file has its size and mtime, and often its inode's number."""
    before = path.stat()
    path.unlink()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changing(path: Path, change: Callable[[Path], None], *, at_bytes: int = 1) -> Callable[[int, int], None]:
    """Return a progress that changes a file once so many bytes were read; meanwhile nobody reads further."""
    guard, read, total = threading.Lock(), [0], at_bytes

    def progress(advance_bytes: int, total_bytes: int) -> None:
        with guard:
            read[0] += advance_bytes
            if read[0] - advance_bytes < total <= read[0]:
                change(path)

    return progress


CHANGES = [append, overwrite, cut, replace, set_back, remake]


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read(store: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = tmp_path / "source.safetensors"
    # Six groups for at most four workers: whoever has read one waits for the change, so two are read after it.
    save_file({f"t{n:02}": np.full(8 * MIB, n, np.uint8) for n in range(12)}, source)
    shutil.copy2(source, tmp_path / "copy")
    with open_store() as opened:
        with pytest.raises(StorageFailed, match=r"source\.safetensors: changed while it was read"):
            opened.put(source, name="moving", progress=changing(source, change))
        assert opened.ls() == []
        opened.put(source, name="moving", kind="file")
    check_readable({"moving": source}, tmp_path / "out")


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_when_all_of_it_was_read(
    store: Path, tmp_path: Path, change: Callable[[Path], None], known: bool
) -> None:
    """What is stored stood there at one moment, all of it: a directory is no mixture of before and after."""
    source = tmp_path / "folder" / "a"
    source.parent.mkdir()
    source.write_bytes(random.Random(14).randbytes(MIB))
    (source.parent / "b").write_bytes(random.Random(15).randbytes(MIB))
    shutil.copy2(source, source.with_name("copy"))
    total = sum(path.stat().st_size for path in source.parent.iterdir())
    with open_store() as opened:
        if known:
            opened.put(source.parent, name="before")
        before = opened.ls()
        with pytest.raises(StorageFailed, match=r"folder/a: changed while it was read"):
            opened.put(source.parent, name="moving", progress=changing(source, change, at_bytes=total))
        assert opened.ls() == before
        opened.put(source.parent, name="moving")


def test_an_empty_source_that_is_filled_while_others_are_read(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "other").write_bytes(b"other")
    with open_store() as opened, pytest.raises(StorageFailed, match=r"folder/empty: changed while it was read"):
        opened.put(folder, name="moving", progress=changing(folder / "empty", append))


def test_a_source_that_changes_in_the_tick_of_the_first_look(tmp_path: Path) -> None:
    """Times of files move in ticks of milliseconds: no change may get the time that was seen first."""
    path = tmp_path / "source"
    for n in range(50):
        path.write_bytes(bytes([n]) * 4096)
        source = FileSource(path)
        assert path.stat().st_ctime_ns < time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        assert source.read(0, 2) == bytes([n, n])
        overwrite(path)
        with pytest.raises(StorageFailed, match="changed while it was read"):
            source.read(0, 1)


def test_a_source_that_is_written_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the tick after the last change has an end."""
    path = tmp_path / "source"
    monkeypatch.setattr("arstore.store.artifacts.fingerprint.time.sleep", lambda _: path.write_bytes(b"more"))

    def look_often() -> None:
        for _ in range(100):  # a tick that ends just before the look leaves nothing to wait for
            path.write_bytes(b"first")
            FileSource(path)

    with pytest.raises(StorageFailed, match="changed while it was read"):
        look_often()


def test_a_source_that_never_rests(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", 8, MIB, seed=13)
    read_into = FileSource.read_into

    def restless(self: FileSource, offset: int, out: memoryview) -> None:
        source.touch()
        read_into(self, offset, out)

    monkeypatch.setattr(FileSource, "read_into", restless)
    ran = cli("put", source, "moving", "--json")
    assert ran.code == 1
    assert ran.error == f"arstore: error: put: {source}: changed while it was read"
    assert "at rest" in ran.json["error"]["hint"]
    assert names() == []
