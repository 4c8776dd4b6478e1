"""Direct: ranges of files that the page cache does not hold, read past it.

A map is the fastest way to bytes that are cached and a slow one to those that are not: it fetches them page by page
through a cache that has to be filled and made room in. The kernel is asked which of the two it is. A wrong answer, or
none (before Linux 6.5, on file systems that can't), costs time only.
"""

import ctypes
import os
from contextlib import AbstractContextManager
from pathlib import Path

from ...formats.record import ALIGN_BYTES, padded
from ..disk import disk_errors, libc
from ..errors import Corrupt

_CACHESTAT = 451  # its number on every machine
_SAMPLE_BYTES = 256 << 10


def read_cold(
    path: Path, offset: int, length: int, scratch: memoryview, turn: AbstractContextManager[object]
) -> memoryview | None:
    """Return a range of a file, read into `scratch` when it is its turn; None where it is cached, or can't be read so.

    `scratch` starts at a page and is at least `scratch_bytes` long. Raises Corrupt if the file ends before the range,
    StorageFailed if the disk fails.
    """
    first, stop = offset // ALIGN_BYTES * ALIGN_BYTES, padded(offset + length)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:  # of a file system that can't, or of a file that is gone: who mapped it has it still
        return None
    try:
        if _is_cached(fd, first, stop):
            return None
        with turn, disk_errors(path):
            got = _read(fd, scratch[: stop - first], first)
    finally:
        os.close(fd)
    if first + got < offset + length:
        raise Corrupt(str(path), f"cut short: {first + got} bytes, wanted at least {offset + length}")
    return scratch[offset - first : offset - first + length]


def scratch_bytes(offset: int, length: int) -> int:
    """Return how many bytes are read to have a range: whole blocks."""
    return padded(offset + length) - offset // ALIGN_BYTES * ALIGN_BYTES


def _read(fd: int, out: memoryview, offset: int) -> int:
    """Fill `out` from the file, as far as it reaches; return the bytes read."""
    got = 0
    while got < len(out) and got % ALIGN_BYTES == 0:  # else the file ends within a block
        if not (more := os.preadv(fd, [out[got:]], offset + got)):
            break
        got += more
    return got


def _is_cached(fd: int, first: int, stop: int) -> bool:
    """Say whether the page cache holds most of the middle of a range, or whether nobody can tell.

    The middle stands for all: counting 8 MiB of pages takes longer than is saved by knowing exactly.
    """
    start = max(first, (first + stop - _SAMPLE_BYTES) // 2)
    wanted = (ctypes.c_uint64 * 2)(start, min(stop - start, _SAMPLE_BYTES))
    counts = (ctypes.c_uint64 * 5)()  # pages cached, dirty, in writeback, evicted, evicted of late
    if libc().syscall(_CACHESTAT, fd, ctypes.byref(wanted), ctypes.byref(counts), 0):
        return True
    return counts[0] * 2 * os.sysconf("SC_PAGE_SIZE") >= wanted[1]
