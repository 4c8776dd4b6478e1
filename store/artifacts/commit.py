"""Commit: a manifest becomes the newest version of a name. One version record, one sync, one transaction.

Nothing of a version is visible before the transaction, and everything is durable after it.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from ...formats.catalog import Place, VersionRow
from ...formats.codec import Codec
from ...formats.digest import Digest, digest_bytes
from ...formats.identity import Identity, KeyId
from ...formats.manifest import MANIFEST_MAX_BYTES, Manifest
from ...formats.record import KIND_VERSION
from ..catalog.catalog import Catalog
from ..catalog.changes import BlobGone, NewVersion, Superseded
from ..catalog.key_slots import SlotLedger
from ..catalog.leases import Lease, Leases
from ..disk import make_buffer
from ..errors import BadInput, Conflict, NoRoom, StoreError
from ..keys.tenant_keys import TenantKeys
from ..progress import Progress
from ..segments.key_supply import SlotSupply
from ..segments.reader import SegmentReader
from ..segments.records import draft_record
from ..segments.writer import WRITE_BUFFER_BYTES, SegmentWriter
from .ingest import Ingest
from .names import Names, Summary
from .refs import Ref

CODECS = ("auto", "stored", "zstd", "plane")
ATTEMPTS_COUNT = 100
_VERSION_FRAME_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PutResult:
    """What a put did. `conflict` is the identity that stands for other bytes already."""

    summary: Summary
    bytes_in: int
    bytes_stored: int
    blobs_new: int
    blobs_reused: int
    conflict: KeyId | None = None


@dataclass(frozen=True, slots=True)
class PutParts:
    """The mechanisms a put works with."""

    catalog: Catalog
    keys: TenantKeys
    names: Names
    segments: SegmentReader
    ledger: SlotLedger
    leases: Leases
    open_writer: Callable[[str], SegmentWriter]
    now: Callable[[], datetime]
    recover: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants of a put: the name, kind and identity, and how the blobs are stored."""

    ref: Ref
    kind: str
    identity: Identity
    codec: str = "auto"
    pinned: bool = False
    multi_writer: bool = False
    lock_wait_s: float = 0.0
    join: bool = False

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise BadInput(f"codec {self.codec[:80]!r}", f"is not known, wanted one of {', '.join(CODECS)}")


def owning(parts: PutParts, wish: Wish) -> contextlib.AbstractContextManager[Lease | None]:
    """Return the lease on the name. With several writers there is none, and their commits compare and swap."""
    if wish.multi_writer:
        return contextlib.nullcontext()
    return parts.leases.hold(parts.catalog.scope(wish.ref.name), "put", wish.lock_wait_s)


@contextlib.contextmanager
def storing(parts: PutParts, wish: Wish, progress: Progress) -> Iterator[Ingest]:
    """Give what stores blobs for one attempt at a commit.

    If the attempt fails, the blobs that it finished stay in the store, and the next put reuses them. If the disk or
    the quota is full they are released instead.
    """
    quota = parts.keys.tenant.quota_bytes
    slots = SlotSupply(parts.keys.keyring, parts.ledger, parts.keys.number, encrypted=parts.keys.encrypted)
    room = quota - parts.catalog.usage_bytes() if quota else None
    with contextlib.closing(parts.open_writer(wish.kind)) as writer:
        ingest = Ingest(parts.catalog, parts.keys, writer, slots, parts.segments, wish.codec, progress, room)
        try:
            yield ingest
        except BaseException as error:
            with contextlib.suppress(StoreError):
                if isinstance(error, NoRoom):
                    ingest.end_loan()
                else:
                    ingest.keep()
            raise


def commit(parts: PutParts, ingest: Ingest, manifest: Manifest, wish: Wish, lease: Lease | None) -> PutResult | None:
    """Write the version record, sync once and commit. If another writer was first, try again with the next number.

    Returns None if a blob that it reuses was collected meanwhile. The written blobs are kept then, and the caller
    stores the rest again. Raises Conflict if the label is taken by other content. Durable on return.
    """
    manifest_id = manifest.id(parts.keys.tenant.digest_key)
    needs = manifest.needs()
    for _ in range(ATTEMPTS_COUNT):
        version = parts.catalog.last_version(wish.ref.name) + 1  # read before the label, because the commit compares it
        same = parts.names.check_free(wish.ref, manifest_id)
        if same:
            # Blobs that were bad are healed by the new copies, and a pin that was asked for is set.
            ingest.keep()
            if wish.pinned:
                parts.names.set_pinned(f"{wish.ref.name}@{wish.ref.label}", pinned=True)
            return PutResult(same.summary, manifest.plain_bytes, 0, 0, len(needs.blobs))
        created = parts.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        model = dict(manifest.identity).get("model")
        name, label, size = wish.ref.name, wish.ref.label, manifest.plain_bytes
        summary = Summary(name, version, label, manifest_id.hex(), wish.kind, model, size, created, wish.pinned)
        place, key = _write_version(ingest, manifest, summary)
        row = VersionRow(place, wish.pinned, summary.sealed(key))
        durable = ingest.writer.sync()
        quota = parts.keys.tenant.quota_bytes
        new = NewVersion(wish.ref.name, version, row, needs, ingest.written, durable, quota, lease, wish.join)
        try:
            conflict = parts.catalog.commit(new)
        except Superseded:
            continue
        except BlobGone:
            ingest.keep()  # the next attempt sees these blobs as reused, and would doom their keys
            return None
        ingest.end_loan(place.slot)
        stored = ingest.stored_bytes + place.record_bytes
        return PutResult(summary, manifest.plain_bytes, stored, len(ingest.written), len(ingest.reused), conflict)
    raise Conflict(wish.ref.name, "other writers kept adding versions; try again")


def kept_being_collected(wish: Wish) -> Conflict:
    """Return the error of a put whose blobs were collected at every attempt."""
    return Conflict(wish.ref.name, "blobs it needs kept being collected; try again")


def _write_version(ingest: Ingest, manifest: Manifest, summary: Summary) -> tuple[Place, bytes | None]:
    body: Mapping[str, object] = {
        "name": summary.name,
        "version": summary.version,
        "label": summary.label,
        "created": summary.created,
        "manifest": json.loads(manifest.packed()),
    }
    packed = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    if len(packed) > MANIFEST_MAX_BYTES:
        raise BadInput(summary.name, f"its tables take {len(packed)} bytes, at most {MANIFEST_MAX_BYTES} are allowed")
    [(slot, key)] = ingest.slots.take(1)
    digest: Digest = digest_bytes(ingest.keys.tenant.digest_key, packed)
    draft = draft_record(
        ingest.keys, slot, key, KIND_VERSION, digest, memoryview(packed), Codec.ZSTD, _VERSION_FRAME_BYTES
    )
    reservation = ingest.writer.reserve(draft.record_bytes).use(memoryview(make_buffer(WRITE_BUFFER_BYTES)))
    place = draft.seal_into(reservation)
    reservation.finish()
    return place, key
