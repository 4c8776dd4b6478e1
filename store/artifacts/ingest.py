"""Ingest: bytes of files become blobs in segments, each stored once.

Each worker runs a group of blobs to completion: read, hash, look up, encode, seal, write. A group is read into
private memory once, so that the digest and the ciphertext are of the same bytes whatever happens to the file.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...formats.catalog import LIVE, BlobRow, Place
from ...formats.codec import SAMPLE_MAX_BYTES, Codec, choose
from ...formats.digest import Digest, digest_bytes
from ...formats.record import KIND_BLOB
from ..catalog.catalog import Catalog
from ..errors import NoRoom
from ..keys.tenant_keys import TenantKeys
from ..progress import Progress
from ..segments.key_supply import SlotSupply
from ..segments.reader import SegmentReader
from ..segments.records import Draft, draft_record
from ..segments.writer import WRITE_BUFFER_BYTES, SegmentWriter
from ..workers import ThreadBuffers, open_pool, workers_count
from .cuts import GROUP_BYTES, Cut, Group

# A worker holds a group (up to one blob of 64 MiB) and its staging buffer: four stay under 300 MB.
_WORKERS_MAX = 4


@dataclass(slots=True)
class Ingest:
    """One run of storing blobs. `written` holds the new blobs, `reused` those that were stored already."""

    catalog: Catalog
    keys: TenantKeys
    writer: SegmentWriter
    slots: SlotSupply
    segments: SegmentReader
    codec: str
    progress: Progress
    room_bytes: int | None  # what the tenant's quota leaves; None if there is no quota
    written: dict[Digest, Place] = field(default_factory=dict)
    reused: set[Digest] = field(default_factory=set)
    _total_bytes: int = 0
    _all_known: bool = False  # whether every blob of the group that was read last was stored already
    _claimed: set[Digest] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _buffers: ThreadBuffers = field(default_factory=ThreadBuffers)

    def run(self, groups: Sequence[Group]) -> list[list[Digest]]:
        """Store the blobs of the groups that are not stored yet; return the digests of each group. Not durable yet."""
        self._total_bytes = sum(group.length for group in groups)
        # A single group has a thread, too: Ctrl-C stops only the main thread, and a blob that was begun is finished.
        with open_pool(min(workers_count() + 1, _WORKERS_MAX, max(len(groups), 1))) as pool:
            return list(pool.map(self._store_group, groups))

    def keep(self) -> None:
        """Give the written blobs rows in the catalog, though no version needs them yet; durable on return."""
        self.catalog.adopt(dict(self.written), self.writer.sync())
        self.end_loan()

    def end_loan(self, *needed: int) -> None:
        """End the loan of keys. The slots that the catalog uses now stay, and so do those in `needed`."""
        self.slots.end_loan(self.catalog.live_slots(self.written).union(needed))

    @property
    def stored_bytes(self) -> int:
        """Bytes that the new records take on disk."""
        return sum(place.record_bytes for place in self.written.values())

    def _store_group(self, group: Group) -> list[Digest]:
        # If the last group was stored already, this one probably is, too. Hashing the map costs half of a read.
        digests = self._look(group) if self._all_known else None
        if digests is None:
            digests = self._read(group)
        self.progress(group.length, self._total_bytes)
        return digests

    def _look(self, group: Group) -> list[Digest] | None:
        """Return the digests of a group if every blob of it is stored already."""
        with group.source.mapped(group.offset, group.length) as plain:
            digests = [digest_bytes(self.keys.tenant.digest_key, part) for part in group.parts(plain)]
        known = {digest for digest, row in self.catalog.find_blobs(digests).items() if self._is_readable(row)}
        if not known.issuperset(digests):
            return None
        with self._guard:
            self.reused |= known - self._claimed
            self._claimed |= known
        return digests

    def _read(self, group: Group) -> list[Digest]:
        """Read a group, store its blobs that are missing, and return its digests."""
        plain = self._buffers.take(max(group.length, GROUP_BYTES))[: group.length]
        group.source.read_into(group.offset, plain)
        parts = group.parts(plain)
        digests = [digest_bytes(self.keys.tenant.digest_key, part) for part in parts]
        missing = self._missing(digests)
        self._all_known = not missing
        fresh = {digest: n for n, digest in enumerate(digests) if digest in missing}
        if fresh:
            self._write([(digest, parts[n], group.cuts[n]) for digest, n in fresh.items()])
        return digests

    def _missing(self, digests: Sequence[Digest]) -> set[Digest]:
        """Return the digests that neither the catalog nor another worker has. They are this worker's to store now."""
        with self._guard:
            mine = set(digests) - self._claimed
            self._claimed |= mine
        known: set[Digest] = set()
        for digest, row in self.catalog.find_blobs(mine).items():
            if self._is_readable(row):
                known.add(digest)
            elif row.state == LIVE:  # its segment is gone or damaged, so the new copy takes its place
                self.catalog.quarantine(digest, row.place)
        with self._guard:
            self.reused |= known
        return mine - known

    def _is_readable(self, row: BlobRow) -> bool:
        return row.state == LIVE and self.segments.reaches(row.place)

    def _write(self, parts: list[tuple[Digest, memoryview, Cut]]) -> None:
        drafts: list[Draft] = []
        for (digest, plain, cut), (slot, key) in zip(parts, self.slots.take(len(parts)), strict=True):
            codec: Codec = choose(self.codec, cut.dtype, plain[:SAMPLE_MAX_BYTES])
            drafts.append(draft_record(self.keys, slot, key, KIND_BLOB, digest, plain, codec, cut.frame_bytes))
        total = sum(draft.record_bytes for draft in drafts)
        with self._guard:
            if self.room_bytes is not None:
                self.room_bytes -= total
                if self.room_bytes < 0:
                    raise NoRoom("quota", "the tenant's quota would be exceeded")
        reservation = self.writer.reserve(total).use(self._buffers.take(WRITE_BUFFER_BYTES, "write"))
        places = {draft.digest: draft.seal_into(reservation) for draft in drafts}
        reservation.finish()
        with self._guard:
            self.written.update(places)
