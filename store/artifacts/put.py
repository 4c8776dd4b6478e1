"""Put: inputs to one committed version. Blobs first, then the version record, one sync, one commit."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from ...formats.catalog import LIVE, Place, VersionRow
from ...formats.codec import Codec
from ...formats.digest import Digest, digest_bytes
from ...formats.identity import Identity, KeyId, identity_key, key_id
from ...formats.manifest import MANIFEST_MAX_BYTES, BlobName, Claim, Manifest, StoredFile, Tensor
from ...formats.record import KIND_VERSION
from ..catalog.catalog import BlobGone, Catalog, NewVersion, Superseded
from ..catalog.key_slots import SlotLedger
from ..catalog.leases import Lease, Leases
from ..errors import BadInput, Conflict, Corrupt, NoRoom, StoreError
from ..progress import Progress
from ..segments.key_supply import SlotSupply
from ..segments.records import TenantKeys, draft_record
from ..segments.writer import SegmentReader, SegmentWriter, staging_buffer
from .ingest import Group, Ingest, cut_file, group_cuts
from .inputs import Inputs
from .model_identity import add_weights
from .names import Names, Summary
from .refs import Ref

CODECS = ("auto", "stored", "zstd", "plane")
_VERSION_FRAME_BYTES = 1 << 20
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Stored:
    """What a put did."""

    summary: Summary
    bytes_in: int
    bytes_stored: int
    blobs_new: int
    blobs_reused: int
    conflict: KeyId | None = None  # the identity that stands for other bytes already


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


@dataclass(frozen=True, slots=True)
class Wish:
    """How the artifact is to be kept."""

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


def put_inputs(parts: PutParts, inputs: Inputs, wish: Wish, progress: Progress) -> Stored:
    """Store an artifact and make it the newest version of its name; durable on return.

    Raises Conflict if the label is taken by other content, NoRoom if disk or quota is full.
    If it fails or is killed nothing is visible; blobs that were whole are reused by the next put.
    """
    return put_made(parts, wish, progress, lambda ingest: _ingest(ingest, inputs, wish))


def put_made(parts: PutParts, wish: Wish, progress: Progress, make: Callable[[Ingest], Manifest]) -> Stored:
    """Make an artifact the newest version of its name, durably; `make` stores its blobs and says what it is.

    Raises as `put_inputs`, and Conflict if its identity stands for other bytes already: both are kept then, and the
    identity leads to those that were first.
    """
    stored = _until_committed(parts, wish, progress, make)
    if stored.conflict:
        where = f"{stored.summary.name}@{stored.summary.version}"
        why = f"is stored, but its identity ({stored.conflict.hex()[:16]}) stands for other bytes, which were first"
        raise Conflict(
            where, why, hint="both are kept; remove one and run 'repair', or say the field that tells them apart"
        )
    return stored


def commit_manifest(parts: PutParts, manifest: Manifest, wish: Wish) -> Stored:
    """Give a manifest whose blobs are all stored a further name; durable on return. This is `tag`.

    Nothing happens if that name's newest version is this manifest already.
    """
    newest = parts.names.versions(wish.ref.name)[-1:]
    if newest and not wish.ref.label and newest[0].summary.id == manifest.id(parts.keys.tenant.digest_key).hex():
        return Stored(newest[0].summary, manifest.plain_bytes, 0, 0, len(manifest.blobs))
    rows = parts.catalog.find_blobs(blob.digest for blob in manifest.blobs)
    if any(blob.digest not in rows or rows[blob.digest].state != LIVE for blob in manifest.blobs):
        raise Corrupt(wish.ref.name, "a blob that it needs is missing or bad", hint="put it again from its source")
    return _until_committed(parts, wish, lambda *_: None, lambda _: manifest)


def _until_committed(parts: PutParts, wish: Wish, progress: Progress, make: Callable[[Ingest], Manifest]) -> Stored:
    quota = parts.keys.tenant.quota_bytes
    slots = SlotSupply(parts.keys.keyring, parts.ledger, parts.keys.number, encrypted=parts.keys.encrypted)
    with _owning(parts, wish) as lease:
        for _ in range(_ATTEMPTS):
            writer = parts.open_writer(wish.kind)
            room = quota - parts.catalog.usage_bytes() if quota else None
            ingest = Ingest(parts.catalog, parts.keys, writer, slots, parts.segments, wish.codec, progress, room)
            with contextlib.closing(writer), _kept_for_next_time(ingest):
                manifest = make(ingest)
                try:
                    return _commit(parts, ingest, manifest, wish, lease)
                except BlobGone:
                    ingest.keep()  # the next attempt only sees these blobs as reused, and would doom their keys
    raise Conflict(wish.ref.name, "blobs it needs kept being collected; try again")


def _owning(parts: PutParts, wish: Wish) -> contextlib.AbstractContextManager[Lease | None]:
    """Return the lease on the name; none where several writers were asked for, whose commits compare and swap."""
    if wish.multi_writer:
        return contextlib.nullcontext()
    return parts.leases.hold(parts.catalog.scope(wish.ref.name), "put", wish.lock_wait_s)


def _ingest(ingest: Ingest, inputs: Inputs, wish: Wish) -> Manifest:
    """Store the blobs of every file and return the manifest that names them."""
    groups: list[Group] = []
    counts: list[int] = []
    cuts = [list(cut_file(file)) for file in inputs.files]
    for file, cut in zip(inputs.files, cuts, strict=True):
        found = list(group_cuts(file.source, cut))
        groups += found
        counts.append(len(found))
    digests = iter(ingest.run(groups))
    numbers: dict[BlobName, int] = {}
    files: list[StoredFile] = []
    by_file = [[digest for _ in range(count) for digest in next(digests)] for count in counts]
    for file, cut, of_file in zip(inputs.files, cuts, by_file, strict=True):
        blobs = [BlobName(digest, one.length) for digest, one in zip(of_file, cut, strict=True)]
        used = tuple(numbers.setdefault(blob, len(numbers)) for blob in blobs)
        files.append(StoredFile(file.path, file.mode, file.source.size, file.format, used))
    tensors = (Tensor(n, span) for n, file in enumerate(inputs.files) for span in file.spans)
    identity = wish.identity
    if wish.kind == "weights" and "config" in dict(identity) and not inputs.single:  # a model that describes itself
        by_name = zip(inputs.files, cuts, by_file, strict=True)
        identity = add_weights(identity, ingest.keys.tenant.digest_key, inputs, by_name)
    claims: tuple[Claim, ...] = ()
    if wish.kind == "intermediate" and {"model", "sequence"} <= dict(wish.identity).keys():
        # What was computed from named inputs: the same inputs must not lead to other bytes unseen.
        key = identity_key(ingest.keys.tenant.digest_key)
        claims = (Claim(key_id(key, wish.kind, wish.identity), 0, ()),)
    return Manifest(
        wish.kind, identity, inputs.single, inputs.directories, tuple(files), tuple(tensors), tuple(numbers), claims
    )


def _commit(parts: PutParts, ingest: Ingest, manifest: Manifest, wish: Wish, lease: Lease | None) -> Stored:
    """Write the version record, sync once, commit; again with the next number while other writers are first."""
    manifest_id = manifest.id(parts.keys.tenant.digest_key)
    needs = manifest.needs()
    for _ in range(_ATTEMPTS):
        version = parts.catalog.last_version(wish.ref.name) + 1  # before the label is looked at: the commit compares it
        there = parts.names.check_free(wish.ref, manifest_id)
        if there:
            # What was bad and is written anew heals; a pin that was asked for holds.
            ingest.keep()
            if wish.pinned:
                parts.names.set_pinned(f"{wish.ref.name}@{wish.ref.label}", pinned=True)
            return Stored(there.summary, manifest.plain_bytes, 0, 0, len(needs.blobs))
        created = parts.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        summary = Summary(
            wish.ref.name, version, wish.ref.label, manifest_id.hex(), wish.kind, dict(manifest.identity).get("model"),
            manifest.plain_bytes, created, wish.pinned,
        )  # fmt: skip
        place, key = _write_version(ingest, manifest, summary)
        row = VersionRow(place, wish.pinned, summary.sealed(key))
        durable = ingest.writer.sync()
        quota = parts.keys.tenant.quota_bytes
        with contextlib.suppress(Superseded):
            conflict = parts.catalog.commit(
                NewVersion(wish.ref.name, version, row, needs, ingest.written, durable, quota, lease, wish.join)
            )
            ingest.settle(place.slot)
            stored = ingest.stored_bytes + place.record_bytes
            return Stored(summary, manifest.plain_bytes, stored, len(ingest.written), len(ingest.reused), conflict)
    raise Conflict(wish.ref.name, "other writers kept adding versions; try again")


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
    extent = ingest.writer.extent(draft.record_bytes).use(staging_buffer())
    place = draft.seal_into(extent)
    extent.finish()
    return place, key


@contextlib.contextmanager
def _kept_for_next_time(ingest: Ingest) -> Iterator[None]:
    """If storing fails, keep the blobs that were written whole; where there is no room for them, let them go."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(StoreError):
            if isinstance(error, NoRoom):
                ingest.settle()
            else:
                ingest.keep()
        raise
