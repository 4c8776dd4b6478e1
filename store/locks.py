"""Locks of files, and of single bytes of a file. The kernel drops them with the process that holds them.

A lock belongs to one opening of a file and binds only those who ask for it. It changes nothing on the disk.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from .disk import disk_errors
from .errors import StorageFailed, reason


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file, alone or `shared`, without waiting. Return False if another opening holds it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_lock(fd: int, *, shared: bool = False) -> None:
    """Wait for the lock of an open file and take it, alone or `shared`."""
    fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2), struct flock


def try_lock_byte(fd: int, offset: int, *, shared: bool = False) -> bool:
    """Lock one byte of a file, alone or `shared`, without waiting. Return False if another opening holds it.

    The kernel drops the lock when the last process with this opening is gone. These are open file description locks.
    They are seen across containers, where process ids are not, and two openings of one process are told apart. To lock
    alone, the file must be open for writing.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageFailed("lock", reason(error)) from error
    return True


def unlock_byte(fd: int, offset: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))
    except OSError as error:
        raise StorageFailed("lock", reason(error)) from error


def is_byte_locked(fd: int, offset: int) -> bool:
    """Say whether another opening of the file holds one byte of it."""
    with disk_errors("lock"):
        asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a file or directory that exists."""
    with disk_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        wait_lock(fd)
        yield
    finally:
        os.close(fd)
