"""Put: what a user hands over becomes one version. Blobs come first, then the version record, then the commit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.catalog import LIVE
from ...formats.identity import identity_key, key_id
from ...formats.manifest import KINDS, BlobName, Claim, Manifest, StoredFile, Tensor, Unread
from ..errors import BadInput, Conflict, Corrupt
from ..progress import Progress, ignore_progress
from .commit import ATTEMPTS_COUNT, PutParts, PutResult, Wish, commit, kept_being_collected, owning, storing
from .cuts import FileCuts, digest_files
from .identity import take_identity
from .inputs import Inputs, take_inputs
from .model_identity import add_weights, config_fields
from .names import StoredVersion
from .refs import Ref, parse_new_ref

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PutOptions:
    """The options of `Store.put` besides the name and the bytes."""

    kind: str | None = None
    identity: Mapping[str, object] | None = None
    codec: str = "auto"
    pin: bool = False
    opaque: Sequence[str] = ()
    multi_writer: bool = False
    lock_wait_s: float = 0.0


def put(
    parts: PutParts,
    path: str | Path | None,
    tensors: "Mapping[str, torch.Tensor] | None",
    name: str,
    options: PutOptions,
    progress: Progress,
) -> PutResult:
    """Store a file, a directory or tensors as the newest version of `name`; durable on return. See `Store.put`."""
    kind = options.kind
    if kind not in (None, *KINDS) or kind == "kv":
        raise BadInput(f"kind {kind[:80]!r}", "is not known, wanted weights, intermediate or file")
    ref, identity = parse_new_ref(name), take_identity(options.identity or {})
    inputs = take_inputs(path, tensors, options.opaque, look_inside=kind != "file")
    kind = kind or ("weights" if any(file.spans for file in inputs.files) else "file")
    if kind == "weights":
        identity = take_identity({**config_fields(inputs, options.opaque), **dict(identity)})
    wish = Wish(ref, kind, identity, options.codec, options.pin, options.multi_writer, options.lock_wait_s)
    parts.recover()
    return put_inputs(parts, inputs, wish, progress)


def put_inputs(parts: PutParts, inputs: Inputs, wish: Wish, progress: Progress) -> PutResult:
    """Store inputs and make them the newest version of a name; durable on return.

    Raises Conflict if the label is taken by other content, or if the identity stands for other bytes already. In the
    second case both are kept, and the identity leads to the bytes that were first. Raises NoRoom if disk or quota is
    full. If it fails or is killed nothing is visible, and the next put reuses the blobs that it finished.
    """
    with owning(parts, wish) as lease:
        for _ in range(ATTEMPTS_COUNT):
            with storing(parts, wish, progress) as ingest:
                stored = digest_files(inputs.files, ingest.run)
                manifest = _manifest(parts.keys.tenant.digest_key, inputs, stored, wish)
                inputs.check_unchanged()
                result = commit(parts, ingest, manifest, wish, lease)
            if result:
                return without_conflict(result)  # out of `storing`: a version that is committed has not failed
    raise kept_being_collected(wish)


def without_conflict(result: PutResult) -> PutResult:
    """Return what a put did; raise Conflict if its identity stands for other bytes already. Both are kept then."""
    if not result.conflict:
        return result
    where = f"{result.summary.name}@{result.summary.version}"
    why = f"is stored, but its identity ({result.conflict.hex()[:16]}) stands for other bytes, which were first"
    hint = "both are kept; remove one and run 'repair', or say the field that tells them apart"
    raise Conflict(where, why, hint=hint)


def tag(parts: PutParts, version: StoredVersion, new: str) -> PutResult:
    """Give a stored version a further name or label; durable on return, and no blob is stored.

    Nothing happens if the newest version of that name is the same artifact already.
    """
    manifest = parts.names.manifest(version)
    return tag_manifest(parts, manifest, Wish(parse_new_ref(new), version.summary.kind, manifest.identity))


def tag_manifest(parts: PutParts, manifest: Manifest, wish: Wish) -> PutResult:
    """Give a manifest whose blobs are all stored a further name; durable on return."""
    if newest := _newest_if_same(parts, manifest, wish.ref):
        return PutResult(newest.summary, manifest.plain_bytes, 0, 0, len(manifest.blobs))
    rows = parts.catalog.find_blobs(blob.digest for blob in manifest.blobs)
    if any(blob.digest not in rows or rows[blob.digest].state != LIVE for blob in manifest.blobs):
        raise Corrupt(wish.ref.name, "a blob that it needs is missing or bad", hint="put it again from its source")
    with owning(parts, wish) as lease, storing(parts, wish, ignore_progress) as ingest:
        if result := commit(parts, ingest, manifest, wish, lease):
            return result
    raise kept_being_collected(wish)


def _newest_if_same(parts: PutParts, manifest: Manifest, ref: Ref) -> StoredVersion | None:
    newest = parts.names.versions(ref.name)[-1:]
    same = newest and not ref.label and newest[0].summary.id == manifest.id(parts.keys.tenant.digest_key).hex()
    return newest[0] if same else None


def _manifest(digest_key: bytes, inputs: Inputs, stored: Sequence[FileCuts], wish: Wish) -> Manifest:
    """Return the manifest that names the blobs of every file."""
    numbers: dict[BlobName, int] = {}
    files = tuple(_stored_file(file, numbers) for file in stored)
    tensors = tuple(Tensor(number, span) for number, file in enumerate(inputs.files) for span in file.spans)
    identity = wish.identity
    if wish.kind == "weights" and "config" in dict(identity) and not inputs.single:  # a model that describes itself
        identity = add_weights(identity, digest_key, inputs, stored)
    claims = tuple(_claims(digest_key, wish))
    blobs = tuple(numbers)
    unread = tuple(
        Unread(number, left.name, left.why) for number, file in enumerate(inputs.files) for left in file.unread
    )
    return Manifest(
        wish.kind, identity, inputs.single, inputs.directories, files, tensors, blobs, claims, unread=unread
    )


def _stored_file(stored: FileCuts, numbers: dict[BlobName, int]) -> StoredFile:
    """Return a file as the manifest holds it. Blobs that are not in `numbers` get the next numbers."""
    blobs = [BlobName(digest, cut.length) for digest, cut in zip(stored.digests, stored.cuts, strict=True)]
    used = tuple(numbers.setdefault(blob, len(numbers)) for blob in blobs)
    return StoredFile(stored.file.path, stored.file.mode, stored.file.source.size, stored.file.format, used)


def _claims(digest_key: bytes, wish: Wish) -> Iterator[Claim]:
    """Yield the claim of an intermediate whose model and sequence are named. They must not lead to other bytes."""
    if wish.kind == "intermediate" and {"model", "sequence"} <= dict(wish.identity).keys():
        yield Claim(key_id(identity_key(digest_key), wish.kind, wish.identity), 0, ())
