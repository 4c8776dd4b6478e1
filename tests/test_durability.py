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
from tests.command import Ran, arstore, ended, start
from tests.segment_scan import check_keys_are_used_once, records

MIB = 1 << 20


def write_checkpoint(path: Path, tensors_count: int, tensor_bytes: int, seed: int) -> Path:
    """Write tensors of random bytes, which no codec makes smaller."""
    values = np.random.default_rng(seed)
    save_file({f"t{n:03}": np.frombuffer(values.bytes(tensor_bytes), np.uint8) for n in range(tensors_count)}, path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    assert arstore("init").code == 0
    return tmp_path / "store"


def segments_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "segments").iterdir())


def put_until(store: Path, source: Path, written_bytes: int) -> "subprocess.Popen[str]":
    """Start a put and return once it has written so much to its segments."""
    goal = segments_bytes(store) + written_bytes
    process = start("put", source, "big", "--json")
    os.setpriority(os.PRIO_PROCESS, process.pid, 19)  # so that it does not get to its end while nobody looks
    while segments_bytes(store) < goal:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    return process


def names() -> list[str]:
    listed = arstore("ls", "--json")
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
    process = put_until(store, source, 128 * MIB)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    tail = whole_records(store)
    assert tail.plain_bytes > 64 * MIB, "too little was written for the test to say anything"
    assert names() == []

    again = arstore("put", source, "big", "--json")
    assert again.code == 0, again.err
    assert again.json["version"] == 1
    assert again.json["blobs_reused"] == tail.records_count
    assert again.json["blobs_new"] == 33 - tail.records_count  # 32 tensors and the header of the file
    assert again.json["bytes_stored"] <= source.stat().st_size - tail.plain_bytes + MIB
    check_readable({"big": source}, tmp_path / "out")


def test_a_put_killed_twice_is_taken_up_twice(store: Path, tmp_path: Path) -> None:
    """The second try dies while the tail of the first is taken in, or soon after: nothing of the first is lost."""
    source = write_checkpoint(tmp_path / "big.safetensors", 16, 4 * MIB, seed=2)
    process = put_until(store, source, 40 * MIB)
    process.kill()
    ended(process)
    first = whole_records(store)
    process = start("put", source, "big")
    time.sleep(random.Random(2).uniform(0.1, 0.5))
    process.kill()
    ended(process)
    again = arstore("put", source, "big", "--json")
    assert again.code == 0, again.err
    assert again.json["blobs_reused"] >= first.records_count > 0
    check_readable({"big": source}, tmp_path / "out")


def test_a_killed_get_leaves_nothing_at_its_destination(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 16, 8 * MIB, seed=5)
    assert arstore("put", source, "big").code == 0
    out = tmp_path / "restored" / "big.safetensors"
    process = start("get", "big", out)
    while process.poll() is None and not list(tmp_path.glob("restored/.arstore-*/0")):
        time.sleep(0.001)
    process.kill()
    assert ended(process).code == -signal.SIGKILL
    assert not out.exists()
    assert arstore("get", "big", out).code == 0
    assert out.read_bytes() == source.read_bytes()


# ---- signals that ask


def test_an_interrupted_put_exits_130_and_is_taken_up(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 24, 8 * MIB, seed=6)
    process = put_until(store, source, 40 * MIB)
    process.send_signal(signal.SIGINT)
    ran = ended(process)
    assert ran.code == 130
    assert ran.error == "arstore: error: put: interrupted; the store is consistent"
    assert ran.json["error"]["exit_code"] == 130
    taken_up(source, tmp_path)


def test_a_terminated_put_is_taken_up(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "big.safetensors", 24, 8 * MIB, seed=7)
    process = put_until(store, source, 40 * MIB)
    process.terminate()
    assert ended(process).code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    taken_up(source, tmp_path)


def taken_up(source: Path, folder: Path) -> None:
    assert names() == []
    again = arstore("put", source, "big", "--json")
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
        assert arstore("init").code == 0
        assert arstore("put", small, "small").code == 0
        filler = mount / "filler"
        filler.write_bytes(bytes(64 * MIB))
        refused(large, "no-room")
        assert shutil.disk_usage(mount).free > 30 * MIB, "a put that failed keeps its room"
        check_readable({"small": small}, tmp_path / "out")

        fill(filler)
        refused(large, "no-room")
        refused(small, "no-room")
        assert arstore("verify").code == 0
        assert arstore("get", "small", tmp_path / "out").code == 0
        check_readable({"small": small}, tmp_path / "out")

        filler.unlink()
        assert arstore("put", large, "large").code == 0
        check_readable({"small": small, "large": large}, tmp_path / "out")


def fill(path: Path) -> None:
    """Append to a file until there is no room left."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_limit_on_the_size_of_files(store: Path, tmp_path: Path) -> None:
    small = write_checkpoint(tmp_path / "small.safetensors", 4, MIB, seed=10)
    large = write_checkpoint(tmp_path / "large.safetensors", 16, 4 * MIB, seed=11)
    assert arstore("put", small, "small").code == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 * MIB, before[1]))
    try:
        refused(large, "no-room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert segments_bytes(store) < 8 * MIB, "a put that failed keeps its room"
    assert arstore("put", large, "large").code == 0
    check_readable({"small": small, "large": large}, tmp_path / "out")


def test_a_full_disk_at_the_destination_of_a_get(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "large.safetensors", 16, 2 * MIB, seed=12)
    assert arstore("put", source, "large").code == 0
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


@pytest.mark.parametrize("change", [append, overwrite, cut, replace])
def test_a_source_that_changes_while_it_is_read(store: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = tmp_path / "source.safetensors"
    # Eight groups, of which few are read when the first is done.
    save_file({f"t{n:02}": np.full(8 * MIB, n, np.uint8) for n in range(16)}, source)
    shutil.copy2(source, tmp_path / "copy")
    changed = threading.Event()

    def progress(advance_bytes: int, total_bytes: int) -> None:
        if not changed.is_set():
            changed.set()
            change(source)

    with open_store() as opened:
        with pytest.raises(StorageFailed, match=r"source\.safetensors: changed while it was read"):
            opened.put(source, name="moving", progress=progress)
        assert opened.ls() == []
        opened.put(source, name="moving", kind="file")
    check_readable({"moving": source}, tmp_path / "out")


def test_a_source_that_never_rests(store: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", 8, MIB, seed=13)
    resting = threading.Event()

    def touch() -> None:
        while not resting.wait(0.001):
            source.touch()

    restless = threading.Thread(target=touch)
    restless.start()
    try:
        ran = arstore("put", source, "moving", "--json")
    finally:
        resting.set()
        restless.join()
    assert ran.code == 1
    assert ran.error == f"arstore: error: put: {source}: changed while it was read"
    assert "at rest" in ran.json["error"]["hint"]
    assert names() == []
