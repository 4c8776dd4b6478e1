"""Usage: live bytes of segments, usage of tenants, and counters, kept in the transactions that change them."""

from collections.abc import Mapping
from dataclasses import replace

from ...formats.catalog import SegmentRow, pack_count, parse_count, parse_segment
from ...formats.row_keys import NEXT_SEGMENT, leftovers_key, quarantines_key, segment_key, usage_key
from ..errors import Corrupt
from .tables import Rows, Tables


def extend_segments(rows: Rows, durable: Mapping[int, int]) -> None:
    """Note that segments are durable up to the given lengths."""
    for segment, length in durable.items():
        row = _segment(rows, segment)
        if length > row.durable_bytes:
            rows.put("segments", segment_key(segment), replace(row, durable_bytes=length).packed())


def account(rows: Rows, tenant: int, changed_bytes: Mapping[int, int]) -> None:
    """Change the live bytes of segments, and a tenant's usage, by the bytes that records took or gave back."""
    for segment, change_bytes in changed_bytes.items():
        if not change_bytes:  # blobs that are missing take no bytes and have no segment row
            continue
        row = _segment(rows, segment)
        live = replace(row, live_bytes=max(row.live_bytes + change_bytes, 0))
        rows.put("segments", segment_key(segment), live.packed())
    usage = count(rows, usage_key(tenant)) + sum(changed_bytes.values())
    write_usage(rows, tenant, max(usage, 0))


def write_segments(rows: Rows, segments: Mapping[int, SegmentRow], last: int) -> None:
    """Write the rows of segments into an empty catalog. No id up to `last` will be given again."""
    for segment, row in segments.items():
        rows.put("segments", segment_key(segment), row.packed())
    rows.put("counters", NEXT_SEGMENT, pack_count(last))


def write_usage(rows: Rows, tenant: int, used_bytes: int) -> None:
    """Set the bytes that a tenant's records take."""
    rows.put("counters", usage_key(tenant), pack_count(used_bytes))


def mark(rows: Rows, key: bytes) -> None:
    """Add one to a counter."""
    rows.put("counters", key, pack_count(count(rows, key) + 1))


def count(rows: Rows, key: bytes) -> int:
    """Return a counter, 0 if it was never set."""
    value = rows.get("counters", key)
    return parse_count(value) if value is not None else 0


def count_quarantines(rows: Rows, tenant: int) -> int:
    """Return how often blobs of a tenant were found bad. At 0 no blob is in quarantine."""
    return count(rows, quarantines_key(tenant))


class Marks:
    """Counts of what ended processes left to be cleared away. Every method is one transaction."""

    def __init__(self, tables: Tables, tenant: int) -> None:
        self._tables, self._leftovers = tables, leftovers_key(tenant)

    def leftovers(self) -> int:
        """Return how often blobs left by an ended put were taken in since the last clearing."""
        with self._tables.reading() as rows:
            return count(rows, self._leftovers)

    def leftovers_cleared(self, seen: int) -> None:
        """Set the count of leftovers to 0. Nothing happens if it is no longer `seen`: there are new ones."""

        def change(rows: Rows) -> None:
            if count(rows, self._leftovers) == seen:
                rows.delete("counters", self._leftovers)

        self._tables.write(change)


def _segment(rows: Rows, segment: int) -> SegmentRow:
    value = rows.get("segments", segment_key(segment))
    if value is None:
        raise Corrupt(f"catalog: segment {segment}", "is not in the catalog")
    return parse_segment(value)
