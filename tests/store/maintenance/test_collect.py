"""Collect: what is garbage waits for its grace, and one collection runs at a time."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from arstore.store.catalog import leases as leases_room
from arstore.store.errors import Fenced
from arstore.store.maintenance.collect import AT_ONCE, CAREFUL, Collected, Margins
from arstore.store.maintenance.retention import Retention
from arstore.store.store import Store
from tests.support.command import PATIENCE_S, cli
from tests.support.room import DAY_S, KIB, Room, room

__all__ = ["room"]  # fixtures


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
    done = room.store.gc(AT_ONCE, Retention(keep_last=0, drop_last=True))
    assert done.dropped == ("model@3", "model@2")
    assert done.deleted_blobs == 2
    room.check({"model@1": kept})
    room.check_keys()


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
    return {name: getattr(done, name) for name in Collected.__slots__}


def tree(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but LMDB's, and the blocks it takes."""
    found = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "catalog")
    return {str(path): (path.read_bytes(), path.stat().st_blocks) for path in found}


def dump(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    names = ("blobs", "versions", "names", "segments", "counters", "loans", "doomed", "spare")
    with store._parts.tables.reading() as rows:
        return {name: list(rows.scan(name, b"")) for name in names}


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
    assert room.store.gc(AT_ONCE, Retention(keep_last=0, drop_last=True)).dropped == ("model@1",)
    room.check({"model": theirs}, team)
    assert room.store.stats().stored_bytes == 0
    room.check_keys()
