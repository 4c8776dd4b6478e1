"""Accounts: live bytes of segments, usage of tenants and counters, kept inside the transactions that change them."""

import struct
from collections.abc import Mapping
from dataclasses import replace

from ..formats.catalog import SegmentRow, parse_segment
from .errors import Corrupt
from .tables import Rows

ERASE_PENDING = b"erase-pending"
_U64 = struct.Struct("<Q")


def extend(rows: Rows, durable: Mapping[int, int]) -> None:
    """Note that segments are durable up to the given lengths."""
    for segment, length in durable.items():
        row = _segment(rows, segment)
        if length > row.durable_bytes:
            rows.put("segments", segment_key(segment), replace(row, durable_bytes=length).packed())


def account(rows: Rows, tenant: bytes, changed: Mapping[int, int]) -> None:
    """Change the live bytes of segments, and a tenant's usage, by what records took or gave back."""
    for segment, change_bytes in changed.items():
        row = _segment(rows, segment)
        live = replace(row, live_bytes=max(row.live_bytes + change_bytes, 0))
        rows.put("segments", segment_key(segment), live.packed())
    usage = count(rows, b"usage" + tenant) + sum(changed.values())
    rows.put("counters", b"usage" + tenant, _U64.pack(max(usage, 0)))


def write_segments(rows: Rows, segments: Mapping[int, SegmentRow], last: int) -> None:
    """Write the rows of segments into an empty catalog, and see that no id up to `last` is given again."""
    for segment, row in segments.items():
        rows.put("segments", segment_key(segment), row.packed())
    rows.put("counters", b"next-segment", _U64.pack(last))


def count(rows: Rows, key: bytes) -> int:
    """Return a counter, 0 if it was never set."""
    value = rows.get("counters", key)
    return int(_U64.unpack(value)[0]) if value is not None else 0


def _segment(rows: Rows, segment: int) -> SegmentRow:
    value = rows.get("segments", segment_key(segment))
    if value is None:
        raise Corrupt(f"catalog: segment {segment}", "is not in the catalog")
    return parse_segment(value)


def segment_key(segment: int) -> bytes:
    return segment.to_bytes(8, "big")
