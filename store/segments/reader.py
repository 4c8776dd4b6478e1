"""Reader: segment files, read through maps, or past the page cache if they are not cached."""

import os
import threading
from mmap import MADV_WILLNEED, PROT_READ, mmap
from pathlib import Path

from ...formats.catalog import Place
from ...formats.errors import FormatError
from ...formats.record import ALIGN_BYTES, parse_segment_header
from ..disk import disk_errors
from ..errors import Corrupt


def segment_path(directory: Path, segment: int) -> Path:
    return directory / f"{segment:016x}.seg"


class SegmentReader:
    """Maps of segment files, shared by threads. A map is checked against the file's length before it is read."""

    def __init__(self, directory: Path, store_id: bytes) -> None:
        self._directory, self._store_id = directory, store_id
        self._maps: dict[int, mmap] = {}
        self._guard = threading.Lock()
        # Half of the threads may read at once, while the others decrypt: a disk is slower when more read.
        self._turn = threading.Semaphore(max(len(os.sched_getaffinity(0)) // 2, 1))

    def view(self, segment: int, offset: int, length: int) -> memoryview:
        """Return `length` bytes of a segment without copying; raise Corrupt if the file does not reach so far."""
        with self._guard:
            mapped = self._maps.get(segment)
            if mapped is None or offset + length > len(mapped):
                mapped = self._maps[segment] = self._map(segment, offset + length)
        return memoryview(mapped)[offset : offset + length]

    def reaches(self, place: Place) -> bool:
        """Say whether the segment of a record is there, is that segment, and is long enough to hold the record."""
        try:
            self.view(place.segment, place.offset, place.record_bytes)
        except Corrupt:
            return False
        return True

    def read_cold(self, segment: int, offset: int, length: int, scratch: memoryview) -> memoryview | None:
        """Return a range that was viewed before, read into `scratch`; None if it is cached, see `read_cold`."""
        from .cold_read import read_cold

        return read_cold(segment_path(self._directory, segment), offset, length, scratch, self._turn)

    def will_need(self, segment: int, offset: int, length: int) -> None:
        """Ask the kernel to start reading a range."""
        mapped = self._maps.get(segment)
        if mapped is not None and offset + length <= len(mapped):
            mapped.madvise(MADV_WILLNEED, offset // ALIGN_BYTES * ALIGN_BYTES, length)

    def close(self) -> None:
        self._maps.clear()

    def _map(self, segment: int, wanted: int) -> mmap:
        path = segment_path(self._directory, segment)
        try:
            with path.open("rb") as file, disk_errors(path):
                size = os.fstat(file.fileno()).st_size
                if size < wanted:
                    raise Corrupt(str(path), f"cut short: {size} bytes, wanted at least {wanted}")
                header = parse_segment_header(file.read(ALIGN_BYTES))
                if header.store_id != self._store_id or header.segment_id != segment:
                    raise Corrupt(str(path), f"holds segment {header.segment_id} of another place")
                return mmap(file.fileno(), size, prot=PROT_READ)
        except FileNotFoundError:
            raise Corrupt(str(path), "the segment file is missing") from None
        except FormatError as error:
            raise Corrupt(str(path), str(error)) from None
