"""Collect, killed or failing at every disk operation, and over very many blobs."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arstore.formats.catalog import BlobRow, Place, SegmentRow
from arstore.formats.digest import Digest
from arstore.store.catalog.recount import restore
from arstore.store.catalog.tables import Rows
from arstore.store.catalog.usage import write_segments
from arstore.store.errors import StorageFailed
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.store import Store
from tests.support.room import Room, once, room

__all__ = ["room"]  # fixtures


class Killed(BaseException):
    """The process ends here."""


def test_killed_at_every_disk_operation_it_is_finished_by_the_next(tmp_path: Path) -> None:
    room = Room(tmp_path)
    source = room.put("stays", 1, 2)
    room.put("intermediate", 7)
    room.put("goes", 3, 4)
    room.store.put(room.source(5), name="other", kind="intermediate")  # a segment of its own, to be removed
    for name in ("goes", "other", "intermediate"):
        room.store.rm(name)
    room.store.close()
    shutil.copytree(tmp_path / "store", tmp_path / "image")
    for at in itertools.count():
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "image", tmp_path / "store")
        if not killed_at(room, at):
            break
        room.disk.hook = lambda operation, path: None
        room.store = room.open()
        done = room.store.gc(AT_ONCE)
        assert done.condemned_blobs == 0
        room.check({"stays": source})
        room.check_keys()
        on_disk = {int(path.stem, 16) for path in (tmp_path / "store" / "segments").iterdir()}
        assert on_disk == set(room.store._parts.catalog.segments()), f"killed at operation {at}"
        assert room.store.gc(AT_ONCE).freed_bytes == 0
        room.store.close()
    assert at > 10


def killed_at(room: Room, at: int) -> bool:
    """Collect in a store that dies before its `at`-th disk operation; say whether it died."""
    store = room.open()
    count = 0

    def hook(operation: str, path: Path) -> None:
        nonlocal count
        if count >= at:
            raise Killed
        count += 1

    room.disk.hook = hook
    try:
        store.gc(AT_ONCE)
    except Killed:
        return True
    finally:
        store.close()
    return False


@pytest.mark.parametrize("operation", ["write", "sync", "punch", "remove"])
def test_a_disk_that_fails_is_reported_and_loses_nothing(room: Room, operation: str) -> None:
    source = room.put("stays", 1)
    room.put("goes", 2)
    room.store.put(room.source(5), name="other", kind="intermediate")
    room.store.rm("other")
    room.store.rm("goes")

    def fail() -> None:
        raise StorageFailed(operation, "input/output error")

    room.disk.hook = once(operation, "", fail)
    with pytest.raises(StorageFailed):
        room.store.gc(AT_ONCE)
    room.store = room.open()
    room.store.gc(AT_ONCE)
    room.check({"stays": source})
    room.check_keys()


@pytest.mark.slow
def test_a_million_blobs(room: Room) -> None:
    seconds, rss_bytes = collect_many(room.store, 1_000_000)
    assert seconds < 60
    assert rss_bytes < 512 << 20


def test_some_thousand_blobs_of_which_a_tenth_is_dead(room: Room) -> None:
    fill(room.store, 20_000)
    done = room.store.gc(AT_ONCE)
    assert (done.deleted_blobs, done.kept_blobs) == (2_000, 18_000)
    # Sparse files: what is not there can't be given back, and no live record is touched.
    assert room.store.stats().blobs == 18_000


GC = """
import re, threading, time
from pathlib import Path
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.access import open_store
most, over = [0], threading.Event()
def watch():  # private memory: pages of the mapped catalog are the page cache's
    while not over.wait(0.05):
        most[0] = max(most[0], int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
threading.Thread(target=watch).start()
with open_store() as store:
    began = time.perf_counter()
    done = store.gc(AT_ONCE)
    print(time.perf_counter() - began, most[0], done.deleted_blobs)
    over.set()
"""


def collect_many(store: Store, count: int) -> tuple[float, int]:
    """Collect `count` blobs, a tenth of them dead, in a process of its own; return its seconds and peak memory."""
    fill(store, count)
    done = subprocess.run([sys.executable, "-c", GC], capture_output=True, text=True, check=True)
    seconds, rss_bytes, deleted = done.stdout.split()
    assert int(deleted) == count // 10
    print(f"{count} blobs, a tenth dead: {float(seconds):.1f} s, {int(rss_bytes) >> 20} MiB")
    return float(seconds), int(rss_bytes)


def fill(store: Store, count: int) -> None:
    """Write rows of blobs, each 16 KiB in one of some segments, every tenth needed by nothing."""
    parts = store._parts
    record = place_at(1, 0, 0).record_bytes
    per_segment = 60_000
    slots: list[int] = []
    while len(slots) < count:
        slots += [slot for slot, _ in parts.keyring.reserve(parts.keys.number, min(count - len(slots), 100_000))]
    segments: dict[int, SegmentRow] = {}
    blobs: dict[Digest, BlobRow] = {}
    for n in range(count):
        segment, at = n // per_segment + 1, 4096 + n % per_segment * record
        blobs[Digest(n.to_bytes(32, "big"))] = BlobRow(place_at(segment, at, slots[n]), 0 if n % 10 == 0 else 1)
        segments[segment] = SegmentRow(1, at + record, at + record - 4096)
    for segment, row in segments.items():
        fd = os.open(parts.directory / f"{segment:016x}.seg", os.O_RDWR | os.O_CREAT, 0o600)
        for at in range(4096, row.durable_bytes, 10 * record):
            os.pwrite(fd, b"dead", at)
        os.ftruncate(fd, row.durable_bytes)
        os.fsync(fd)  # or punching would be timed with writing back
        os.close(fd)
    restore(parts.catalog, blobs, {})

    def change(rows: Rows) -> None:
        write_segments(rows, segments, max(segments))

    parts.tables.write(change)


def place_at(segment: int, offset: int, slot: int) -> Place:
    return Place(segment, offset, slot, 8000, 8016, bytes(16), 4 << 20, 0, 1)
