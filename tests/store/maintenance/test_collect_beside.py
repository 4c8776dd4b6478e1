"""Collect beside puts and gets: none of them loses a blob, whatever goes in between."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arstore.formats.catalog import parse_slots
from arstore.store.disk import Disk
from arstore.store.errors import NotFound, StoreError
from arstore.store.maintenance.collect import AT_ONCE, Collected
from arstore.store.store import Store
from tests.support.command import PATIENCE_S
from tests.support.room import DAY_S, KIB, Room, files, once, room

__all__ = ["room"]  # fixtures


PUT_AND_STOP = """
import sys, time
from pathlib import Path
from arstore.store.disk import Disk
from arstore.store.config import default_store
from arstore.store.store import Store

class Stopping(Disk):
    def sync(self, fd):
        if ".seg" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            print("under way", flush=True)
            time.sleep(600)
        super().sync(fd)

with Store(default_store(), disk=Stopping()) as store:
    store.put(sys.argv[1], name="never")
"""


def stopped_put(source: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", PUT_AND_STOP, str(source)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "under way\n"
    return process


def test_what_a_killed_put_left_goes_after_the_grace(room: Room) -> None:
    source = room.put("stays", 1)
    process = stopped_put(room.source(2, 3))
    loans = room.store._parts.ledger
    # While it lives, its keys and bytes are its own.
    room.store.gc(AT_ONCE)
    assert loans.abandoned() == {}
    assert len(loan_slots(room.store)) > 2
    process.kill()
    process.wait()
    assert len(loans.abandoned()) == 1
    first = room.store.gc()
    assert (first.deleted_blobs, first.condemned_blobs) == (0, 2)
    room.check_keys()
    room.clock.go(DAY_S)
    assert room.store.gc().deleted_blobs == 2
    room.check({"stays": source})
    room.check_keys()


def test_what_a_killed_put_left_is_used_by_its_next_run(room: Room) -> None:
    process = stopped_put(room.source(2, 3))
    process.kill()
    process.wait()
    room.store.gc()
    stored = room.store.put(room.source(2, 3), name="model")
    assert (stored.blobs_new, stored.blobs_reused) == (0, 2)
    room.store.gc(AT_ONCE)
    room.check({"model": room.source(2, 3)})
    room.check_keys()


def test_a_live_put_is_left_alone(room: Room) -> None:
    source = room.source(1, 2)
    results: list[Collected] = []
    other = room.open(disk=Disk())
    room.disk.hook = once("sync", ".seg", lambda: results.append(other.gc(AT_ONCE)))
    room.store.put(source, name="model")
    assert results
    room.check({"model": source})
    room.store.gc(AT_ONCE)
    room.check({"model": source})
    room.check_keys()


def loan_slots(store: Store) -> list[int]:
    with store._parts.tables.reading() as rows:
        return [slot for _, value in rows.scan("loans", b"") for slot in parse_slots(value)]


def test_a_blob_that_goes_between_look_up_and_commit_is_stored_again(room: Room) -> None:
    room.put("old", 1)
    room.store.rm("old")
    other = room.open(disk=Disk())
    room.disk.hook = once("sync", ".seg", lambda: other.gc(AT_ONCE))
    source = room.put("new", 1, 2)  # 1 is reused, and goes; 2 is written, and stays
    room.put("passing", 3)
    room.store.rm("passing")  # destroys the keys of whatever is doomed
    room.check({"new": source})
    room.store.gc(AT_ONCE)
    room.check({"new": source})
    room.check_keys()


@pytest.mark.parametrize("moment", ["new", "write", "sync_dir"])
def test_a_segment_that_is_being_made_is_left_alone(room: Room, moment: str) -> None:
    other = room.open(disk=Disk())
    where = "segments" if moment == "sync_dir" else ".seg"
    room.disk.hook = once(moment, where, lambda: other.gc(AT_ONCE))
    source = room.put("model", 1)
    room.check({"model": source})
    room.check_keys()


def test_a_segment_that_goes_while_a_put_claims_it(room: Room) -> None:
    room.put("old", 1)
    room.store.rm("old")
    other = room.open(disk=Disk())
    room.disk.hook = once("open", ".seg", lambda: other.gc(AT_ONCE))
    source = room.put("new", 2)
    room.check({"new": source})
    room.check_keys()


def test_a_second_name_for_what_goes(room: Room) -> None:
    """A tag reads a manifest, then commits; what is removed and collected between can't be tagged any more."""
    room.put("old", 1)
    other = room.open(disk=Disk())

    def collect() -> None:
        other.rm("old")
        other.gc(AT_ONCE)

    room.disk.hook = once("sync", ".seg", collect)
    with pytest.raises(StoreError):
        room.store.tag("old", "new")
    room.check({})


def test_a_removed_version_is_not_in_the_way_of_others(room: Room) -> None:
    """Its key is destroyed between a listing's look at the catalog and its opening of the summaries."""
    room.put("model", 1)
    room.put("model", 2)
    other = room.open(disk=Disk())
    listing = room.store._parts.names.all()
    first = next(listing)
    gone = 3 - first.summary.version
    found = room.store._parts.names.resolve(f"model@{gone}")
    other.rm(f"model@{gone}")
    room.store._parts.keyring.refresh()
    assert list(listing) == []  # the second is gone, and no error
    with pytest.raises(NotFound):
        room.store._parts.names.manifest(found)


def test_a_get_that_began_before_is_never_wrong(room: Room) -> None:
    room.put("model", 1, 2, 3)
    artifact = room.store.get("model")
    room.store.rm("model")
    room.store.gc(AT_ONCE)
    buffer = memoryview(bytearray(16 * KIB))
    with pytest.raises(NotFound):
        artifact.read_blob(0, buffer)
    assert room.store.stats().quarantined_blobs == 0


def test_a_get_follows_a_blob_that_was_stored_anew(room: Room) -> None:
    source = room.put("model", 1)
    artifact = room.store.get("model")
    room.store.rm("model")
    room.store.gc(AT_ONCE)
    room.put("again", 9)  # takes the place that the blob had
    room.put("model", 1)
    buffer = memoryview(bytearray(16 * KIB))
    artifact.read_blob(0, buffer)
    assert bytes(buffer) == (source / "1").read_bytes()
    assert room.store.stats().quarantined_blobs == 0


def test_a_view_that_was_mapped_before_the_hole_reads_zeros_and_refuses(room: Room) -> None:
    room.put("stays", 5)
    room.put("model", 1)
    reader = room.open()
    artifact = reader.get("model")
    buffer = memoryview(bytearray(16 * KIB))
    artifact.read_blob(0, buffer)  # maps the segment, caches the key
    room.store.rm("model")
    room.store.gc(AT_ONCE)
    with pytest.raises(NotFound):
        artifact.read_blob(0, buffer)
    assert reader.stats().quarantined_blobs == 0


BUSY = """
import random, shutil, sys, time
from pathlib import Path
from arstore.store.errors import NotFound
from arstore.store.access import open_store

role, own, seconds, scratch = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
chance = random.Random(own)
until = time.monotonic() + seconds

def enough():  # of each there were some, however slow the machine is
    return time.monotonic() > until and (puts > 16 if role == "put" else gets > 3)

def content(seed):
    return random.Random(seed).randbytes(16384)

def directory(version):
    return {str(seed): content(seed) for seed in (version % 5, 100 + version % 7, 1000 * own + version)}

gets = missed = puts = 0
with open_store() as store:
    while not enough():
        if role == "put":
            version = puts + 1
            place = scratch / f"source-{own}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for name, plain in directory(version).items():
                (place / name).write_bytes(plain)
            assert store.put(place, name=f"name-{own}").summary.version == version
            puts += 1
            if version > 4 and version % 2:
                store.rm(f"name-{own}@{version - 4}")
        else:
            own = chance.choice((1, 2))
            found = [one for one in store.ls(f"name-{own}")]
            if not found:
                continue
            version = chance.choice(found).summary.version
            out = scratch / f"out-{sys.argv[2]}"
            shutil.rmtree(out, ignore_errors=True)
            try:
                store.get_to(f"name-{own}@{version}", out)
            except NotFound:
                missed += 1
                continue
            assert {path.name: path.read_bytes() for path in out.iterdir()} == directory(version), version
            gets += 1
print(puts, gets, missed)
"""


COLLECT = """
import sys, time
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.access import open_store
until, runs, deleted = time.monotonic() + float(sys.argv[1]), 0, 0
while time.monotonic() < until or runs < 4 or deleted < 4:
    with open_store() as store:
        deleted += store.gc(AT_ONCE).deleted_blobs
        runs += 1
print(runs, deleted)
"""


def test_beside_puts_and_gets(room: Room) -> None:
    busy(room, 3)


@pytest.mark.slow
def test_beside_puts_and_gets_for_long(room: Room) -> None:
    busy(room, 60)


def busy(room: Room, seconds: float) -> None:
    programs: list[list[object]] = [
        ["-c", BUSY, "put", 1, seconds, room.path],
        ["-c", BUSY, "put", 2, seconds, room.path],
        ["-c", BUSY, "get", 3, seconds, room.path],
        ["-c", COLLECT, seconds],
    ]
    running = [
        subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for words in programs
    ]
    said = []
    for process in running:
        out, err = process.communicate(timeout=seconds + PATIENCE_S)
        assert process.returncode == 0, err
        said.append([int(word) for word in out.split()])
    (first, _, _), (second, _, _), (_, gets, _), (runs, deleted) = said
    assert min(first, second, gets, runs, deleted) > 3, said
    left = {1: first, 2: second}
    for own, puts in left.items():
        dropped = {version - 4 for version in range(5, puts + 1, 2)}
        expected = [version for version in range(1, puts + 1) if version not in dropped]
        assert [one.summary.version for one in room.store.ls(f"name-{own}")] == expected
        for version in expected:
            place = room.path / "out"
            shutil.rmtree(place, ignore_errors=True)
            room.store.get_to(f"name-{own}@{version}", place)
            seeds = (version % 5, 100 + version % 7, 1000 * own + version)
            assert files(place) == {str(seed): random.Random(seed).randbytes(16384) for seed in seeds}
    room.store.gc(AT_ONCE)
    assert room.store.verify().corrupt == ()
    stats = room.store.stats()
    assert (stats.quarantined_blobs, stats.unreferenced_bytes) == (0, 0)
    room.check_keys()
