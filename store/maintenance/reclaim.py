"""Reclaim: gives space that holds no live record back to the file system.

Dead ranges are punched out if the file system can do that. A segment without live records is always removed.
"""

import errno
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...formats.record import ALIGN_BYTES
from ..catalog.garbage import Garbage, Survey
from ..disk import Disk, disk_errors
from ..locks import try_lock
from ..segments.reader import segment_path


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """Bytes given back, and the segments that were punched or removed."""

    freed_bytes: int
    segments: int


def reclaim(directory: Path, survey: Survey, garbage: Garbage, disk: Disk, *, dry_run: bool) -> Reclaimed:
    """Give back the space on which the survey saw no record. With `dry_run` only say how much that is."""
    freed = done = 0
    for segment, row in survey.segments.items():
        path = segment_path(directory, segment)
        live = survey.live.get(segment, array("Q"))
        if not path.exists() and (dry_run or live):
            continue
        # If a row has no file, one is made: its lock tells whether a put is making the segment just now.
        fd = disk.open_as_allowed(path)[0] if dry_run else disk.open(path, create=not live)
        try:
            dead = [run for run in dead_ranges(live, row.durable_bytes) if _allocated(fd, *run)]
            size = sum(_allocated(fd, *run) for run in dead)
            if not live and try_lock(fd) and os.fstat(fd).st_size <= max(row.durable_bytes, ALIGN_BYTES):
                size = os.fstat(fd).st_blocks * 512
                if dry_run or garbage.is_empty(segment, row.durable_bytes):
                    freed, done = freed + size, done + bool(size)
                    if not dry_run:
                        # The row goes last. If this is killed, the next collection finds a row without a file.
                        disk.remove(path)
                        disk.sync_dir(directory)
                        garbage.drop_segment(segment, row.durable_bytes)
            elif dry_run or all(disk.punch(fd, start, stop - start) for start, stop in dead):
                freed, done = freed + size, done + bool(dead)
        finally:
            os.close(fd)
    return Reclaimed(freed, done)


def dead_ranges(live: "array[int]", durable_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges (start, stop) of a segment's durable part that no live record covers."""
    at = ALIGN_BYTES
    for start, length in sorted(zip(live[::2], live[1::2], strict=True)):
        if start > at:
            yield at, start
        at = max(at, start + length)
    if durable_bytes > at:
        yield at, durable_bytes


def _allocated(fd: int, start: int, stop: int) -> int:
    """Return how many bytes of a range the file system holds space for."""
    total, at = 0, start
    with disk_errors("segment"):
        while at < stop:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    break
                raise
            if data >= stop:
                break
            at = min(os.lseek(fd, data, os.SEEK_HOLE), stop)
            total += at - data
    return total
