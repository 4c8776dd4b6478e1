"""Extents are removed by name only while they are the same file, over time, and in no use."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from arstore.store.disk import Disk
from arstore.store.errors import StorageFailed
from arstore.store.locks import try_lock
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.extent import attach_extent, remove_extent
from tests.support.fresh_memory import host, memory
from tests.support.staging import KEY, Meddling, extents, fill
from tests.support.tier_faults import given
from tests.support.tier_places import open_arena
from tests.support.tier_suite import A

__all__ = ["host", "memory"]  # fixtures


def test_remove_leaves_a_newer_extent_of_the_same_name(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    fill(plain, 1)
    kept: list[object] = []

    def again() -> None:
        assert plain.remove(KEY)
        kept.append(fill(plain, 2))

    Arena("host", host / "tenant", 1 << 20, Meddling("open", again)).remove(KEY)
    assert kept
    assert set(attach_extent(extents(host)[0], KEY).view) == {2}


def test_an_extent_that_got_more_time_meanwhile_is_not_removed(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    fill(plain, 1)
    more = Meddling("open", lambda: plain.hold(KEY, time.time() + 60))
    assert not remove_extent(extents(host)[0], more, expired_only=True)
    assert plain.find(KEY)


def test_attach_waits_while_another_looks_at_the_extent(host: Path) -> None:
    fill(Arena("host", host / "tenant", 1 << 20, Disk()), 1)
    [extent] = extents(host)
    with extent.open("rb") as file:
        assert try_lock(file.fileno())
        threading.Timer(0.3, file.close).start()
        assert set(attach_extent(extent, KEY).view) == {1}


def test_wiping_overwrites_all_where_holes_are_not_known(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, real = open_arena("host", memory), os.lseek

    def lseek(fd: int, at: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, at, how)

    arena.fill(A, given())
    with next(memory.rglob("*.extent")).open("rb") as file:
        monkeypatch.setattr(os, "lseek", lseek)
        assert arena.remove(A)
        assert not any(os.pread(file.fileno(), 1 << 20, 0))


class PublishesLate(Disk):
    """Has a stager publish an extent just after a path was found to be missing."""

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        try:
            return super().open(path, create=create, direct=direct, mode=mode)
        except StorageFailed:
            path.write_bytes(b"published since")
            raise


def test_removing_an_extent_that_is_published_just_then_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "new.extent"
    assert remove_extent(path, PublishesLate())
    assert path.read_bytes() == b"published since"


def test_removing_an_extent_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "directory.extent"
    path.mkdir()
    with pytest.raises(StorageFailed, match="is a directory"):
        remove_extent(path, Disk())
