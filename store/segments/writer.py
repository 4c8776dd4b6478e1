"""Writer: appends records to segment files. Each segment has one writer at a time.

Invariant: bytes [0, durable_bytes) of a segment survived a sync; the catalog has `durable_bytes`. The bytes past them
are the tail of a writer. If its lock is held, the writer still works. If the lock is free, the writer was killed, and
`recover` takes in what is whole.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from ...formats.record import ALIGN_BYTES, SegmentHeader, padded
from ..catalog.catalog import Catalog
from ..disk import Disk, make_buffer
from ..errors import StorageFailed
from ..locks import try_lock
from .reader import segment_path

SEGMENT_MAX_BYTES = 1 << 30
LIFETIMES = {"weights": 1, "kv": 2, "intermediate": 3, "file": 4}
# Two frames of at most 4 MiB, and the rest that alignment leaves over, make one write.
WRITE_BUFFER_BYTES = (8 << 20) + (64 << 10)


@dataclass(slots=True)
class _Owned:
    """A segment that this process writes to. The next reservation begins at `end`."""

    fd: int
    end: int


class SegmentWriter:
    """The only writer of the segments that it holds. Threads make reservations and fill them at the same time."""

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
            # A sync that failed once may report success when it is tried again, though bytes were lost.
            self._failed = True
            for owned in self._owned.values():
                self._disk.sync(owned.fd)
            self._failed = False
            return {segment: owned.end for segment, owned in self._owned.items()}

    def close(self) -> None:
        """Close the segments. Bytes that no commit has recorded are cut off."""
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
                    # Readers refuse a segment with a bad header, so nothing may be appended to it.
                    if file.read(ALIGN_BYTES) != SegmentHeader(self._store_id, segment, self._lifetime).packed():
                        continue
                fd = self._disk.open(path, direct=True)
            except (FileNotFoundError, StorageFailed):
                if path.exists():
                    raise
                continue  # a collection removed it
            # The last writer may have committed since, so the row is read again under the lock.
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
            os.close(fd)  # a collection removed the new row, because nobody held its lock yet
        page = make_buffer(ALIGN_BYTES)
        page[:] = SegmentHeader(self._store_id, segment, self._lifetime).packed()
        self._disk.write_at(fd, memoryview(page), 0)
        self._disk.sync_dir(self._directory)
        owned = self._owned[segment] = _Owned(fd, ALIGN_BYTES)
        return segment, owned

    def _is_mine(self, segment: int, fd: int) -> bool:
        """Take the lock of a segment. Return False if somebody has it, or has removed the segment."""
        if not try_lock(fd) or segment not in self._catalog.segments():
            return False
        try:
            return os.path.samestat(os.fstat(fd), os.stat(segment_path(self._directory, segment)))
        except FileNotFoundError:
            return False


class Reservation:
    """Reserved bytes of a segment, filled from front to back through a page-aligned buffer."""

    def __init__(self, segment: int, fd: int, offset: int, length: int, disk: Disk) -> None:
        self.segment, self._fd, self._disk = segment, fd, disk
        self._end = offset + length
        self._flushed = offset
        self._buffer: memoryview | None = None
        self._filled = 0

    @property
    def position(self) -> int:
        """Where in the segment the next byte goes."""
        return self._flushed + self._filled

    def use(self, buffer: memoryview) -> "Reservation":
        """Write through `buffer` (page-aligned, `WRITE_BUFFER_BYTES` long), which no other thread may use meanwhile."""
        self._buffer = buffer
        return self

    def window(self, length: int) -> memoryview:
        """Return the next `length` bytes of the buffer, for the caller to fill. They count as written."""
        assert self._buffer is not None
        if self._filled + length > len(self._buffer):
            self._flush()
        start, self._filled = self._filled, self._filled + length
        return self._buffer[start : self._filled]

    def pad(self) -> None:
        """Fill with zeros up to the next multiple of 4,096."""
        short = padded(self.position) - self.position
        self.window(short)[:] = bytes(short)

    def finish(self) -> None:
        """Write what the buffer still holds. The whole reservation must have been filled."""
        self._flush()
        assert self.position == self._end, "a reservation was filled to another length than it was made for"

    def _flush(self) -> None:
        assert self._buffer is not None
        whole = self._filled // ALIGN_BYTES * ALIGN_BYTES
        self._disk.write_at(self._fd, self._buffer[:whole], self._flushed)
        rest = self._filled - whole
        self._buffer[:rest] = bytes(self._buffer[whole : self._filled])
        self._flushed, self._filled = self._flushed + whole, rest
