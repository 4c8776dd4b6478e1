"""Accounts: live bytes of segments, usage of tenants, counters and marks, kept in the transactions that change them."""

import struct
from collections.abc import Mapping
from dataclasses import replace

from ...formats.catalog import SegmentRow, parse_segment
from ..errors import Corrupt
from .tables import Rows, Tables

# With a tenant: blobs were taken in that a put left behind; blobs were found bad.
LEFTOVERS, QUARANTINES = b"leftovers", b"quarantines"
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
        if not change_bytes:  # of blobs that are missing, in no segment
            continue
        row = _segment(rows, segment)
        live = replace(row, live_bytes=max(row.live_bytes + change_bytes, 0))
        rows.put("segments", segment_key(segment), live.packed())
    usage = count(rows, b"usage" + tenant) + sum(changed.values())
    write_usage(rows, tenant, max(usage, 0))


def write_segments(rows: Rows, segments: Mapping[int, SegmentRow], last: int) -> None:
    """Write the rows of segments into an empty catalog, and see that no id up to `last` is given again."""
    for segment, row in segments.items():
        rows.put("segments", segment_key(segment), row.packed())
    rows.put("counters", b"next-segment", _U64.pack(last))


def write_usage(rows: Rows, tenant: bytes, used_bytes: int) -> None:
    """Say how many bytes a tenant's records take."""
    rows.put("counters", b"usage" + tenant, _U64.pack(used_bytes))


def mark(rows: Rows, key: bytes) -> None:
    """Count that something happened."""
    rows.put("counters", key, _U64.pack(count(rows, key) + 1))


class Marks:
    """What ended processes left to be cleared away. A method is a transaction."""

    def __init__(self, tables: Tables, tenant: bytes) -> None:
        self._tables, self._leftovers = tables, LEFTOVERS + tenant

    def leftovers(self) -> int:
        """Return how often blobs that a put left behind were taken in since the last clearing."""
        with self._tables.reading() as rows:
            return count(rows, self._leftovers)

    def leftovers_cleared(self, seen: int) -> None:
        """Note that leftovers were cleared away, unless there were more since `seen` of them."""

        def change(rows: Rows) -> None:
            if count(rows, self._leftovers) == seen:
                rows.delete("counters", self._leftovers)

        self._tables.write(change)


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
