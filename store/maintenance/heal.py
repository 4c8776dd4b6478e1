"""Heal: stores blobs that a scrub found bad anew, from staged copies."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace

from ...formats.digest import Digest, digest_bytes
from ...formats.manifest import Manifest
from ..artifacts.artifact import FILE_PREFIX
from ..artifacts.commit import PutParts
from ..artifacts.cuts import Cut, group_cuts
from ..artifacts.ingest import Ingest
from ..artifacts.sources import MemorySource
from ..artifacts.tensor_names import TensorNames
from ..disk import make_buffer
from ..errors import Corrupt, NotFound, StorageFailed
from ..progress import ignore_progress
from ..segments.key_supply import SlotSupply
from ..staging.tenant_tiers import Tiers
from ..tiers.arena import Arena
from ..tiers.tier import Held
from .scrub import Scrubbed


def heal(tiers: Tiers, parts: PutParts, scrubbed: Scrubbed) -> Scrubbed:
    """Store bad blobs anew, durably, from whatever tier has a staged copy; return what is bad still."""
    for arena in tiers.arenas.present()[0]:
        scrubbed = _heal_from(arena, parts, scrubbed) if scrubbed.corrupt else scrubbed
    return scrubbed


def _heal_from(tier: Arena, parts: PutParts, scrubbed: Scrubbed) -> Scrubbed:
    """Store bad blobs anew, durably, from the staged artifacts of one tier; return what is bad still.

    A copy is used only if it has the digest of the blob.
    """
    wanted = {bad.digest for bad in scrubbed.corrupt if bad.digest}
    names = dict.fromkeys(name for bad in scrubbed.corrupt if bad.digest for name in bad.artifacts)
    copies = _find_copies(parts, tier, wanted, names)
    if copies:
        _store(parts, list(copies.values()))
    left = tuple(bad for bad in scrubbed.corrupt if bad.digest not in copies)
    healed = tuple(bad.what for bad in scrubbed.corrupt if bad.digest in copies)
    return replace(scrubbed, corrupt=left, healed=scrubbed.healed + healed)


def _find_copies(parts: PutParts, tier: Arena, wanted: Set[Digest], names: Iterable[str]) -> dict[Digest, memoryview]:
    """Return good copies of wanted blobs by digest, from the staged artifacts of these names."""
    copies: dict[Digest, memoryview] = {}
    for name in names:
        with contextlib.suppress(Corrupt, NotFound, StorageFailed):
            version = parts.names.resolve(name)
            if extent := tier.hold(version.summary.id, 0.0):
                for digest, plain in _copies(parts.names.manifest(version), extent, wanted - copies.keys()):
                    if digest_bytes(parts.keys.tenant.digest_key, plain) == digest:
                        copies[digest] = plain
    return copies


def _copies(manifest: Manifest, extent: Held, wanted: Set[Digest]) -> Iterator[tuple[Digest, memoryview]]:
    """Yield the staged bytes of wanted blobs. KV is staged in another layout, so it yields none."""
    spans = {span.name: span for span in extent.spans}
    tensors = TensorNames(manifest)
    for number, file in enumerate(manifest.files if not manifest.shape else ()):
        ranges = [(FILE_PREFIX + file.path, 0, file.size)] + [
            (name, tensor.span.start, tensor.span.length) for name, tensor in tensors.items() if tensor.file == number
        ]
        at = 0
        for blob in (manifest.blobs[n] for n in file.blobs):
            for name, start, length in ranges if blob.digest in wanted else ():
                if name in spans and start <= at and at + blob.length <= start + length:
                    copy = memoryview(make_buffer(blob.length))
                    with contextlib.suppress(Corrupt):  # other bytes of it may be good
                        extent.read(spans[name].start + at - start, copy)
                        yield blob.digest, copy
            at += blob.length


def _store(parts: PutParts, copies: Sequence[memoryview]) -> None:
    slots = SlotSupply(parts.keys.keyring, parts.ledger, parts.keys.number, encrypted=parts.keys.encrypted)
    with contextlib.closing(parts.open_writer("weights")) as writer:
        ingest = Ingest(parts.catalog, parts.keys, writer, slots, parts.segments, "auto", ignore_progress, None)
        try:
            ingest.run(list(group_cuts(MemorySource(copies), (Cut(len(plain), None) for plain in copies))))
        finally:
            ingest.keep()  # if the disk fills up, the blobs that were stored by then are healed
