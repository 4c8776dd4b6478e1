"""Scan: finds the whole records of a segment file without the catalog."""

import os
from collections.abc import Iterator, Mapping

from ...formats.catalog import place_of
from ...formats.errors import FormatError
from ...formats.record import ALIGN_BYTES, HEADER_BYTES, parse_header
from ..errors import Corrupt
from ..keys.tenant_keys import TenantKeys
from .reader import SegmentReader
from .records import OpenRecord


def whole_records(
    reader: SegmentReader, segment: int, fd: int, start: int, keys: Mapping[bytes, TenantKeys]
) -> Iterator[OpenRecord]:
    """Yield every record from `start` on that is whole from header to padding and whose tenant and key are known.

    Threads write their reservations side by side. So a hole or a torn record of a killed thread may lie before a
    whole record.
    """
    size, at = os.fstat(fd).st_size, start
    while (at := _next_written(fd, at, size)) + ALIGN_BYTES <= size:
        record = _whole(reader, segment, at, os.pread(fd, HEADER_BYTES, at), keys)
        if record:
            yield record
        at += record.header.record_bytes if record else ALIGN_BYTES


def _whole(
    reader: SegmentReader, segment: int, at: int, packed: bytes, keys: Mapping[bytes, TenantKeys]
) -> OpenRecord | None:
    try:
        header = parse_header(packed)
        owner = keys.get(header.binding.tenant)
        if owner is None:
            return None
        record = OpenRecord(reader, owner, place_of(segment, at, header), header.binding.kind)
        record.check(record.footer().digest)
    except (FormatError, Corrupt):
        return None
    return record


def _next_written(fd: int, at: int, size: int) -> int:
    """Return the next multiple of 4,096 from `at` that is not in a hole, or the end of the file."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA) // ALIGN_BYTES * ALIGN_BYTES
    except OSError:
        return size
