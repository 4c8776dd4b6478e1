"""Records: one tenant's view of what lies in segments. Seals on the way in, opens and checks on the way out."""

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from ..formats.catalog import Place, place_of
from ..formats.codec import Codec, decode, encode
from ..formats.digest import Digest
from ..formats.errors import FormatError
from ..formats.frames import TAG_BYTES, Binding, Frames, frames_of
from ..formats.keypage import Tenant
from ..formats.record import (
    AES_256_GCM,
    ALIGN_BYTES,
    HEADER_BYTES,
    PLAIN,
    Footer,
    Header,
    open_footer,
    seal_footer,
    stored_payload_bytes,
)
from .errors import Corrupt
from .keyring import Keyring
from .segments import Extent, SegmentReader

_MISSING = "is missing: its segment was not there when the catalog was made anew"


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """The tenant at work: its number, its own keys, and where its record keys are."""

    number: int
    tenant: Tenant
    keyring: Keyring
    encrypted: bool

    def key(self, place: Place) -> bytes | None:
        """Return the key of a record, None where it is plain.

        Raises Corrupt if the key is gone, or if the record is not protected as this store protects its records.
        """
        if place.is_missing:
            raise Corrupt("record", _MISSING)
        if (place.protection == PLAIN) == self.encrypted:
            where = f"record in segment {place.segment:016x} at byte {place.offset}"
            raise Corrupt(where, "plain in an encrypted store, or encrypted in a plain one")
        if place.protection == PLAIN:
            return None
        return self.keyring.key(self.number, place.slot)


@dataclass(frozen=True, slots=True)
class Draft:
    """A record ready to be sealed: its frames are encoded, so that its length is known."""

    digest: Digest
    header: Header
    frames: Frames
    encoded: Sequence[bytes | memoryview]

    @property
    def record_bytes(self) -> int:
        return self.header.record_bytes

    def seal_into(self, extent: Extent) -> Place:
        """Seal the record into the next bytes of an extent and return where it went."""
        start = extent.position
        extent.window(HEADER_BYTES)[:] = self.header.packed(self.frames)
        for index, frame in enumerate(self.encoded):
            self.frames.seal_into(index, frame, extent.window(len(frame) + TAG_BYTES))
        lengths = [len(frame) for frame in self.encoded] if self.header.binding.codec else None
        sealed = seal_footer(self.frames, self.digest, lengths)
        extent.window(len(sealed))[:] = sealed
        extent.pad()
        return place_of(extent.segment, start, self.header)


def draft_record(
    keys: TenantKeys, slot: int, key: bytes | None, kind: int, digest: Digest, plain: memoryview, codec: Codec,
    frame_bytes: int,
) -> Draft:  # fmt: skip
    """Encode `plain` (at least one byte) as a record of its own key."""
    instance = secrets.token_bytes(16)
    binding = Binding(keys.tenant.id, instance, kind, int(codec), frame_bytes, len(plain))
    parts = [plain[at : at + frame_bytes] for at in range(0, len(plain), frame_bytes)]
    encoded: Sequence[bytes | memoryview] = parts
    payload = stored_payload_bytes(binding)
    if codec != Codec.STORED:
        encoded = [encode(codec, part) for part in parts]
        payload = sum(len(part) + TAG_BYTES for part in encoded)
    frames = frames_of(key, binding)
    header = Header(binding, PLAIN if key is None else AES_256_GCM, payload, slot, frames.commitment)
    return Draft(digest, header, frames, encoded)


class OpenRecord:
    """One record in place: its key is at hand, its bytes are mapped, nothing of it is trusted yet."""

    def __init__(self, segments: SegmentReader, keys: TenantKeys, place: Place, kind: int) -> None:
        bare = place.header(keys.tenant.id, kind)
        self.frames = frames_of(keys.key(place), bare.binding)
        self.header = place.header(keys.tenant.id, kind, self.frames.commitment)
        self.place = place
        self._segments = segments
        self._mapped = segments.view(place.segment, place.offset, self.header.record_bytes)
        self._footer: Footer | None = None

    def will_need(self, first: int, stop: int) -> None:
        """Ask the kernel to start reading the frames [first, stop), footer and header of the record included."""
        bound = self.header.binding
        grain = bound.frame_bytes + TAG_BYTES if bound.codec == Codec.STORED else bound.frame_bytes
        length = min((stop - first) * grain + ALIGN_BYTES, self.header.record_bytes - first * grain)
        if length > 0:  # encoded frames are shorter than they will be, and so may be the whole record
            self._segments.will_need(self.place.segment, self.place.offset + first * grain, length)

    def footer(self) -> Footer:
        """Return the checked footer; raise FormatError if it is bad."""
        if self._footer is None:
            start = HEADER_BYTES + self.header.payload_bytes
            sealed = self._mapped[start : start + self.header.footer_bytes]
            self._footer = open_footer(self.header, self.frames, sealed)
        return self._footer

    def check_ends(self, digest: Digest) -> None:
        """Raise FormatError unless header and footer are this record's and name `digest`."""
        if bytes(self._mapped[:HEADER_BYTES]) != self.header.packed(self.frames):
            raise FormatError("record header is not the one that was written")
        if self.footer().digest != digest:
            raise FormatError("record holds another blob")

    def check_padding(self) -> None:
        """Raise FormatError unless the record ends in zeros."""
        if any(self._mapped[self.header.used_bytes :]):
            raise FormatError("record padding is not zero")

    def check(self, digest: Digest, digest_key: bytes | None = None) -> None:
        """Raise FormatError unless every byte of the record is as written, from header to padding.

        With `digest_key` the plaintext is hashed as well.
        """
        self.check_ends(digest)
        self.check_padding()
        hasher = blake3(key=digest_key) if digest_key else None
        bound = self.header.binding
        for index in range(bound.frames_count):
            out = _plain(bound.frame_length(index))
            self.read(index, 0, len(out), out)
            if hasher:
                hasher.update(out)
        if hasher and hasher.digest() != digest:
            raise FormatError("plaintext has another digest")

    def read(self, index: int, start: int, stop: int, out: memoryview) -> int:
        """Put bytes [start, stop) of frame `index` into `out`, verified; return the sealed bytes that were read."""
        bound = self.header.binding
        length = bound.frame_length(index)
        if bound.codec == Codec.STORED:
            at = HEADER_BYTES + index * (bound.frame_bytes + TAG_BYTES)
            sealed = self._mapped[at : at + length + TAG_BYTES]
        else:
            offsets = self.footer().offsets
            sealed = self._mapped[HEADER_BYTES + offsets[index] : HEADER_BYTES + offsets[index + 1]]
        if bound.codec == Codec.STORED and stop - start == length:
            self.frames.open_into(index, sealed, out)
            return len(sealed)
        opened = _scratch(len(sealed) - TAG_BYTES)
        self.frames.open_into(index, sealed, opened)
        if bound.codec != Codec.STORED:
            whole = out if stop - start == length else memoryview(bytearray(length))
            decode(bound.codec, opened, whole)
            opened = whole
        if opened is not out:
            out[:] = opened[start:stop]
        return len(sealed)

    def read_all(self) -> bytes:
        """Return the whole plaintext of a record, every frame opened."""
        out = bytearray(self.header.binding.plain_bytes)
        step = self.header.binding.frame_bytes
        for index in range(self.header.binding.frames_count):
            part = memoryview(out)[index * step : (index + 1) * step]
            self.read(index, 0, len(part), part)
        return bytes(out)


# Scratch memory is reused because fresh memory costs more to touch than a frame costs to decrypt; one a thread,
# because threads decrypt at the same time.
_local = threading.local()


def _scratch(length: int) -> memoryview:
    return _reused("scratch", length)


def _plain(length: int) -> memoryview:
    return _reused("plain", length)


def _reused(name: str, length: int) -> memoryview:
    held: bytearray = getattr(_local, name, bytearray())
    if len(held) < length:
        held = bytearray(max(length, 1 << 20))
        setattr(_local, name, held)
    return memoryview(held)[:length]


def corrupt(place: Place, digest: Digest | None, why: object) -> Corrupt:
    """Return the error that names a bad record by its place."""
    name = f"blob {digest.hex()[:16]}" if digest else "version record"
    if place.is_missing:
        return Corrupt(name, _MISSING)
    return Corrupt(f"{name} in segment {place.segment:016x} at byte {place.offset}", str(why))
