"""Extents: verified tensors as one file on a memory file system. In the host tier, readers map the file.

An extent is published whole and never changed after. A process that uses it holds its shared lock; the kernel frees the
lock with the process. To remove one, a process takes the exclusive lock, unlinks the file and overwrites its data. The
file's time stamp is when the extent expires: any process may remove it from then on.

    0     8     "ARHOST1" and a zero
    8     8     length of the table, u64 LE
    16    32    BLAKE3 of the table, keyed if the extent is sealed (sealed.py)
    48    ..    table: JSON {"key", "name", "bytes", "tensors": [[name, dtype, shape, start, length, stride?], …]}, and
                "sums" if it is sealed
    ...         zeros to the next 4,096, then the data
Valid iff magic and hash are right, the file is named after the key, every tensor lies inside the data, and the file
ends with the data. The data was verified when it came. Unless it is sealed, processes that may write here are trusted.
"""

import contextlib
import errno
import json
import mmap
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from ...formats.tensor import TensorSpan
from ..disk import Disk, Out, disk_errors, try_lock, wait_lock
from ..errors import Corrupt, NotFound, StorageFailed

_PAGE_BYTES = 4096
_MAGIC = b"ARHOST1\0"
_HEAD_BYTES = 48
_TABLE_MAX_BYTES = 1 << 30
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


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an extent: what stands before its data."""

    key: str
    name: str
    spans: tuple[TensorSpan, ...]
    length_bytes: int
    sums: tuple[str, ...] = ()  # only of a sealed extent, see sealed.py

    def packed(self, seal: bytes | None = None) -> bytes:
        """Return the bytes up to the page that the data begins on. Its table is hashed under `seal`, if given."""
        table_fields = {
            "key": self.key,
            "name": self.name,
            "bytes": self.length_bytes,
            "tensors": list(map(_packed, self.spans)),
        }
        table = json.dumps(table_fields | ({"sums": self.sums} if seal else {})).encode()
        head = _MAGIC + len(table).to_bytes(8, "little") + _digest(table, seal) + table
        return head.ljust(_data_start(len(table)), b"\0")


def extent_path(directory: Path, key: str) -> Path:
    """Return where the extent of a key lies in an arena's directory."""
    assert KEY.fullmatch(key)
    return directory / f"{key}.extent"


def forget_session(session: Path, disk: Disk) -> None:
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
    except StorageFailed:
        if path.exists():
            raise
        return True
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
    for start, stop in _data(fd):
        for at in range(start, stop, _WIPE_BYTES):  # written, not mapped: page faults take four times as long
            disk.write_at(fd, zeros[: stop - at], at)


def _data(fd: int) -> Iterator[tuple[int, int]]:
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
        if length < _PAGE_BYTES:
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
        raise StorageFailed(str(path), (error.strerror or str(error)).lower()) from None
    try:
        with disk_errors(path):
            wait_lock(fd, shared=True)  # a short wait: others hold it alone only to check its use or to wipe it
            if not os.fstat(fd).st_nlink:
                raise NotFound(path.name[:16], "was removed just now")
    except BaseException:
        os.close(fd)
        raise
    return fd


def parse_head(path: Path, head: "memoryview | bytes", file_bytes: int, seal: bytes | None = None) -> tuple[Head, int]:
    """Return the head of an extent and where its data starts. Raises Corrupt unless the file ends with the data."""
    length = int.from_bytes(head[8:16], "little")
    packed = bytes(head[_HEAD_BYTES : _HEAD_BYTES + min(length, _TABLE_MAX_BYTES)])
    if head[:8] != _MAGIC or len(packed) != length or head[16:48] != _digest(packed, seal):
        raise Corrupt(str(path), "is no extent" + (", or not of this tenant" if seal else ""))
    try:
        table = dict(json.loads(packed))
        spans = tuple(_parse_span(*row) for row in table["tensors"])
        data_bytes, start = table["bytes"], _data_start(length)
        if start + data_bytes != file_bytes or not all(0 <= s.start <= s.place.stop <= data_bytes for s in spans):
            raise ValueError("it is not whole")
        return Head(str(table["key"]), str(table["name"]), spans, data_bytes, tuple(table.get("sums", ()))), start
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Corrupt(str(path), f"is no extent ({error})") from None


def read_head(path: Path, file: BinaryIO, seal: bytes | None = None) -> tuple[Head, int]:
    """Return the head of an extent that is open for reading, and where its data starts."""
    head = file.read(_HEAD_BYTES)
    head += file.read(min(int.from_bytes(head[8:16], "little"), _TABLE_MAX_BYTES))
    return parse_head(path, head, os.fstat(file.fileno()).st_size, seal)


def read_name(path: Path, seal: bytes | None = None) -> tuple[str, int]:
    """Return the name and the length of an extent.

    If the file is none or can't be read, return the beginning of the file's name and the file's length.
    """
    with path.open("rb") as file:
        with contextlib.suppress(Corrupt, OSError):
            head, _ = read_head(path, file, seal)
            return head.name, head.length_bytes
        return path.name[:16], os.fstat(file.fileno()).st_size


def _digest(table: bytes, seal: bytes | None) -> bytes:
    return (blake3(table, key=seal) if seal else blake3(table)).digest()


def _data_start(table_bytes: int) -> int:
    return -(-(_HEAD_BYTES + table_bytes) // _PAGE_BYTES) * _PAGE_BYTES


def _packed(span: TensorSpan) -> list[Any]:
    packed = [span.name, span.dtype, list(span.shape), span.start, span.length]
    return packed if span.stride is None else [*packed, list(span.stride)]


def _parse_span(
    name: str, dtype: str, shape: list[int], start: int, length: int, stride: list[int] | None = None
) -> TensorSpan:
    return TensorSpan(name, dtype, tuple(shape), start, length, tuple(stride) if stride is not None else None)
