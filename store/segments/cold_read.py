"""Cold read: ranges of files that the page cache does not hold, read past it.

A map is the fastest way to cached bytes. It is slow for others, because it fetches them page by page and makes room in
the cache for them. So the kernel is asked whether a range is cached. A wrong answer costs time only. So does none:
Linux before 6.5 and some file systems can't answer.
"""

import ctypes
import os
from contextlib import AbstractContextManager
from pathlib import Path

from ...formats.record import ALIGN_BYTES, padded
from ..disk import disk_errors
from ..errors import Corrupt
from ..libc import libc

_CACHESTAT = 451  # the number of this system call on every architecture
_SAMPLE_BYTES = 256 << 10


def read_cold(
    path: Path, offset: int, length: int, scratch: memoryview, turn: AbstractContextManager[object]
) -> memoryview | None:
    """Return a range of a file, read into `scratch` under `turn`; None if it is cached or can't be read this way.

    `scratch` starts at a page and is at least `scratch_bytes` long. Raises Corrupt if the file ends before the range,
    StorageFailed if the disk fails.
    """
    first, stop = offset // ALIGN_BYTES * ALIGN_BYTES, padded(offset + length)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:  # the file system has no O_DIRECT, or the file is gone, and the map still has its bytes
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
    """Return how many bytes a range takes when it is read in whole blocks."""
    return padded(offset + length) - offset // ALIGN_BYTES * ALIGN_BYTES


def _read(fd: int, out: memoryview, offset: int) -> int:
    """Fill `out` from the file, as far as it reaches; return the bytes read."""
    got = 0
    while got < len(out) and got % ALIGN_BYTES == 0:  # a read that ends within a block has reached the end of the file
        if not (more := os.preadv(fd, [out[got:]], offset + got)):
            break
        got += more
    return got


def _is_cached(fd: int, first: int, stop: int) -> bool:
    """Say whether the page cache holds half or more of the middle of a range. True if the kernel can't tell.

    Only the middle is asked about, because counting the pages of 8 MiB takes longer than an exact answer would save.
    """
    start = max(first, (first + stop - _SAMPLE_BYTES) // 2)
    wanted = (ctypes.c_uint64 * 2)(start, min(stop - start, _SAMPLE_BYTES))
    counts = (ctypes.c_uint64 * 5)()  # pages cached, dirty, in writeback, evicted, evicted of late
    if libc().syscall(_CACHESTAT, fd, ctypes.byref(wanted), ctypes.byref(counts), 0):
        return True
    return counts[0] * 2 * os.sysconf("SC_PAGE_SIZE") >= wanted[1]
