"""Filling: one process at a time stages a key, under a lock that the kernel frees when the process is killed.

An erase that finds a key being staged marks it in the lock file. The stager then drops what it staged.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ..disk import Disk
from ..errors import Fenced, NotFound, StorageFailed
from ..locks import try_lock, wait_lock
from .extent import KEY, drop_extent, extent_path, remove_extent


def partial_path(directory: Path, key: str) -> Path:
    """Return where the extent of a key lies while it is filled."""
    assert KEY.fullmatch(key)
    return directory / f".{key}.partial"


@contextlib.contextmanager
def filling(directory: Path, key: str, disk: Disk, *, wait: bool) -> Iterator[None]:
    """Keep other processes from staging this key while the body runs; raise Fenced if one does, unless `wait`.

    Raises NotFound after the body if the key was erased meanwhile. Its extent is then gone.
    """
    path = directory / f".{key}.lock"
    fd = take_lock(path, disk, wait=wait)
    try:
        try:
            yield
        finally:
            disk.remove(path)
            fcntl.flock(fd, fcntl.LOCK_UN)  # an erase that marks the file after this sees that, and drops by itself
        if os.fstat(fd).st_size:
            drop_extent(extent_path(directory, key), disk)
            raise NotFound(key[:16], "was erased while it was staged")
    finally:
        os.close(fd)


def mark_erased(directory: Path, key: str, disk: Disk) -> bool:
    """Tell the stager of a key that the key is erased; return False if no stager is at work any more."""
    try:
        fd = disk.open(directory / f".{key}.lock")
    except StorageFailed:
        return False
    try:
        disk.write_at(fd, b"\1", 0)
        return not try_lock(fd)
    finally:
        os.close(fd)


def take_lock(path: Path, disk: Disk, *, wait: bool = True) -> int:
    """Return a descriptor that holds a lock file, made if it is not there.

    Raises Fenced if another process holds it, unless `wait`.
    """
    while True:
        fd = disk.open(path, create=True)
        try:
            if wait:
                wait_lock(fd)
            elif not try_lock(fd):
                raise Fenced(path.stem[1:17], "another process is staging it", hint="wait for it with --wait")
            if os.fstat(fd).st_nlink:  # if 0, its last holder has removed this file: others lock a new one
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def remove_partial(directory: Path, key: str, disk: Disk) -> None:
    """Wipe what a killed stager left of an extent, unless another process fills it now."""
    path = partial_path(directory, key)
    if path.exists():
        with contextlib.suppress(Fenced), filling(directory, key, disk, wait=False):
            remove_extent(path, disk)
