"""The catalog: LMDB as the truth of one host. Every method is one transaction, durable on return where it writes.

    blobs      tenant u32, keyed hash of the digest (20)            -> BlobRow
    versions   tenant u32, keyed hash of the name (20), version u32 -> VersionRow
    names      tenant u32, keyed hash of the name (20)              -> newest version number ever given, u32
    segments   segment id u64                                       -> SegmentRow
    counters   "next-segment"; "usage", "leftovers", "quarantines" + tenant -> u64

Integers in keys are big-endian, so that LMDB's order is theirs. Every value ends in a check (formats/catalog.py).
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...formats.catalog import (
    LIVE,
    QUARANTINED,
    BlobRow,
    Named,
    Place,
    SegmentRow,
    VersionRow,
    parse_blob,
    parse_segment,
    parse_version,
)
from ...formats.digest import Digest, keyed_hash
from ..errors import Conflict, NoRoom
from .identities import TABLE as IDENTITIES_TABLE
from .identities import Claims, claim, unclaim
from .key_slots import doom, doomed_slots
from .leases import Lease
from .tables import Rows, Tables
from .usage import LEFTOVERS, QUARANTINES, account, count, extend, mark, segment_key

if TYPE_CHECKING:
    from ...formats.identity import KeyId
    from ...formats.manifest import Needs

_U32, _U64 = struct.Struct(">I"), struct.Struct("<Q")
_HASH_BYTES = 20
TABLES = ("blobs", "versions", "names", "segments", "counters", IDENTITIES_TABLE)


class Superseded(Exception):
    """Another version of the name was committed first; take the next number."""


class BlobGone(Exception):
    """A blob that was to be reused was collected or found bad meanwhile, or others came first; look again."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version ready to be committed: its row, the blobs it needs, and those of them that were just written."""

    name: str
    version: int
    row: VersionRow
    needs: "Needs"
    written: Mapping[Digest, Place]
    durable: Mapping[int, int]  # segment id -> bytes that are on disk
    quota_bytes: int = 0
    lease: Lease | None = None
    join: bool = False  # other bytes for an identity are not to be kept, but what is stored for it used


class Catalog:
    """One tenant's rows, and the rows that all tenants share."""

    def __init__(self, tables: Tables, tenant: int, index_key: bytes) -> None:
        self.tables, self.tenant = tables, tenant
        self.prefix, self._index_key = _U32.pack(tenant), index_key

    def find_blobs(self, digests: Iterable[Digest]) -> dict[Digest, BlobRow]:
        """Return the rows of those digests that are known, quarantined ones included."""
        with self.tables.reading() as rows:
            found = {digest: self.blob_row(rows, digest) for digest in digests}
        return {digest: row for digest, row in found.items() if row}

    def all_blobs(self) -> Iterator[BlobRow]:
        """Yield the row of every blob of this tenant."""
        with self.tables.reading() as rows:
            for _, value in rows.scan("blobs", self.prefix):
                yield parse_blob(value)

    def adopt(self, found: Mapping[Digest, Place], durable: Mapping[int, int]) -> int:
        """Take in blobs that a writer left behind, needed by nothing yet; return how many were new."""

        def change(rows: Rows) -> int:
            new = self._add_blobs(rows, found)
            extend(rows, durable)
            if new:
                mark(rows, LEFTOVERS + self.prefix)
            return new

        return self.tables.write(change)

    def quarantine(self, digest: Digest, place: Place) -> None:
        """Mark a blob as bad where it lies: reads refuse it, and the next put of the same bytes replaces it.

        Nothing happens if it lies elsewhere by now.
        """

        def change(rows: Rows) -> None:
            row = self.blob_row(rows, digest)
            if row and row.place == place:
                rows.put("blobs", self.blob_key(digest), replace(row, state=QUARANTINED).packed())
                mark(rows, QUARANTINES + self.prefix)

        self.tables.write(change)

    def passed(self, places: Mapping[Digest, Place], checked_s: int) -> None:
        """Note that blobs were read where they lie and are good; it takes them out of quarantine."""

        def change(rows: Rows) -> None:
            for digest, place in places.items():
                row = self.blob_row(rows, digest)
                if row and row.place == place:
                    rows.put("blobs", self.blob_key(digest), replace(row, state=LIVE, checked_s=checked_s).packed())

        self.tables.write(change)

    def last_version(self, name: str) -> int:
        """Return the highest version number ever given under a name, 0 if none."""
        with self.tables.reading() as rows:
            return self._last(rows, name)

    def versions(self, name: str | None = None) -> list[tuple[int, VersionRow]]:
        """Return every version of a name, or of every name, in order."""
        prefix = self.prefix if name is None else self.name_key(name)
        with self.tables.reading() as rows:
            return [(_U32.unpack(key[-4:])[0], parse_version(value)) for key, value in rows.scan("versions", prefix)]

    def commit(self, new: NewVersion) -> "KeyId | None":
        """Make a version visible: the one commit point of a put. Return the first identity that it claims and that
        stands for other bytes already, which it goes on to do.

        Raises Fenced if the lease it names no longer stands, Superseded if another version of the name was committed
        since, BlobGone if what was to be reused has changed, NoRoom over the quota: then nothing has changed.
        """

        def change(rows: Rows) -> "KeyId | None":
            if new.lease:
                new.lease.check(rows)
            if self._last(rows, new.name) != new.version - 1:
                raise Superseded
            self._add_blobs(rows, new.written)
            for digest in new.needs.blobs:
                row = self.blob_row(rows, digest)
                if row is None or row.state != LIVE:
                    raise BlobGone
                rows.put("blobs", self.blob_key(digest), row.referred(+1).packed())
            key, claims = self.name_key(new.name), new.needs.claims
            claimed = self.claim(rows, claims)
            if new.join and claimed < len(claims):
                raise BlobGone
            rows.put("versions", key + _U32.pack(new.version), replace(new.row, claimed=claimed).packed())
            rows.put("names", key, _U32.pack(new.version))
            account(rows, self.prefix, {new.row.place.segment: new.row.place.record_bytes})
            extend(rows, new.durable)
            if new.quota_bytes and count(rows, b"usage" + self.prefix) > new.quota_bytes:
                raise NoRoom("quota", f"the tenant's quota of {new.quota_bytes} bytes would be exceeded")
            return claims[claimed][0] if claimed < len(claims) else None

        return self.tables.write(change)

    def scope(self, name: str) -> bytes:
        """Return the scope of the lease that publishing under a name takes."""
        return b"name" + self.name_key(name)

    def drop(self, name: str, version: int, needs: "Needs", *, shred: bool = False) -> int:
        """Remove a version and its claims on blobs and identities; raise Conflict if it is gone already.

        With `shred` the blobs that nothing else needs leave the catalog in the same transaction, their keys doomed;
        return how many those are.
        """

        def change(rows: Rows) -> int:
            key, row = self.version_key(name, version), self._version(rows, name, version)
            changed: Counter[int] = Counter({row.place.segment: -row.place.record_bytes})
            slots = [row.place.slot]
            for blob_key in map(self.blob_key, needs.blobs):
                value = rows.get("blobs", blob_key)
                blob = parse_blob(value) if value is not None else None
                if blob and shred and blob.refs <= 1:
                    rows.delete("blobs", blob_key)
                    slots.append(blob.place.slot)
                    changed[blob.place.segment] -= blob.place.record_bytes
                elif blob and blob.refs:
                    rows.put("blobs", blob_key, blob.referred(-1).packed())
            unclaim(rows, self.identity_key, needs.claims[: row.claimed])
            rows.delete("versions", key)
            doom(rows, self.tenant, slots)
            account(rows, self.prefix, changed)
            if shred and next(rows.scan("versions", self.name_key(name)), None) is None:
                rows.delete("names", self.name_key(name))
            return len(slots) - 1

        return self.tables.write(change)

    def claim(self, rows: Rows, claims: Claims) -> int:
        """Write or count what a version claims; return how many identities it holds then. See identities.py."""
        return claim(rows, self.identity_key, claims, lambda named: self.is_whole(rows, named))

    def is_whole(self, rows: Rows, named: Named) -> bool:
        """Say whether every blob of an identity is there and not known to be bad."""
        found = [self.blob_row(rows, digest) for digest in named.blobs]
        return all(row is not None and row.state == LIVE for row in found)

    def live_slots(self, places: Mapping[Digest, Place]) -> set[int]:
        """Return the key slots of those records that the catalog stands on; other copies of them are dead."""
        with self.tables.reading() as rows:
            found = [(self.blob_row(rows, digest), place) for digest, place in places.items()]
        return {place.slot for row, place in found if row and row.place == place}

    def set_pinned(self, name: str, version: int, pinned: bool) -> None:
        """Pin or unpin a version; raise Conflict if it is gone."""
        self._change_version(name, version, lambda row: replace(row, pinned=pinned))

    def set_used(self, name: str, version: int, used_s: int) -> None:
        """Note when a version was read; raise Conflict if it is gone."""
        self._change_version(name, version, lambda row: replace(row, used_s=used_s))

    def _change_version(self, name: str, version: int, changed: Callable[[VersionRow], VersionRow]) -> None:
        def change(rows: Rows) -> None:
            row = self._version(rows, name, version)
            rows.put("versions", self.version_key(name, version), changed(row).packed())

        self.tables.write(change)

    def new_segment(self, lifetime: int) -> int:
        """Return the id of a fresh segment row."""

        def change(rows: Rows) -> int:
            segment = count(rows, b"next-segment") + 1
            rows.put("counters", b"next-segment", _U64.pack(segment))
            rows.put("segments", segment_key(segment), SegmentRow(lifetime, 0, 0).packed())
            return segment

        return self.tables.write(change)

    def segments(self) -> dict[int, SegmentRow]:
        """Return every segment row by id."""
        with self.tables.reading() as rows:
            return {int.from_bytes(key, "big"): parse_segment(value) for key, value in rows.scan("segments", b"")}

    def usage_bytes(self) -> int:
        """Return the bytes this tenant's records take on disk."""
        with self.tables.reading() as rows:
            return count(rows, b"usage" + self.prefix)

    def _add_blobs(self, rows: Rows, places: Mapping[Digest, Place]) -> int:
        new, changed = 0, Counter[int]()
        doomed = doomed_slots(rows, self.tenant) if places else frozenset[int]()
        replaced: list[int] = []
        for digest, place in places.items():
            old = self.blob_row(rows, digest)
            if place.slot in doomed:
                continue  # left by a killed put, and judged by a collection before it was taken in
            if old and old.state == LIVE:
                continue  # another writer was first: its copy stays, ours is dead space in its segment
            if old:
                changed[old.place.segment] -= old.place.record_bytes
                replaced.append(old.place.slot)
            changed[place.segment] += place.record_bytes
            rows.put("blobs", self.blob_key(digest), BlobRow(place, old.refs if old else 0).packed())
            new += 1
        doom(rows, self.tenant, replaced)
        account(rows, self.prefix, changed)
        return new

    def blob_row(self, rows: Rows, digest: Digest) -> BlobRow | None:
        value = rows.get("blobs", self.blob_key(digest))
        return parse_blob(value) if value is not None else None

    def _version(self, rows: Rows, name: str, version: int) -> VersionRow:
        value = rows.get("versions", self.version_key(name, version))
        if value is None:
            raise Conflict(f"{name}@{version}", "was removed by somebody else")
        return parse_version(value)

    def _last(self, rows: Rows, name: str) -> int:
        value = rows.get("names", self.name_key(name))
        return int(_U32.unpack(value)[0]) if value is not None else 0

    def blob_key(self, digest: Digest) -> bytes:
        return self.prefix + keyed_hash(self._index_key, b"blob", digest, length=_HASH_BYTES)

    def identity_key(self, id_: "KeyId") -> bytes:
        return self.prefix + keyed_hash(self._index_key, b"identity", id_, length=_HASH_BYTES)

    def version_key(self, name: str, version: int) -> bytes:
        return self.name_key(name) + _U32.pack(version)

    def name_key(self, name: str) -> bytes:
        return self.prefix + keyed_hash(self._index_key, b"name", name.encode(), length=_HASH_BYTES)
