"""Extents: verified tensors as one file on a memory file system. In the host tier, readers map the file.

An extent is published whole and never changed after. A process that uses it holds its shared lock; the kernel frees the
lock with the process. To remove one, a process takes the exclusive lock, unlinks the file and overwrites its data. The
file's time stamp is when the extent expires: any process may remove it from then on. It begins with a head, see `head`.

The data was verified when it came. Unless the extent is sealed, processes that may write here are trusted.
"""

import errno
import mmap
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...formats.tensor import TensorSpan
from ..disk import Disk, Out, disk_errors
from ..errors import Corrupt, NotFound, StorageFailed, reason
from ..locks import try_lock, wait_lock
from .head import PAGE_BYTES, Head, parse_head

KEY = re.compile(r"[0-9a-f]{64}")
_WIPE_BYTES = 1 << 20  # fits into a core's cache


@dataclass(frozen=True, slots=True)
class Extent:
    """A mapped extent. Writes go to private copies of pages; others never see them."""

    name: str
    spans: tuple[TensorSpan, ...]
    view: memoryview  # of the data

    @property
    def length_bytes(self) -> int:
        return len(self.view)

    def read(self, at: int, out: Out) -> None:
        """Fill `out` with the bytes from `at` on."""
        out[:] = self.view[at : at + len(out)]


def extent_path(directory: Path, key: str) -> Path:
    """Return where the extent of a key lies in an arena's directory."""
    assert KEY.fullmatch(key)
    return directory / f"{key}.extent"


def remove_session(session: Path, disk: Disk) -> None:
    """Remove the files that a run wrote beside the extents for its command, half-written ones too."""
    for path in (session, *(session.with_suffix(end) for end in (".plan", ".socket", ".lock"))):
        disk.remove(path)
    for path in session.parent.glob(f".{session.stem}.*"):
        disk.remove(path)


def remove_extent(path: Path, disk: Disk, *, expired_only: bool = False) -> bool:
    """Wipe an extent and give its memory back; return True if it is gone.

    It stays if a process uses it or, with `expired_only`, if it has not expired.
    """
    try:
        fd = disk.open(path)
    except StorageFailed as error:
        # That the path exists now says nothing if it was missing: a stager may have published a new extent since.
        if isinstance(error.__cause__, FileNotFoundError) or not path.exists():
            return True
        raise
    try:
        if not try_lock(fd):
            return False
        status = os.fstat(fd)
        if expired_only and status.st_mtime > time.time():
            return False
        if status.st_nlink:  # if 0, it was removed before, and a file of that name is a newer extent
            wipe(fd, path, disk)
        return True
    finally:
        os.close(fd)


def wipe(fd: int, path: Path, disk: Disk) -> None:
    """Unlink an extent that nobody else can use, and overwrite it."""
    disk.remove(path)  # first, so that nobody finds it; the open file keeps its pages until they are overwritten
    zeros = memoryview(bytes(_WIPE_BYTES))
    for start, stop in _data_ranges(fd):
        for at in range(start, stop, _WIPE_BYTES):  # written, not mapped: page faults take four times as long
            disk.write_at(fd, zeros[: stop - at], at)


def _data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which a file has data. Writing to its holes would take room that may not be there."""
    stop = 0
    try:
        while True:
            start = os.lseek(fd, stop, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, stop
    except OSError as error:
        if error.errno != errno.ENXIO:  # ENXIO means no more data; after any other error, all of the rest is data
            yield stop, os.fstat(fd).st_size


def drop_extent(path: Path, disk: Disk) -> bool:
    """Wipe an extent; return whether that was possible.

    If a process uses it, only its name is removed, so that nobody finds it. Its memory goes with its last user.
    """
    if remove_extent(path, disk):
        return True
    disk.remove(path)
    return False


def attach_extent(path: Path, key: str, known: Head | None = None) -> Extent:
    """Map an extent without a copy; it is held in place until its last tensor is gone.

    `known` is its head, if this process has just written it. Raises NotFound if the extent is gone, Corrupt if it is
    not the extent of this key.
    """
    fd = open_held(path)
    try:
        length = os.fstat(fd).st_size
        if length < PAGE_BYTES:
            raise Corrupt(str(path), "is no extent")
        with disk_errors(path):
            # Copy on write makes tensors writable. The map keeps the file open, and so keeps the lock.
            view = memoryview(mmap.mmap(fd, length, access=mmap.ACCESS_COPY))
    finally:
        os.close(fd)
    head, start = (known, length - known.length_bytes) if known else parse_head(path, view, length)
    if head.key != key:
        raise Corrupt(str(path), "is the extent of another key")
    return Extent(head.name, head.spans, view[start:])


def open_held(path: Path) -> int:
    """Return a descriptor of an extent. While it is open the extent stays. Raises NotFound if it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(path.name[:16], "is not staged (any more)", hint="stage it with 'arstore prefetch'") from None
    except OSError as error:
        raise StorageFailed(str(path), reason(error)) from None
    try:
        with disk_errors(path):
            wait_lock(fd, shared=True)  # a short wait: others hold it alone only to check its use or to wipe it
            if not os.fstat(fd).st_nlink:
                raise NotFound(path.name[:16], "was removed just now")
    except BaseException:
        os.close(fd)
        raise
    return fd
