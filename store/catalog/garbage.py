"""Garbage: one pass over the rows of all tenants, and the transactions that condemn and delete.

Invariant: a blob row is deleted only in a transaction that sees that nothing needs it. A put may be about to reuse the
blob meanwhile. If it commits first, the row is needed again and stays; if not, the put finds the blob gone and stores
it once more.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace
from functools import partial

from ...formats.catalog import BlobRow, Place, SegmentRow, pack_count, parse_blob, parse_segment, parse_version
from ...formats.row_keys import (
    GC_CYCLE,
    leftovers_key,
    quarantines_key,
    segment_key,
    segment_of,
    tenant_key,
    tenant_of,
    usage_key,
)
from .key_slots import doom
from .tables import Rows, Tables
from .usage import account, count

_BATCH = 10_000


@dataclass(slots=True)
class Survey:
    """What one pass over the catalog saw. Rows may change during the pass."""

    # For each segment, the start and length of every record that a row refers to, one pair after the other.
    live: "dict[int, array[int]]" = field(default_factory=lambda: defaultdict(lambda: array("Q")))
    segments: dict[int, SegmentRow] = field(default_factory=dict)
    blobs: int = 0
    unneeded: list[tuple[bytes, BlobRow]] = field(default_factory=list)
    needed_slots: set[tuple[int, int]] = field(default_factory=set)

    def keep(self, place: Place) -> None:
        """Note that a row refers to the record at this place."""
        self.live[place.segment].extend((place.offset, place.record_bytes))

    def forget(self, places: Iterable[Place]) -> None:
        """Forget records, as if their rows were deleted."""
        gone = {(place.segment, place.offset) for place in places}
        for segment, runs in self.live.items():
            kept = [n for n in range(0, len(runs), 2) if (segment, runs[n]) not in gone]
            self.live[segment] = array("Q", (value for n in kept for value in runs[n : n + 2]))


class Garbage:
    """The rows of a store, seen by the collector."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def survey(self, asked_slots: Set[tuple[int, int]] = frozenset()) -> Survey:
        """Look at every row once. `needed_slots` gets the asked (tenant, slot) pairs that a row refers to."""
        survey = Survey()

        def note(key: bytes, place: Place) -> None:
            survey.keep(place)
            if asked_slots and (pair := (tenant_of(key), place.slot)) in asked_slots:
                survey.needed_slots.add(pair)

        # Segments come first. A record that gets a row from now on lies past the durable length of its segment here.
        for key, value in self._tables.scan("segments", b""):
            survey.segments[segment_of(key)] = parse_segment(value)
        for key, value in self._tables.scan("versions", b""):
            note(key, parse_version(value).place)
        for key, value in self._tables.scan("blobs", b""):
            blob = parse_blob(value)
            survey.blobs += 1
            note(key, blob.place)
            if not blob.refs:
                survey.unneeded.append((key, blob))
        return survey

    def next_cycle(self) -> int:
        """Return the number of a new collection."""

        def change(rows: Rows) -> int:
            cycle = count(rows, GC_CYCLE) + 1
            rows.put("counters", GC_CYCLE, pack_count(cycle))
            return cycle

        return self._tables.write(change)

    def condemn(self, keys: Iterable[bytes], cycle: int, now_s: int) -> None:
        """Mark those of these blobs that nothing needs with the collection that found them so."""

        def change(batch: list[bytes], rows: Rows) -> None:
            for key in batch:
                blob = _unneeded(rows, key)
                if blob:
                    rows.put("blobs", key, replace(blob, condemned_cycle=cycle, condemned_s=now_s).packed())

        for batch in _batches(keys):
            self._tables.write(partial(change, batch))

    def delete(self, keys: Iterable[bytes]) -> list[Place]:
        """Delete those of these blobs that nothing needs, and doom their keys; return where the blobs were."""

        def change(batch: list[bytes], rows: Rows) -> list[Place]:
            changed_bytes: dict[int, Counter[int]] = defaultdict(Counter)
            places: list[Place] = []
            slots: dict[int, list[int]] = defaultdict(list)
            for key in batch:
                blob = _unneeded(rows, key)
                if blob:
                    rows.delete("blobs", key)
                    tenant = tenant_of(key)
                    slots[tenant].append(blob.place.slot)
                    changed_bytes[tenant][blob.place.segment] -= blob.place.record_bytes
                    places.append(blob.place)
            for tenant, by_segment in changed_bytes.items():
                doom(rows, tenant, slots[tenant])
                account(rows, tenant, by_segment)
            return places

        deleted: list[Place] = []
        for batch in _batches(keys):
            deleted += self._tables.write(partial(change, batch))
        return deleted

    def is_empty(self, segment: int, durable_bytes: int) -> bool:
        """Say whether a segment has no live record and still has this durable length."""
        with self._tables.reading() as rows:
            return _is_empty(rows, segment, durable_bytes)

    def drop_segment(self, segment: int, durable_bytes: int) -> bool:
        """Delete the row of an empty segment. Return False, with nothing changed, if it is not empty any more."""

        def change(rows: Rows) -> bool:
            empty = _is_empty(rows, segment, durable_bytes)
            if empty:
                rows.delete("segments", segment_key(segment))
            return empty

        return self._tables.write(change)

    def drop_tenant(self, tenant: int) -> None:
        """Delete every row of a tenant, in one transaction."""
        prefix = tenant_key(tenant)

        def change(rows: Rows) -> None:
            changed_bytes: Counter[int] = Counter()
            for table in ("blobs", "versions"):
                for key, value in list(rows.scan(table, prefix)):
                    place = (parse_blob(value) if table == "blobs" else parse_version(value)).place
                    changed_bytes[place.segment] -= place.record_bytes
                    rows.delete(table, key)
            account(rows, tenant, changed_bytes)
            for table in ("names", "loans", "doomed", "spare", "identities"):
                for key, _ in list(rows.scan(table, prefix)):
                    rows.delete(table, key)
            for key in (usage_key(tenant), leftovers_key(tenant), quarantines_key(tenant)):
                rows.delete("counters", key)

        self._tables.write(change)


def _unneeded(rows: Rows, key: bytes) -> BlobRow | None:
    """Return the row of a blob that nothing needs, None if it is needed or gone."""
    value = rows.get("blobs", key)
    blob = parse_blob(value) if value is not None else None
    return blob if blob and not blob.refs else None


def _is_empty(rows: Rows, segment: int, durable_bytes: int) -> bool:
    value = rows.get("segments", segment_key(segment))
    row = parse_segment(value) if value is not None else None
    return row is not None and not row.live_bytes and row.durable_bytes == durable_bytes


def _batches(keys: Iterable[bytes]) -> Iterable[list[bytes]]:
    every = list(keys)
    for at in range(0, len(every), _BATCH):
        yield every[at : at + _BATCH]
