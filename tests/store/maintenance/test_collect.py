"""Collection: what is needed stays, what is not goes, its key and its space with it, whatever happens meanwhile.

Artifacts here are directories of small files, so that each file is one blob and artifacts share blobs by sharing files.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from arstore.formats.catalog import BlobRow, Place, SegmentRow, parse_blob, parse_slots, parse_version
from arstore.formats.digest import Digest
from arstore.store.access import create_store
from arstore.store.catalog import leases as leases_room
from arstore.store.catalog.recount import restore
from arstore.store.catalog.tables import Rows
from arstore.store.catalog.usage import write_segments
from arstore.store.disk import Disk
from arstore.store.errors import Fenced, NotFound, StorageFailed, StoreError
from arstore.store.maintenance.collect import AT_ONCE, CAREFUL, Collected, Margins
from arstore.store.maintenance.retention import Retention
from arstore.store.store import Store
from tests.support.command import PATIENCE_S, cli

KIB = 1 << 10
DAY_S = 24 * 3600


class Clock:
    """The wall clock of a store, moved by hand."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class HookedDisk(Disk):
    """The real disk, which calls `hook` with the name of an operation and a path before it takes effect."""

    def __init__(self) -> None:
        self.hook: Callable[[str, Path], None] = lambda operation, path: None

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        self.hook("new" if create else "open", path)
        return super().open(path, create=create, direct=direct, mode=mode)

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        self.hook("write", path_of(fd))
        super().write_at(fd, source, offset)

    def sync(self, fd: int) -> None:
        self.hook("sync", path_of(fd))
        super().sync(fd)

    def sync_dir(self, path: Path) -> None:
        self.hook("sync_dir", path)
        super().sync_dir(path)

    def truncate(self, fd: int, length: int) -> None:
        self.hook("truncate", path_of(fd))
        super().truncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        self.hook("punch", path_of(fd))
        return super().punch(fd, offset, length)

    def remove(self, path: Path) -> None:
        self.hook("remove", path)
        super().remove(path)


class NoHoles(Disk):
    """A file system that can't punch holes."""

    def punch(self, fd: int, offset: int, length: int) -> bool:
        return False


class Killed(BaseException):
    """The process ends here."""


def path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def once(wanted: str, name: str, act: Callable[[], object]) -> Callable[[str, Path], None]:
    """A hook that acts before the first `wanted` operation on a path that holds `name`."""
    done: list[bool] = []

    def hook(operation: str, path: Path) -> None:
        if not done and operation == wanted and name in str(path):
            done.append(True)
            act()

    return hook


class Room:
    """A store, a clock, a disk that can be hooked, and files to put."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self.disk = path, Clock(), HookedDisk()
        self.opened: list[Store] = []
        create_store()
        self.store = self.open()

    def open(self, tenant: str = "default", disk: Disk | None = None) -> Store:
        store = Store(self.path / "store", tenant=tenant, disk=disk or self.disk, now=self.clock)
        self.opened.append(store)
        return store

    def source(self, *seeds: int, length: int = 16 * KIB) -> Path:
        """A directory with one file for each seed."""
        place = self.path / "sources" / "-".join(map(str, (*seeds, length)))
        place.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (place / str(seed)).write_bytes(random.Random(seed).randbytes(length))
        return place

    def put(self, name: str, *seeds: int, length: int = 16 * KIB, store: Store | None = None) -> Path:
        source = self.source(*seeds, length=length)
        (store or self.store).put(source, name=name)
        return source

    def check(self, expected: dict[str, Path], store: Store | None = None) -> None:
        """Assert that refs read back as they were put and that nothing else is there or bad."""
        store = store or self.store
        for ref, source in expected.items():
            out = self.path / "out"
            shutil.rmtree(out, ignore_errors=True)
            store.get_to(ref, out)
            assert files(out) == files(source), ref
        assert sorted(one.summary.name for one in store.ls()) == sorted(ref.partition("@")[0] for ref in expected)
        assert store.verify().corrupt == ()
        assert store.stats().quarantined_blobs == 0

    def check_keys(self) -> None:
        """Assert that keys are there for what rows stand on and for what is spare, and for nothing else."""
        parts = self.store._parts
        parts.keyring.refresh()  # another process or store may have committed since
        for number in parts.keyring.tenants():
            prefix = number.to_bytes(4, "big")
            with parts.tables.reading() as rows:
                blobs = {parse_blob(value).place.slot for _, value in rows.scan("blobs", prefix)}
                versions = {parse_version(value).place.slot for _, value in rows.scan("versions", prefix)}
                spare = set(parse_slots(rows.get("spare", prefix) or b""))
                assert not list(rows.scan("loans", prefix))
                assert not list(rows.scan("doomed", prefix))
            assert set(parts.keyring.slots(number)) == blobs | versions | spare
            assert not spare & (blobs | versions)

    @property
    def disk_bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in (self.path / "store" / "segments").iterdir())


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.disk.hook = lambda operation, path: None
    for store in made.opened:
        with suppress(KeyError, OSError):
            store.close()


def files(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


# ---- the grace


def test_careful_takes_two_runs_and_a_day(room: Room) -> None:
    source = room.put("stays", 1)
    room.put("goes", 2, 3)
    room.store.rm("goes")
    first = room.store.gc()
    assert (first.deleted_blobs, first.condemned_blobs, first.kept_blobs) == (0, 2, 3)
    room.clock.go(DAY_S - 1)
    assert room.store.gc().deleted_blobs == 0
    room.clock.go(1)
    last = room.store.gc()
    assert (last.deleted_blobs, last.condemned_blobs, last.kept_blobs) == (2, 0, 1)
    assert last.freed_bytes >= 2 * 16 * KIB
    room.check({"stays": source})
    room.check_keys()


def test_a_day_alone_is_not_enough(room: Room) -> None:
    room.put("goes", 1)
    room.store.rm("goes")
    room.clock.go(30 * DAY_S)
    assert room.store.gc().deleted_blobs == 0
    assert room.store.gc().deleted_blobs == 0
    room.clock.go(DAY_S)
    assert room.store.gc().deleted_blobs == 1


def test_at_once_gives_space_back(room: Room) -> None:
    source = room.put("stays", 1, length=256 * KIB)
    room.put("goes", 2, 3, length=1024 * KIB)
    before = room.disk_bytes
    room.store.rm("goes")
    done = room.store.gc(AT_ONCE)
    assert done.deleted_blobs == 2
    assert before - room.disk_bytes == done.freed_bytes >= 2 * 1024 * KIB
    room.check({"stays": source})
    room.check_keys()
    again = room.store.gc(AT_ONCE)
    assert (again.freed_bytes, again.deleted_blobs, again.segments) == (0, 0, 0)


def test_a_shorter_grace(room: Room) -> None:
    room.put("goes", 1)
    room.store.rm("goes")
    soon = Margins(2, 60)
    assert room.store.gc(soon).deleted_blobs == 0
    room.clock.go(59)
    assert room.store.gc(soon).deleted_blobs == 0
    room.clock.go(1)
    assert room.store.gc(soon).deleted_blobs == 1


def test_the_command(room: Room) -> None:
    room.put("goes", 1)
    assert cli("rm", "goes").code == 0
    dry = cli("gc", "--grace", "0s", "--dry-run", "--json")
    assert dry.json["dry_run"]
    done = cli("gc", "--grace", "0s", "--json")
    assert done.json["deleted_blobs"] == 1
    assert set(done.json) >= {"freed_bytes", "deleted_blobs", "kept_blobs", "segments_compacted", "seconds"}
    same = ("freed_bytes", "deleted_blobs", "kept_blobs", "condemned_blobs", "segments_compacted", "dropped")
    assert [dry.json[key] for key in same] == [done.json[key] for key in same]
    assert cli("gc", "--grace", "soon").code == 2
    assert cli("gc", "--max-bytes", "lots").code == 2


def test_a_clock_set_back_deletes_nothing_early(room: Room) -> None:
    room.put("goes", 1)
    room.store.rm("goes")
    room.store.gc()
    room.clock.go(-30 * DAY_S)
    for _ in range(2):
        assert room.store.gc().deleted_blobs == 0  # the stamp is of the future: it is set anew
        room.clock.go(DAY_S - 1)
    assert room.store.gc().deleted_blobs == 1


def test_a_put_rescues_what_was_condemned(room: Room) -> None:
    room.put("first", 1, 2)
    room.store.rm("first")
    room.store.gc()
    source = room.source(1)
    stored = room.store.put(source, name="second")
    assert (stored.blobs_new, stored.blobs_reused) == (0, 1)
    room.clock.go(DAY_S)
    assert room.store.gc().deleted_blobs == 1
    room.check({"second": source})
    # Its time starts anew once it is garbage again.
    room.store.rm("second")
    assert room.store.gc().deleted_blobs == 0
    assert room.store.gc().deleted_blobs == 0


def test_pinned_versions_stay(room: Room) -> None:
    kept = room.put("model", 1)
    room.store.pin("model")
    for seed in (2, 3):
        room.put("model", seed)
    done = room.store.gc(AT_ONCE, Retention(keep_last=0))
    assert done.dropped == ("model@3", "model@2")
    assert done.deleted_blobs == 2
    room.check({"model@1": kept})
    room.check_keys()


# ---- what a dry run says


@pytest.mark.parametrize("margins", [CAREFUL, AT_ONCE], ids=["careful", "at once"])
@pytest.mark.parametrize(
    "retention", [Retention(), Retention(keep_last=1), Retention(max_bytes=40 * KIB)], ids=["all", "last", "bytes"]
)
@pytest.mark.parametrize("stamped", [False, True])
def test_a_dry_run_says_exactly_what_a_run_does(
    room: Room, margins: Margins, retention: Retention, stamped: bool
) -> None:
    for n in range(4):
        room.put("model", 0, n, n + 1, length=16 * KIB)
        room.put(f"other-{n}", 10 + n)
    room.store.rm("other-0")
    room.store.rm("model@1")
    if stamped:
        room.store.gc()
        room.clock.go(2 * DAY_S)
    room.store.rm("other-1")
    room.store.pin("model@2")
    before, rows = tree(room.path / "store"), dump(room.store)
    dry = room.store.gc(margins, retention, dry_run=True)
    assert tree(room.path / "store") == before
    assert dump(room.store) == rows
    real = room.store.gc(margins, retention)
    assert numbers(dry) == numbers(real)


def numbers(done: Collected) -> dict[str, object]:
    return {name: getattr(done, name) for name in Collected.__slots__ if name != "keys_destroyed"}


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but LMDB's, and the blocks it takes."""
    found = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "catalog")
    return {str(path): (path.read_bytes(), path.stat().st_blocks) for path in found}


def dump(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    names = ("blobs", "versions", "names", "segments", "counters", "loans", "doomed", "spare")
    with store._parts.tables.reading() as rows:
        return {name: list(rows.scan(name, b"")) for name in names}


# ---- killed puts

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


# ---- beside a put, at a chosen moment


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


# ---- beside a get


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


# ---- space


def test_an_empty_segment_is_removed(room: Room) -> None:
    room.put("model", 1)
    [segment] = (room.path / "store" / "segments").iterdir()
    room.store.rm("model")
    done = room.store.gc(AT_ONCE)
    assert done.segments == 1
    assert not segment.exists()
    assert room.store._parts.catalog.segments() == {}
    source = room.put("model", 1)
    assert segment.name not in [path.name for path in (room.path / "store" / "segments").iterdir()]
    room.check({"model": source})


def test_without_holes_space_comes_with_the_last_record(room: Room) -> None:
    store = room.open(disk=NoHoles())
    source = room.put("stays", 1, store=store)
    room.put("goes", 2, 3, store=store)
    store.rm("goes")
    before = room.disk_bytes
    done = store.gc(AT_ONCE)
    assert (done.deleted_blobs, done.freed_bytes, room.disk_bytes) == (2, 0, before)
    room.check({"stays": source}, store)
    room.check_keys()
    store.rm("stays")
    assert store.gc(AT_ONCE).freed_bytes == before
    assert room.disk_bytes == 0


# ---- several at once


def test_a_second_collection_is_refused_or_waits(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    with ThreadPoolExecutor(1) as pool:
        with room.store._parts.leases.hold(b"gc", "gc"):
            refused = cli("gc")
            assert refused.code == 11
            assert "--lock-wait" in refused.err
            with pytest.raises(Fenced):
                room.store.gc(dry_run=True)
            monkeypatch.setattr(leases_room, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))
            waiting = pool.submit(cli, "gc", "--lock-wait", "300s", "--json")
            assert waits.wait(PATIENCE_S)
            assert not waiting.done()
        assert waiting.result(PATIENCE_S).code == 0


def test_a_killed_collection_is_no_obstacle(room: Room) -> None:
    code = """
import os, signal
from arstore.store.access import open_store
with open_store() as store, store._parts.leases.hold(b"gc", "gc"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [one.state for one in room.store.leases()] == ["dead"]
    assert cli("gc").code == 0


def test_every_tenant_is_collected_and_none_is_mixed_up(room: Room) -> None:
    room.store.tenants.add("team")
    team = room.open("team")
    mine, theirs = room.put("model", 1, 2), room.put("model", 1, 3, store=team)
    room.put("old", 4)
    room.put("old", 4, 5, store=team)
    room.store.rm("old")
    team.rm("old")
    done = room.store.gc(AT_ONCE)
    assert done.deleted_blobs == 3
    room.check({"model": mine})
    room.check({"model": theirs}, team)
    room.check_keys()
    # Retention is for the tenant that asked.
    assert room.store.gc(AT_ONCE, Retention(keep_last=0)).dropped == ("model@1",)
    room.check({"model": theirs}, team)
    assert room.store.stats().stored_bytes == 0
    room.check_keys()


# ---- killed at every step


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


# ---- beside puts and gets, in real processes

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


# ---- at scale


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
