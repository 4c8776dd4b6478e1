"""One process stages a key at a time: its lock is taken anew if it was swept, and word of an erase reaches it."""

import os
from pathlib import Path

import pytest

from arstore import NotFound
from arstore.store.disk import Disk
from arstore.store.locks import try_lock, wait_lock
from arstore.store.tiers import filling as filling_room
from arstore.store.tiers.filling import filling, mark_erased, take_lock
from tests.support.staging import KEY


def test_a_lock_that_is_swept_as_it_is_taken_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    swept: list[int] = []

    def swept_first(fd: int) -> None:
        if not swept:
            path.unlink()
        swept.append(fd)
        wait_lock(fd)

    monkeypatch.setattr(filling_room, "wait_lock", swept_first)
    fd = take_lock(path, Disk())
    assert len(swept) == 2
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


def test_word_of_an_erase_finds_a_stager_or_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stager looks for it when the lock is free already, so that none is left after it has looked."""
    disk, lock = Disk(), tmp_path / f".{KEY}.lock"
    assert not mark_erased(tmp_path, KEY, disk)
    lock.touch()
    assert not mark_erased(tmp_path, KEY, disk)  # whoever had it has gone
    lock.unlink()
    with pytest.raises(NotFound), filling(tmp_path, KEY, disk, wait=False):
        assert mark_erased(tmp_path, KEY, disk)
    free, real = list[bool](), os.fstat

    def fstat(fd: int) -> os.stat_result:
        free.append(try_lock(other))
        return real(fd)

    with monkeypatch.context() as patched, filling(tmp_path, KEY, disk, wait=False):
        other = os.open(lock, os.O_RDWR)
        patched.setattr(os, "fstat", fstat)
    os.close(other)
    assert free == [True]
