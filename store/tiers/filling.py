"""Filling: one process stages a key at a time, under a lock that a kill frees; an erase can leave word in it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ..disk import Disk, try_lock, wait_lock
from ..errors import Fenced, NotFound, StorageFailed
from .extent import KEY, drop_extent, extent_path, remove_extent


def partial_path(directory: Path, key: str) -> Path:
    """Return where the extent of a key is while it is filled."""
    assert KEY.fullmatch(key)
    return directory / f".{key}.partial"


@contextlib.contextmanager
def filling(directory: Path, key: str, disk: Disk, *, wait: bool) -> Iterator[None]:
    """Be the one process that stages this key while the body runs; raise Fenced if another is, unless `wait`.

    Raises NotFound in the end if it was erased meanwhile: then nobody finds it any more.
    """
    path = directory / f".{key}.lock"
    fd = take_lock(path, disk, wait=wait)
    try:
        try:
            yield
        finally:
            disk.remove(path)
            fcntl.flock(fd, fcntl.LOCK_UN)  # what an erase says after that it does itself
        if os.fstat(fd).st_size:
            drop_extent(extent_path(directory, key), disk)
            raise NotFound(key[:16], "was erased while it was staged")
    finally:
        os.close(fd)


def say_erased(directory: Path, key: str, disk: Disk) -> bool:
    """Tell the stager of a key that it is erased; return False if none is at work any more."""
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
    """Return a descriptor that holds a lock file, made if need be; raise Fenced if another has it, unless `wait`."""
    while True:
        fd = disk.open(path, create=True)
        try:
            if wait:
                wait_lock(fd)
            elif not try_lock(fd):
                raise Fenced(path.stem[1:17], "another process is staging it", hint="wait for it with --wait")
            if os.fstat(fd).st_nlink:  # else who had it before removed it
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def remove_partial(directory: Path, key: str, disk: Disk) -> None:
    """Wipe what a stager that was killed left of an extent, unless another fills it now."""
    path = partial_path(directory, key)
    if path.exists():
        with contextlib.suppress(Fenced), filling(directory, key, disk, wait=False):
            remove_extent(path, disk)
