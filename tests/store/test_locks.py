"""Locks: one opening of a file keeps out another, and a lock ends with the opening that took it."""

import os
from pathlib import Path

import pytest

from arstore.store.errors import StorageFailed
from arstore.store.locks import is_byte_locked, locked, try_lock, try_lock_byte, unlock_byte


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR)


def test_one_alone_or_several_that_share(path: Path) -> None:
    first, second, third = (opened(path) for _ in range(3))
    assert try_lock(first)
    assert not try_lock(second)
    assert not try_lock(second, shared=True)
    os.close(first)
    assert try_lock(second, shared=True)
    assert try_lock(third, shared=True)
    assert not try_lock(third)
    os.close(second)
    assert try_lock(third)
    os.close(third)


def test_a_directory_is_locked_while_the_block_runs(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with locked(tmp_path):
        assert not try_lock(fd)
    assert try_lock(fd)
    os.close(fd)


def test_a_lock_of_what_is_not_there_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="missing: no such file or directory"), locked(tmp_path / "missing"):
        pass


def test_bytes_of_a_file_are_locked_one_by_one(path: Path) -> None:
    mine, other = opened(path), opened(path)
    assert try_lock_byte(mine, 3)
    assert [is_byte_locked(other, at) for at in (2, 3, 4)] == [False, True, False]
    assert not is_byte_locked(mine, 3)  # it asks for other openings
    assert not try_lock_byte(other, 3)
    unlock_byte(mine, 3)
    assert not is_byte_locked(other, 3)
    assert try_lock_byte(mine, 3)
    os.close(mine)
    assert not is_byte_locked(other, 3)
    os.close(other)


def test_a_byte_is_shared_or_held_alone(path: Path) -> None:
    first, second = opened(path), os.open(path, os.O_RDONLY)
    far = 1 << 62  # the file need not reach so far
    assert try_lock_byte(first, far, shared=True)
    assert try_lock_byte(second, far, shared=True)
    assert not try_lock_byte(first, far)
    unlock_byte(second, far)
    assert try_lock_byte(first, far)  # its own shared lock becomes one that it holds alone
    assert not try_lock_byte(second, far, shared=True)
    os.close(first)
    os.close(second)


def test_a_close_of_another_descriptor_drops_no_byte(path: Path) -> None:
    """Locks of the process, which LMDB would take, are dropped when a copy of the file reads and closes it."""
    mine, other = opened(path), opened(path)
    assert try_lock_byte(mine, 0)
    path.read_bytes()
    assert is_byte_locked(other, 0)
    os.close(mine)
    os.close(other)
