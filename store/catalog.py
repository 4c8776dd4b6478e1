"""The catalog: LMDB as the truth of one host. Every method is one transaction, durable on return where it writes.

    blobs      tenant u32, keyed hash of the digest (20)            -> BlobRow
    versions   tenant u32, keyed hash of the name (20), version u32 -> VersionRow
    names      tenant u32, keyed hash of the name (20)              -> newest version number ever given, u32
    segments   segment id u64                                       -> SegmentRow
    counters   "next-segment"; "usage" + tenant; "spare" + tenant   -> u64; u64; slots u64 each

Integers in keys are big-endian, so that LMDB's order is theirs. Every value ends in a check (formats/catalog.py).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats.catalog import (
    LIVE,
    QUARANTINED,
    BlobRow,
    Place,
    SegmentRow,
    VersionRow,
    parse_blob,
    parse_segment,
    parse_version,
)
from ..formats.digest import Digest, keyed_hash
from .errors import Conflict, Corrupt, NoRoom
from .tables import Rows, Tables

_U32, _U64 = struct.Struct(">I"), struct.Struct("<Q")
_HASH_BYTES = 20
_TABLES = ("blobs", "versions", "names", "segments", "counters")


class Superseded(Exception):
    """Another version of the name was committed first; take the next number."""


class BlobGone(Exception):
    """A blob that was to be reused was collected or found bad meanwhile; store it again."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version ready to be committed: its row, the blobs it needs, and those of them that were just written."""

    name: str
    version: int
    row: VersionRow
    needs: frozenset[Digest]
    written: Mapping[Digest, Place]
    durable: Mapping[int, int]  # segment id -> bytes that are on disk
    quota_bytes: int = 0


class Catalog:
    """One tenant's rows, and the rows that all tenants share."""

    def __init__(self, path: Path, tenant: int, index_key: bytes, check_key: bytes) -> None:
        self._tables = Tables(path, _TABLES, check_key)
        self._prefix, self._index_key = _U32.pack(tenant), index_key

    def close(self) -> None:
        self._tables.close()

    # ---- blobs

    def find_blobs(self, digests: Iterable[Digest]) -> dict[Digest, BlobRow]:
        """Return the rows of those digests that are known, quarantined ones included."""
        with self._tables.reading() as rows:
            found = {digest: self._blob(rows, digest) for digest in digests}
        return {digest: row for digest, row in found.items() if row}

    def all_blobs(self) -> Iterator[BlobRow]:
        """Yield the row of every blob of this tenant."""
        with self._tables.reading() as rows:
            for _, value in rows.scan("blobs", self._prefix):
                yield parse_blob(value)

    def adopt(self, found: Mapping[Digest, Place], durable: Mapping[int, int]) -> int:
        """Take in blobs that a writer left behind, needed by nothing yet; return how many were new."""

        def change(rows: Rows) -> int:
            new = self._add_blobs(rows, found)
            self._extend(rows, durable)
            return new

        return self._tables.write(change)

    def quarantine(self, digest: Digest) -> None:
        """Mark a blob as bad: reads refuse it, and the next put of the same bytes replaces it."""
        self._set_state(digest, QUARANTINED)

    def release(self, digest: Digest) -> None:
        """Take a blob out of quarantine: it was read again and is good."""
        self._set_state(digest, LIVE)

    def _set_state(self, digest: Digest, state: int) -> None:
        def change(rows: Rows) -> None:
            row = self._blob(rows, digest)
            if row:
                rows.put("blobs", self._blob_key(digest), replace(row, state=state).packed())

        self._tables.write(change)

    # ---- versions

    def last_version(self, name: str) -> int:
        """Return the highest version number ever given under a name, 0 if none."""
        with self._tables.reading() as rows:
            return self._last(rows, name)

    def versions(self, name: str | None = None) -> list[tuple[int, VersionRow]]:
        """Return every version of a name, or of every name, in order."""
        prefix = self._prefix if name is None else self._name_key(name)
        with self._tables.reading() as rows:
            return [(_U32.unpack(key[-4:])[0], parse_version(value)) for key, value in rows.scan("versions", prefix)]

    def commit(self, new: NewVersion) -> None:
        """Make a version visible: the one commit point of a put.

        Raises Superseded if another version of the name was committed since, BlobGone if a blob that was to be
        reused is no longer there, NoRoom if the tenant's quota would be exceeded. Then nothing has changed.
        """

        def change(rows: Rows) -> None:
            if self._last(rows, new.name) != new.version - 1:
                raise Superseded
            self._add_blobs(rows, new.written)
            for digest in new.needs:
                row = self._blob(rows, digest)
                if row is None or row.state != LIVE:
                    raise BlobGone
                rows.put("blobs", self._blob_key(digest), row.referred(+1).packed())
            key = self._name_key(new.name)
            rows.put("versions", key + _U32.pack(new.version), new.row.packed())
            rows.put("names", key, _U32.pack(new.version))
            self._account(rows, new.row.place.segment, new.row.place.record_bytes)
            self._extend(rows, new.durable)
            if new.quota_bytes and self._usage(rows) > new.quota_bytes:
                raise NoRoom("quota", f"the tenant's quota of {new.quota_bytes} bytes would be exceeded")

        self._tables.write(change)

    def drop(self, name: str, version: int, needed: frozenset[Digest]) -> None:
        """Remove a version and its claim on the blobs it needed; raise Conflict if it is gone already."""

        def change(rows: Rows) -> None:
            key = self._name_key(name) + _U32.pack(version)
            row = self._version(rows, key)
            if row is None:
                raise Conflict(f"{name}@{version}", "was removed by somebody else")
            for digest in needed:
                blob = self._blob(rows, digest)
                if blob and blob.refs:
                    rows.put("blobs", self._blob_key(digest), blob.referred(-1).packed())
            rows.delete("versions", key)
            self._account(rows, row.place.segment, -row.place.record_bytes)

        self._tables.write(change)

    def set_pinned(self, name: str, version: int, pinned: bool) -> None:
        """Pin or unpin a version; raise Conflict if it is gone."""

        def change(rows: Rows) -> None:
            key = self._name_key(name) + _U32.pack(version)
            row = self._version(rows, key)
            if row is None:
                raise Conflict(f"{name}@{version}", "was removed by somebody else")
            rows.put("versions", key, replace(row, pinned=pinned).packed())

        self._tables.write(change)

    # ---- segments, usage, spare slots

    def new_segment(self, lifetime: int) -> int:
        """Return the id of a fresh segment row."""

        def change(rows: Rows) -> int:
            segment = self._count(rows, b"next-segment") + 1
            rows.put("counters", b"next-segment", _U64.pack(segment))
            rows.put("segments", _segment_key(segment), SegmentRow(lifetime, 0, 0).packed())
            return segment

        return self._tables.write(change)

    def segments(self) -> dict[int, SegmentRow]:
        """Return every segment row by id."""
        with self._tables.reading() as rows:
            return {int.from_bytes(key, "big"): parse_segment(value) for key, value in rows.scan("segments", b"")}

    def usage_bytes(self) -> int:
        """Return the bytes this tenant's records take on disk."""
        with self._tables.reading() as rows:
            return self._usage(rows)

    def take_spare(self, most: int) -> list[int]:
        """Take up to `most` key slots that an earlier put reserved and did not use."""

        def change(rows: Rows) -> list[int]:
            slots = self._spare(rows)
            rows.put("counters", b"spare" + self._prefix, _pack_slots(slots[most:]))
            return slots[:most]

        return self._tables.write(change)

    def give_spare(self, slots: list[int]) -> None:
        """Keep reserved but unused key slots for the next put."""

        def change(rows: Rows) -> None:
            rows.put("counters", b"spare" + self._prefix, _pack_slots(self._spare(rows) + slots))

        self._tables.write(change)

    # ---- inside a transaction

    def _add_blobs(self, rows: Rows, places: Mapping[Digest, Place]) -> int:
        new = 0
        for digest, place in places.items():
            old = self._blob(rows, digest)
            if old and old.state == LIVE:
                continue  # another writer was first: its copy stays, ours is dead space in its segment
            if old:
                self._account(rows, old.place.segment, -old.place.record_bytes)
            self._account(rows, place.segment, place.record_bytes)
            rows.put("blobs", self._blob_key(digest), BlobRow(place, old.refs if old else 0).packed())
            new += 1
        return new

    def _account(self, rows: Rows, segment: int, change_bytes: int) -> None:
        row = self._segment(rows, segment)
        changed = replace(row, live_bytes=row.live_bytes + change_bytes)
        rows.put("segments", _segment_key(segment), changed.packed())
        usage = self._usage(rows) + change_bytes
        rows.put("counters", b"usage" + self._prefix, _U64.pack(max(usage, 0)))

    def _extend(self, rows: Rows, durable: Mapping[int, int]) -> None:
        for segment, length in durable.items():
            row = self._segment(rows, segment)
            if length > row.durable_bytes:
                rows.put("segments", _segment_key(segment), replace(row, durable_bytes=length).packed())

    def _segment(self, rows: Rows, segment: int) -> SegmentRow:
        value = rows.get("segments", _segment_key(segment))
        if value is None:
            raise Corrupt(f"catalog: segment {segment}", "is not in the catalog")
        return parse_segment(value)

    def _blob(self, rows: Rows, digest: Digest) -> BlobRow | None:
        value = rows.get("blobs", self._blob_key(digest))
        return parse_blob(value) if value is not None else None

    def _version(self, rows: Rows, key: bytes) -> VersionRow | None:
        value = rows.get("versions", key)
        return parse_version(value) if value is not None else None

    def _last(self, rows: Rows, name: str) -> int:
        value = rows.get("names", self._name_key(name))
        return int(_U32.unpack(value)[0]) if value is not None else 0

    def _usage(self, rows: Rows) -> int:
        return self._count(rows, b"usage" + self._prefix)

    def _spare(self, rows: Rows) -> list[int]:
        value = rows.get("counters", b"spare" + self._prefix) or b""
        return list(struct.unpack(f"<{len(value) // 8}Q", value))

    def _count(self, rows: Rows, key: bytes) -> int:
        value = rows.get("counters", key)
        return int(_U64.unpack(value)[0]) if value is not None else 0

    def _blob_key(self, digest: Digest) -> bytes:
        return self._prefix + keyed_hash(self._index_key, b"blob", digest, length=_HASH_BYTES)

    def _name_key(self, name: str) -> bytes:
        return self._prefix + keyed_hash(self._index_key, b"name", name.encode(), length=_HASH_BYTES)


def _segment_key(segment: int) -> bytes:
    return segment.to_bytes(8, "big")


def _pack_slots(slots: list[int]) -> bytes:
    return struct.pack(f"<{len(slots)}Q", *slots)
