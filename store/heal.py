"""Heal: blobs that a scrub found bad, stored anew from copies that are staged in the host tier."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from ..formats.digest import Digest, digest_bytes
from ..formats.manifest import Manifest
from .artifact import FILE_PREFIX
from .errors import Corrupt, NotFound
from .ingest import Cut, Group, Ingest
from .inputs import MemorySource
from .put import PutParts
from .scrub import Bad, Scrubbed
from .select import tensor_names
from .supply import SlotSupply
from .tiers.extent import Extent
from .tiers.host import HostTier


def heal(parts: PutParts, tier: HostTier, scrubbed: Scrubbed) -> Scrubbed:
    """Store bad blobs anew, durably, from staged artifacts that hold them; return what is bad still.

    A copy counts only if its digest is the blob's: what is staged is trusted no more than what is stored.
    """
    left: list[Bad] = []
    healed: list[str] = []
    for bad in scrubbed.corrupt:
        plain = _find_copy(parts, tier, bad)
        if plain is None:
            left.append(bad)
        else:
            _store(parts, plain)
            healed.append(bad.what)
    return replace(scrubbed, corrupt=tuple(left), healed=tuple(healed))


def _find_copy(parts: PutParts, tier: HostTier, bad: Bad) -> memoryview | None:
    for name in bad.artifacts if bad.digest else ():
        with contextlib.suppress(Corrupt, NotFound):
            found = parts.names.resolve(name)
            manifest, extent = parts.names.manifest(found), tier.hold(found.summary.id, 0.0)
            for plain in _copies(manifest, extent, bad.digest) if extent else ():
                if digest_bytes(parts.keys.tenant.digest_key, plain) == bad.digest:
                    return plain
    return None


def _copies(manifest: Manifest, extent: Extent, digest: Digest | None) -> Iterator[memoryview]:
    """Yield the staged bytes that stand where an artifact has a blob; of KV, which is staged otherwise, none."""
    spans = {span.name: span for span in extent.spans}
    for number, file in enumerate(manifest.files if not manifest.shape else ()):
        ranges = [(FILE_PREFIX + file.path, 0, file.size)] + [
            (name, one.span.start, one.span.length)
            for name, one in tensor_names(manifest).items()
            if one.file == number
        ]
        at = 0
        for blob in (manifest.blobs[n] for n in file.blobs):
            for name, start, length in ranges if blob.digest == digest else ():
                if name in spans and start <= at and at + blob.length <= start + length:
                    yield extent.bytes_of(spans[name])[at - start : at - start + blob.length]
            at += blob.length


def _store(parts: PutParts, plain: memoryview) -> None:
    slots = SlotSupply(parts.keys.keyring, parts.ledger, parts.keys.number, encrypted=parts.keys.encrypted)
    with contextlib.closing(parts.open_writer("weights")) as writer:
        ingest = Ingest(parts.catalog, parts.keys, writer, slots, parts.segments, "auto", lambda *_: None, None)
        ingest.run([Group(MemorySource([plain]), 0, (Cut(len(plain), None),))])
        parts.catalog.adopt(dict(ingest.written), writer.sync())
        slots.settle(parts.catalog.live_slots(ingest.written))
