"""Garbage: one pass over the rows of all tenants, and the transactions that condemn and delete.

Invariant: a blob row is deleted only in a transaction that sees it without need, so a put that began to reuse the
blob meanwhile either committed first (the row is needed again) or finds the blob gone and stores it once more.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace

from ...formats.catalog import BlobRow, Place, SegmentRow, parse_blob, parse_segment, parse_version
from .key_slots import doom
from .tables import Rows, Tables
from .usage import LEFTOVERS, QUARANTINES, account, count

_BATCH = 10_000
_CYCLE = b"gc-cycle"


@dataclass(slots=True)
class Survey:
    """What one consistent pass over the catalog saw."""

    # Per segment, start and length of every record that a row stands on, one after the other.
    live: "dict[int, array[int]]" = field(default_factory=lambda: defaultdict(lambda: array("Q")))
    segments: dict[int, SegmentRow] = field(default_factory=dict)
    blobs: int = 0
    unneeded: list[tuple[bytes, BlobRow]] = field(default_factory=list)
    needed_slots: set[tuple[int, int]] = field(default_factory=set)

    def stands_on(self, place: Place) -> None:
        self.live[place.segment].extend((place.offset, place.record_bytes))

    def forget(self, places: Iterable[Place]) -> None:
        """Take records out of the picture, as if their rows were deleted."""
        gone = {(place.segment, place.offset) for place in places}
        for segment, runs in self.live.items():
            kept = [n for n in range(0, len(runs), 2) if (segment, runs[n]) not in gone]
            self.live[segment] = array("Q", (value for n in kept for value in runs[n : n + 2]))


class Garbage:
    """The rows of a store, seen by the collector."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def survey(self, asked_slots: Set[tuple[int, int]] = frozenset()) -> Survey:
        """Look at every row once; say which of the asked (tenant, slot) pairs a row stands on."""
        found = Survey()
        with self._tables.reading() as rows:
            for key, value in rows.scan("segments", b""):
                found.segments[int.from_bytes(key, "big")] = parse_segment(value)
            for key, value in rows.scan("versions", b""):
                self._note(found, key, parse_version(value).place, asked_slots)
            for key, value in rows.scan("blobs", b""):
                row = parse_blob(value)
                found.blobs += 1
                self._note(found, key, row.place, asked_slots)
                if not row.refs:
                    found.unneeded.append((key, row))
        return found

    def next_cycle(self) -> int:
        """Return the number of a new collection."""

        def change(rows: Rows) -> int:
            cycle = count(rows, _CYCLE) + 1
            rows.put("counters", _CYCLE, cycle.to_bytes(8, "little"))
            return cycle

        return self._tables.write(change)

    def condemn(self, keys: Iterable[bytes], cycle: int, now_s: int) -> None:
        """Stamp blobs that nothing needs with the collection that found them so."""

        def change(rows: Rows, batch: list[bytes]) -> None:
            for key in batch:
                row = _unneeded(rows, key)
                if row:
                    rows.put("blobs", key, replace(row, condemned_cycle=cycle, condemned_s=now_s).packed())

        for batch in _batches(keys):
            self._tables.write(lambda rows, batch=batch: change(rows, batch))  # type: ignore[misc]

    def delete(self, keys: Iterable[bytes]) -> list[Place]:
        """Delete blobs that still nothing needs, their keys doomed; return where those were."""

        def change(rows: Rows, batch: list[bytes]) -> list[Place]:
            changed: dict[bytes, Counter[int]] = defaultdict(Counter)
            deleted: list[Place] = []
            slots: dict[bytes, list[int]] = defaultdict(list)
            for key in batch:
                row = _unneeded(rows, key)
                if row:
                    rows.delete("blobs", key)
                    slots[key[:4]].append(row.place.slot)
                    changed[key[:4]][row.place.segment] -= row.place.record_bytes
                    deleted.append(row.place)
            for tenant, by_segment in changed.items():
                doom(rows, int.from_bytes(tenant, "big"), slots[tenant])
                account(rows, tenant, by_segment)
            return deleted

        gone: list[Place] = []
        for batch in _batches(keys):
            gone += self._tables.write(lambda rows, batch=batch: change(rows, batch))  # type: ignore[misc]
        return gone

    def is_empty(self, segment: int, durable_bytes: int) -> bool:
        """Say whether nothing lives in a segment and nothing was committed to it since it had that length."""
        with self._tables.reading() as rows:
            value = rows.get("segments", segment.to_bytes(8, "big"))
        row = parse_segment(value) if value is not None else None
        return row is not None and not row.live_bytes and row.durable_bytes == durable_bytes

    def drop_segment(self, segment: int, durable_bytes: int) -> bool:
        """Strike an empty segment off the catalog; False if something was committed to it meanwhile."""
        key = segment.to_bytes(8, "big")

        def change(rows: Rows) -> bool:
            value = rows.get("segments", key)
            row = parse_segment(value) if value is not None else None
            if row is None or row.live_bytes or row.durable_bytes != durable_bytes:
                return False
            rows.delete("segments", key)
            return True

        return self._tables.write(change)

    def drop_tenant(self, tenant: int) -> None:
        """Delete every row of a tenant, in one transaction."""
        prefix = tenant.to_bytes(4, "big")

        def change(rows: Rows) -> None:
            changed: Counter[int] = Counter()
            for table in ("blobs", "versions"):
                for key, value in list(rows.scan(table, prefix)):
                    place = (parse_blob(value) if table == "blobs" else parse_version(value)).place
                    changed[place.segment] -= place.record_bytes
                    rows.delete(table, key)
            account(rows, prefix, changed)
            for table in ("names", "loans", "doomed", "spare", "identities"):
                for key, _ in list(rows.scan(table, prefix)):
                    rows.delete(table, key)
            for counter in (b"usage", LEFTOVERS, QUARANTINES):
                rows.delete("counters", counter + prefix)

        self._tables.write(change)

    def _note(self, found: Survey, key: bytes, place: Place, asked: Set[tuple[int, int]]) -> None:
        found.stands_on(place)
        if asked and (pair := (int.from_bytes(key[:4], "big"), place.slot)) in asked:
            found.needed_slots.add(pair)


def _unneeded(rows: Rows, key: bytes) -> BlobRow | None:
    value = rows.get("blobs", key)
    row = parse_blob(value) if value is not None else None
    return row if row and not row.refs else None


def _batches(keys: Iterable[bytes]) -> Iterable[list[bytes]]:
    every = list(keys)
    for at in range(0, len(every), _BATCH):
        yield every[at : at + _BATCH]
