"""Extents: verified tensors as one file on a memory file system, mapped by whoever reads them.

An extent is published whole and never changed after. Whoever uses it holds its shared lock, which the kernel drops with
the process. Removing one takes the lock alone, unlinks it, and overwrites what is still open. Its time stamp is when it
may be removed without being asked.

    0     8     "ARHOST1" and a zero
    8     8     length of the table, u64 LE
    16    32    BLAKE3 of the table
    48    ..    table: JSON {"key", "name", "bytes", "tensors": [[name, dtype, shape, start, length, stride?], …]}
    ...         zeros to the next 4,096, then the data
Valid iff magic and hash are right, key is what the file is named, every tensor lies inside the data, and the file ends
with it. The data itself was verified when it came; whoever may write here is trusted with it.
"""

import contextlib
import json
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from ...formats.tensor import TensorSpan
from ..disk import Disk, disk_errors, try_lock, wait_lock
from ..errors import Corrupt, NotFound, StorageFailed

_PAGE_BYTES = 4096
_MAGIC = b"ARHOST1\0"
_HEAD_BYTES = 48
_TABLE_MAX_BYTES = 1 << 30
_WIPE_BYTES = 1 << 20  # stays in a core's cache


@dataclass(frozen=True, slots=True)
class Extent:
    """A mapped extent. Writes go to private copies of pages; others never see them."""

    name: str
    spans: tuple[TensorSpan, ...]
    view: memoryview  # of the data


def pack_head(key: str, name: str, spans: Sequence[TensorSpan], length: int) -> bytes:
    """Return what stands before the data of an extent, up to the page that the data begins on."""
    tensors = [_packed(span) for span in spans]
    table = json.dumps({"key": key, "name": name, "bytes": length, "tensors": tensors}).encode()
    head = _MAGIC + len(table).to_bytes(8, "little") + blake3(table).digest() + table
    return head.ljust(_data_start(len(table)), b"\0")


def remove_extent(path: Path, disk: Disk, *, wait: bool = False, over: bool = False) -> bool:
    """Wipe an extent and give its memory back; with `over` only if its time is. Return False if it stays.

    It stays while somebody uses it, which `wait` waits for.
    """
    try:
        fd = disk.open(path)
    except StorageFailed:
        if path.exists():
            raise
        return True
    try:
        if wait:
            wait_lock(fd)
        elif not try_lock(fd):
            return False
        found = os.fstat(fd)
        if over and found.st_mtime > time.time():
            return False
        if found.st_nlink:  # else it is gone, and what has its name by now is another's
            wipe(fd, path, disk)
        return True
    finally:
        os.close(fd)


def wipe(fd: int, path: Path, disk: Disk) -> None:
    """Unlink an extent that nobody else can use, and overwrite it."""
    disk.remove(path)  # first: nobody finds it any more; the open file keeps its pages until they are overwritten
    length, zeros = os.fstat(fd).st_size, memoryview(bytes(_WIPE_BYTES))
    for at in range(0, length, _WIPE_BYTES):  # not mapped: a fault for each page takes four times as long
        disk.write_at(fd, zeros[: length - at], at)


def attach_extent(path: Path, key: str) -> Extent:
    """Map an extent, uncopied, held in place until its last tensor is gone.

    Raises NotFound if it is gone, Corrupt if it is not the extent of this key.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(path.name[:16], "is not staged (any more)", hint="stage it with 'arstore prefetch'") from None
    except OSError as error:
        raise StorageFailed(str(path), (error.strerror or str(error)).lower()) from None
    try:
        with disk_errors(path):
            wait_lock(fd, shared=True)  # only for as long as somebody looks whether it may go, or wipes it
            found = os.fstat(fd)
            if not found.st_nlink:
                raise NotFound(path.name[:16], "was removed just now")
            if found.st_size < _PAGE_BYTES:
                raise Corrupt(str(path), "is no extent")
            # Copy on write, so that tensors are writable; the map keeps the file open, and so its lock.
            memory = mmap.mmap(fd, found.st_size, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    return _parse(path, key, memoryview(memory))


def _parse(path: Path, key: str, view: memoryview) -> Extent:
    table, start = _read_table(path, view)
    try:
        spans = tuple(_parse_span(*row) for row in table["tensors"])
        data = view[start:]
        fits = all(0 <= span.start <= span.start + span.length <= len(data) for span in spans)
        if table["key"] != key or len(data) != table["bytes"] or not fits:
            raise ValueError("it is another's, or not whole")
        return Extent(str(table["name"]), spans, data)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(str(path), f"is no extent ({error})") from None


def _read_table(path: Path, head: "memoryview | bytes") -> tuple[dict[str, Any], int]:
    length = int.from_bytes(head[8:16], "little")
    packed = bytes(head[_HEAD_BYTES : _HEAD_BYTES + min(length, _TABLE_MAX_BYTES)])
    if head[:8] != _MAGIC or len(packed) != length or head[16:48] != blake3(packed).digest():
        raise Corrupt(str(path), "is no extent")
    try:
        return dict(json.loads(packed)), _data_start(length)
    except (ValueError, TypeError, RecursionError):
        raise Corrupt(str(path), "is no extent") from None


def read_name(path: Path) -> tuple[str, int]:
    """Return the name and the bytes of an extent; of what is none the beginning of its file's name and its length."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        head += file.read(min(int.from_bytes(head[8:16], "little"), _TABLE_MAX_BYTES))
        with contextlib.suppress(Corrupt, KeyError, TypeError, ValueError):
            table, _ = _read_table(path, head)
            return str(table["name"]), int(table["bytes"])
        return path.name[:16], os.fstat(file.fileno()).st_size


def _data_start(table_bytes: int) -> int:
    return -(-(_HEAD_BYTES + table_bytes) // _PAGE_BYTES) * _PAGE_BYTES


def _packed(span: TensorSpan) -> list[Any]:
    packed = [span.name, span.dtype, list(span.shape), span.start, span.length]
    return packed if span.stride is None else [*packed, list(span.stride)]


def _parse_span(
    name: str, dtype: str, shape: list[int], start: int, length: int, stride: list[int] | None = None
) -> TensorSpan:
    return TensorSpan(name, dtype, tuple(shape), start, length, tuple(stride) if stride is not None else None)
