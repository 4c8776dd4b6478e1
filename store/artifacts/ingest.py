"""Ingest: bytes of files become blobs in segments, each stored once.

Each worker runs a group of blobs to completion: read, hash, look up, encode, seal, write. A group is read into
private memory once, so that the digest and the ciphertext are of the same bytes whatever happens to the file.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from ...formats.catalog import LIVE, BlobRow, Place
from ...formats.codec import SAMPLE_MAX_BYTES, Codec, choose
from ...formats.digest import Digest, digest_bytes
from ...formats.frames import WEIGHT_FRAME_BYTES
from ...formats.record import KIND_BLOB
from ...formats.tensor import TensorSpan, cut_span
from ..catalog.catalog import Catalog
from ..disk import make_buffer
from ..errors import NoRoom
from ..progress import Progress
from ..segments.fetch import workers_count
from ..segments.key_supply import SlotSupply
from ..segments.records import Draft, TenantKeys, draft_record
from ..segments.writer import SegmentReader, SegmentWriter, staging_buffer
from .inputs import InputFile, Source

_GROUP_BYTES = 16 << 20
# A worker holds a group (up to one blob of 64 MiB) and its staging buffer: four stay under 300 MB.
_WORKERS_MAX = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """One blob to be: its length, the dtype if it is a whole tensor's or part of one, and what is readable alone."""

    length: int
    dtype: str | None
    frame_bytes: int = WEIGHT_FRAME_BYTES


@dataclass(frozen=True, slots=True)
class Group:
    """Blobs that lie one after the other in a file, small enough to be worked on in one piece."""

    source: Source
    offset: int
    cuts: tuple[Cut, ...]

    @property
    def length(self) -> int:
        return sum(cut.length for cut in self.cuts)

    def parts(self, plain: memoryview) -> list[memoryview]:
        """Return the group's bytes as its blobs."""
        ends = list(accumulate(cut.length for cut in self.cuts))
        return [plain[start:stop] for start, stop in pairwise([0, *ends])]


def cut_file(file: InputFile) -> Iterator[Cut]:
    """Yield the blobs of a file in order: tensors by their own rule, what lies between them plainly."""
    at = 0
    for span in (*sorted(file.spans, key=lambda span: span.start), None):
        start = span.start if span else file.source.size
        if start < at:
            continue  # shares bytes with a tensor before it, which are cut already
        gap = TensorSpan("", "U8", (start - at,), at, start - at)
        yield from (Cut(length, None) for length in cut_span(gap))
        at = start
        if span:
            yield from (Cut(length, span.dtype) for length in cut_span(span))
            at += span.length


def group_cuts(source: Source, cuts: Iterable[Cut]) -> Iterator[Group]:
    """Yield cuts of one file in groups of about 16 MiB, or one blob where it is larger."""
    offset, size, waiting = 0, 0, list[Cut]()
    for cut in cuts:
        if waiting and size + cut.length > _GROUP_BYTES:
            yield Group(source, offset, tuple(waiting))
            offset, size, waiting = offset + size, 0, []
        waiting.append(cut)
        size += cut.length
    if waiting:
        yield Group(source, offset, tuple(waiting))


@dataclass(slots=True)
class Ingest:
    """One run of storing blobs; `written` and `reused` say what became of them."""

    catalog: Catalog
    keys: TenantKeys
    writer: SegmentWriter
    slots: SlotSupply
    segments: SegmentReader
    codec: str
    progress: Progress
    room_bytes: int | None  # of the tenant's quota; None is no quota
    written: dict[Digest, Place] = field(default_factory=dict)
    reused: set[Digest] = field(default_factory=set)
    _total_bytes: int = 0
    _all_known: bool = False  # the group that was read last was stored already
    _claimed: set[Digest] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

    def run(self, groups: Sequence[Group]) -> list[list[Digest]]:
        """Store what is missing of every group; return the digests of each, in order. Not durable yet."""
        self._total_bytes = sum(group.length for group in groups)
        workers = min(workers_count() + 1, _WORKERS_MAX, max(len(groups), 1))
        pool = ThreadPoolExecutor(workers)
        try:
            return list(pool.map(self._store_group, groups))
        finally:
            pool.shutdown(cancel_futures=True)

    def keep(self) -> None:
        """Take what was written into the catalog, needed by nothing yet; durable on return."""
        self.catalog.adopt(dict(self.written), self.writer.sync())
        self.settle()

    def settle(self, *needed: int) -> None:
        """End the loan of keys: of what was written the catalog needs its own copies; `needed` are slots besides."""
        self.slots.settle(self.catalog.live_slots(self.written).union(needed))

    @property
    def stored_bytes(self) -> int:
        """Bytes that the new records take on disk."""
        return sum(place.record_bytes for place in self.written.values())

    def _store_group(self, group: Group) -> list[Digest]:
        # While nothing was missing so far, chances are that nothing is here: a look in place costs half a reading.
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
        """Read a group and store what is missing of it; return its digests."""
        plain = self._buffer(group.length)
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
        """Return those that neither the catalog nor another worker has; they are this worker's now."""
        with self._guard:
            mine = set(digests) - self._claimed
            self._claimed |= mine
        known: set[Digest] = set()
        for digest, row in self.catalog.find_blobs(mine).items():
            if self._is_readable(row):
                known.add(digest)
            elif row.state == LIVE:  # its segment is gone or damaged: the copy stored now takes its place
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
        extent = self.writer.extent(total).use(self._staging())
        places = {draft.digest: draft.seal_into(extent) for draft in drafts}
        extent.finish()
        with self._guard:
            self.written.update(places)

    def _buffer(self, length: int) -> memoryview:
        held: memoryview | None = getattr(self._local, "buffer", None)
        if held is None or len(held) < length:
            held = self._local.buffer = memoryview(make_buffer(max(length, _GROUP_BYTES)))
        return held[:length]

    def _staging(self) -> memoryview:
        held: memoryview | None = getattr(self._local, "staging", None)
        if held is None:
            held = self._local.staging = staging_buffer()
        return held
