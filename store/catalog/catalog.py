"""The catalog of one tenant: LMDB as the truth of one host.

Every method is one transaction, but for those that list rows. One that changes rows is durable on return. `changes` has
what a commit and a drop do inside their transaction. formats/row_keys.py describes the keys of rows, formats/catalog.py
their values.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ...formats.catalog import (
    LIVE,
    QUARANTINED,
    BlobRow,
    Place,
    SegmentRow,
    VersionRow,
    pack_count,
    parse_blob,
    parse_segment,
    parse_version,
)
from ...formats.digest import Digest
from ...formats.row_keys import (
    NEXT_SEGMENT,
    RowKeys,
    leftovers_key,
    quarantines_key,
    segment_key,
    segment_of,
    usage_key,
    version_of,
)
from ..errors import Fenced, NoRoom, ReadOnly
from .identities import TABLE as IDENTITIES_TABLE
from .lookup import newest_version, read_blob, read_version
from .tables import Rows, Tables
from .usage import count, extend_segments, mark

if TYPE_CHECKING:
    from ...formats.identity import KeyId
    from ...formats.manifest import Needs
    from .changes import NewVersion

TABLES = ("blobs", "versions", "names", "segments", "counters", IDENTITIES_TABLE)

_NOTE_WAIT_S = 1.0  # reading must not wait for a process that is stopped


class Catalog:
    """One tenant's rows, and the rows that all tenants share."""

    def __init__(self, tables: Tables, tenant: int, index_key: bytes) -> None:
        self.tables, self.tenant, self.keys = tables, tenant, RowKeys(tenant, index_key)

    def find_blobs(self, digests: Iterable[Digest]) -> dict[Digest, BlobRow]:
        """Return the rows of those digests that are known, quarantined ones included."""
        with self.tables.reading() as rows:
            blobs = {digest: read_blob(rows, self.keys, digest) for digest in digests}
        return {digest: blob for digest, blob in blobs.items() if blob}

    def all_blobs(self) -> Iterator[BlobRow]:
        """Yield the row of every blob of this tenant."""
        for _, value in self.tables.scan("blobs", self.keys.prefix):
            yield parse_blob(value)

    def live_slots(self, places: Mapping[Digest, Place]) -> set[int]:
        """Return the key slots of those places where the catalog reads these blobs. Other copies of them are dead."""
        with self.tables.reading() as rows:
            blobs = [(read_blob(rows, self.keys, digest), place) for digest, place in places.items()]
        return {place.slot for blob, place in blobs if blob and blob.place == place}

    def last_version(self, name: str) -> int:
        """Return the highest version number ever given under a name, 0 if none."""
        with self.tables.reading() as rows:
            return newest_version(rows, self.keys, name)

    def versions(self, name: str | None = None) -> list[tuple[int, VersionRow]]:
        """Return every version of a name, or of every name, in order."""
        prefix = self.keys.prefix if name is None else self.keys.name(name)
        return [(version_of(key), parse_version(value)) for key, value in self.tables.scan("versions", prefix)]

    def usage_bytes(self) -> int:
        """Return the bytes this tenant's records take on disk."""
        with self.tables.reading() as rows:
            return count(rows, usage_key(self.tenant))

    def segments(self) -> dict[int, SegmentRow]:
        """Return every segment row by id."""
        return {segment_of(key): parse_segment(value) for key, value in self.tables.scan("segments", b"")}

    def new_segment(self, lifetime: int) -> int:
        """Return the id of a fresh segment row."""

        def change(rows: Rows) -> int:
            segment = count(rows, NEXT_SEGMENT) + 1
            rows.put("counters", NEXT_SEGMENT, pack_count(segment))
            rows.put("segments", segment_key(segment), SegmentRow(lifetime, 0, 0).packed())
            return segment

        return self.tables.write(change)

    def commit(self, new: "NewVersion") -> "KeyId | None":
        """Make a version visible. This is the one commit point of a put.

        Returns the first identity that the version claims and that goes on to stand for other bytes, None if none does.
        Raises, with nothing changed:
        Fenced if the lease that it names no longer stands,
        Superseded if another version of the name was committed first,
        BlobGone if a blob that it reuses is gone or bad, or if it was to join an identity of other bytes,
        NoRoom if the tenant's quota would be exceeded.
        """
        from .changes import commit_version  # most commands only read, and start faster without it

        return self.tables.write(lambda rows: commit_version(rows, self.keys, new))

    def scope(self, name: str) -> bytes:
        """Return the scope of the lease that publishing under a name takes."""
        return self.keys.lease(name)

    def drop(self, name: str, version: int, needs: "Needs", *, shred: bool = False) -> int:
        """Remove a version and its claims on blobs and identities; raise Conflict if it is gone already.

        With `shred`, the blobs that nothing else needs leave the catalog in the same transaction, and their keys are
        doomed. Returns how many blobs those are.
        """
        from .changes import drop_version

        return self.tables.write(lambda rows: drop_version(rows, self.keys, name, version, needs, shred=shred))

    def adopt(self, places: Mapping[Digest, Place], durable: Mapping[int, int]) -> int:
        """Add blobs that an ended writer left and that nothing needs yet; return how many were new."""
        from .changes import add_blobs

        def change(rows: Rows) -> int:
            added = add_blobs(rows, self.keys, places)
            extend_segments(rows, durable)
            if added:
                mark(rows, leftovers_key(self.tenant))
            return added

        return self.tables.write(change)

    def quarantine(self, digest: Digest, place: Place) -> None:
        """Mark a blob as bad at this place. Reads refuse it, and the next put of the same bytes replaces it.

        Nothing happens if the blob no longer lies there.
        """

        def change(rows: Rows) -> None:
            blob = read_blob(rows, self.keys, digest)
            if blob and blob.place == place:
                rows.put("blobs", self.keys.blob(digest), replace(blob, state=QUARANTINED).packed())
                mark(rows, quarantines_key(self.tenant))

        self._note(change)

    def passed(self, places: Mapping[Digest, Place], checked_s: int) -> None:
        """Note that blobs were read at these places and are good. Those in quarantine leave it."""

        def change(rows: Rows) -> None:
            for digest, place in places.items():
                blob = read_blob(rows, self.keys, digest)
                if blob and blob.place == place:
                    good = replace(blob, state=LIVE, checked_s=checked_s)
                    rows.put("blobs", self.keys.blob(digest), good.packed())

        self._note(change)

    def set_pinned(self, name: str, version: int, pinned: bool) -> None:
        """Pin or unpin a version; raise Conflict if it is gone."""
        self.tables.write(partial(self._change_version, name, version, lambda row: replace(row, pinned=pinned)))

    def set_used(self, name: str, version: int, used_s: int) -> None:
        """Note when a version was read; raise Conflict if it is gone."""
        self._note(partial(self._change_version, name, version, lambda row: replace(row, used_s=used_s)))

    def _note(self, change: Callable[[Rows], None]) -> None:
        """Write what was found while reading. If the store can't be written soon, nothing happens."""
        with suppress(ReadOnly, NoRoom, Fenced):
            self.tables.write(change, _NOTE_WAIT_S)

    def _change_version(self, name: str, version: int, changed: Callable[[VersionRow], VersionRow], rows: Rows) -> None:
        row = read_version(rows, self.keys, name, version)
        rows.put("versions", self.keys.version(name, version), changed(row).packed())
