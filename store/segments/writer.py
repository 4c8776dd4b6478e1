"""Segments: append-only files of records, one writer each, read through maps.

Invariant: bytes [0, durable_bytes) of a segment, as the catalog has them, survived a sync. What lies past them is
the tail of a writer that is still at work (its lock is held) or was killed (it is free: see recover.py).
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from ...formats.record import ALIGN_BYTES, SegmentHeader, padded
from ..catalog.catalog import Catalog
from ..disk import Disk, make_buffer, try_lock
from ..errors import StorageFailed
from .reader import segment_path

SEGMENT_MAX_BYTES = 1 << 30
LIFETIMES = {"weights": 1, "kv": 2, "intermediate": 3, "file": 4}
# A frame is at most 4 MiB here; two of them, and what the alignment leaves over, make one write.
STAGING_BYTES = (8 << 20) + (64 << 10)


@dataclass(slots=True)
class _Owned:
    """A segment this process writes to: end is where the next reservation begins."""

    fd: int
    end: int


class SegmentWriter:
    """The one writer of the segments it holds. Threads reserve reservations and write them at the same time."""

    def __init__(self, directory: Path, store_id: bytes, lifetime: int, catalog: Catalog, disk: Disk) -> None:
        self._directory, self._store_id, self._lifetime = directory, store_id, lifetime
        self._catalog, self._disk = catalog, disk
        self._owned: dict[int, _Owned] = {}
        self._failed = False
        self._guard = threading.Lock()

    def reserve(self, length: int) -> "Reservation":
        """Reserve `length` bytes (a multiple of 4,096) of a segment that this writer owns."""
        with self._guard:
            segment, owned = self._roomy(length)
            offset, owned.end = owned.end, owned.end + length
        return Reservation(segment, owned.fd, offset, length, self._disk)

    def sync(self) -> dict[int, int]:
        """Make every finished reservation durable; return the durable length of each segment written."""
        with self._guard:
            if self._failed:
                raise StorageFailed("sync", "failed before; what was written since is not trusted")
            self._failed = True  # until every sync has succeeded: a second try would report a success that is none
            for owned in self._owned.values():
                self._disk.sync(owned.fd)
            self._failed = False
            return {segment: owned.end for segment, owned in self._owned.items()}

    def close(self) -> None:
        """Let the segments go, cutting what no commit stands on."""
        try:
            durable = self._catalog.segments()
            for segment, owned in self._owned.items():
                if owned.end > (length := max(durable[segment].durable_bytes, ALIGN_BYTES)):
                    self._disk.truncate(owned.fd, length)
        finally:
            for owned in self._owned.values():
                os.close(owned.fd)
            self._owned.clear()

    def _roomy(self, length: int) -> tuple[int, _Owned]:
        for segment, owned in self._owned.items():
            if owned.end + length <= SEGMENT_MAX_BYTES:
                return segment, owned
        return self._claim(length) or self._create()

    def _claim(self, length: int) -> tuple[int, _Owned] | None:
        """Take over a segment with room that nobody writes to and that has no tail to recover."""
        for segment, row in self._catalog.segments().items():
            if row.lifetime != self._lifetime or segment in self._owned:
                continue
            if not ALIGN_BYTES <= row.durable_bytes <= SEGMENT_MAX_BYTES - length:
                continue
            path = segment_path(self._directory, segment)
            try:
                with path.open("rb") as file:
                    # What is appended to a segment that readers refuse could never be read.
                    if file.read(ALIGN_BYTES) != SegmentHeader(self._store_id, segment, self._lifetime).packed():
                        continue
                fd = self._disk.open(path, direct=True)
            except (FileNotFoundError, StorageFailed):
                if path.exists():
                    raise
                continue  # a collection removed it
            # The row is read again under the lock: its last writer may have committed since.
            size = os.fstat(fd).st_size
            if self._is_mine(segment, fd) and size == self._catalog.segments()[segment].durable_bytes:
                owned = self._owned[segment] = _Owned(fd, size)
                return segment, owned
            os.close(fd)
        return None

    def _create(self) -> tuple[int, _Owned]:
        while True:
            segment = self._catalog.new_segment(self._lifetime)
            path = segment_path(self._directory, segment)
            fd = self._disk.open(path, create=True, direct=True)
            if self._is_mine(segment, fd):
                if os.fstat(fd).st_size:
                    os.close(fd)
                    raise StorageFailed(str(path), "is there, though its number was never given")
                break
            os.close(fd)  # a collection took the new row for one that was left over
        page = make_buffer(ALIGN_BYTES)
        page[:] = SegmentHeader(self._store_id, segment, self._lifetime).packed()
        self._disk.write_at(fd, memoryview(page), 0)
        self._disk.sync_dir(self._directory)
        owned = self._owned[segment] = _Owned(fd, ALIGN_BYTES)
        return segment, owned

    def _is_mine(self, segment: int, fd: int) -> bool:
        """Take the lock of a segment; False if somebody has it, or had it and removed the segment."""
        if not try_lock(fd) or segment not in self._catalog.segments():
            return False
        try:
            return os.path.samestat(os.fstat(fd), os.stat(segment_path(self._directory, segment)))
        except FileNotFoundError:
            return False


class Reservation:
    """A reserved run of a segment, filled from front to back through an aligned staging buffer."""

    def __init__(self, segment: int, fd: int, offset: int, length: int, disk: Disk) -> None:
        self.segment, self._fd, self._disk = segment, fd, disk
        self._end = offset + length
        self._flushed = offset
        self._staging: memoryview | None = None
        self._filled = 0

    @property
    def position(self) -> int:
        """Where in the segment the next byte goes."""
        return self._flushed + self._filled

    def use(self, staging: memoryview) -> "Reservation":
        """Write through `staging` (of `STAGING_BYTES`, page-aligned), which no other thread may use meanwhile."""
        self._staging = staging
        return self

    def window(self, length: int) -> memoryview:
        """Return the next `length` bytes to fill in; they count as written."""
        assert self._staging is not None
        if self._filled + length > len(self._staging):
            self._flush()
        start, self._filled = self._filled, self._filled + length
        return self._staging[start : self._filled]

    def pad(self) -> None:
        """Fill with zeros up to the next multiple of 4,096."""
        short = padded(self.position) - self.position
        self.window(short)[:] = bytes(short)

    def finish(self) -> None:
        """Write what is left; the whole reservation must have been filled."""
        self._flush()
        assert self.position == self._end, "an reservation was filled to another length than it was reserved for"

    def _flush(self) -> None:
        assert self._staging is not None
        whole = self._filled // ALIGN_BYTES * ALIGN_BYTES
        self._disk.write_at(self._fd, self._staging[:whole], self._flushed)
        rest = self._filled - whole
        self._staging[:rest] = bytes(self._staging[whole : self._filled])
        self._flushed, self._filled = self._flushed + whole, rest
