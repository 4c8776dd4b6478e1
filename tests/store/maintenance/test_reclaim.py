"""Reclaim: space that no record stands on goes back to the file system."""

from arstore.store.disk import Disk
from arstore.store.maintenance.collect import AT_ONCE
from tests.support.room import Room, room

__all__ = ["room"]  # fixtures


class NoHoles(Disk):
    """A file system that can't punch holes."""

    def punch(self, fd: int, offset: int, length: int) -> bool:
        return False


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
