"""Records: one blob or version as it lies in a segment. Sealed on the way in, opened and checked on the way out."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from ...formats.catalog import Place, place_of
from ...formats.codec import Codec, decode, encode
from ...formats.digest import Digest
from ...formats.errors import FormatError
from ...formats.frames import TAG_BYTES, Binding, Frames, frames_of
from ...formats.record import (
    AES_256_GCM,
    HEADER_BYTES,
    PLAIN,
    Footer,
    Header,
    open_footer,
    seal_footer,
    stored_payload_bytes,
)
from ..errors import Corrupt
from ..keys.tenant_keys import MISSING, TenantKeys
from ..workers import ThreadBuffers
from .cold_read import scratch_bytes
from .reader import SegmentReader
from .writer import Reservation


@dataclass(frozen=True, slots=True)
class Draft:
    """A record ready to be sealed. Its frames are encoded, so its length is known."""

    digest: Digest
    header: Header
    frames: Frames
    encoded: Sequence[bytes | memoryview]

    @property
    def record_bytes(self) -> int:
        return self.header.record_bytes

    def seal_into(self, reservation: Reservation) -> Place:
        """Seal the record into the next bytes of a reservation and return where it went."""
        start = reservation.position
        reservation.window(HEADER_BYTES)[:] = self.header.packed(self.frames)
        for index, frame in enumerate(self.encoded):
            self.frames.seal_into(index, frame, reservation.window(len(frame) + TAG_BYTES))
        lengths = [len(frame) for frame in self.encoded] if self.header.binding.codec else None
        sealed = seal_footer(self.frames, self.digest, lengths)
        reservation.window(len(sealed))[:] = sealed
        reservation.pad()
        return place_of(reservation.segment, start, self.header)


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
    """One record where it lies. Its key is known and its bytes are mapped, but nothing of it was checked yet."""

    def __init__(self, segments: SegmentReader, keys: TenantKeys, place: Place, kind: int) -> None:
        bare = place.header(keys.tenant.id, kind)
        self.frames = frames_of(keys.key(place), bare.binding)
        self.header = place.header(keys.tenant.id, kind, self.frames.commitment)
        self.place = place
        self._segments = segments
        self._mapped = segments.view(place.segment, place.offset, self.header.record_bytes)
        self._cold = False
        self._read: memoryview | None = None
        self._read_start = 0
        self._footer: Footer | None = None

    def need(self, first: int, stop: int, *, cold: bool) -> None:
        """Prepare frames [first, stop) for reading; also the header before the first, and the footer after the last.

        With `cold`, bytes that the page cache does not hold are read now, past it, into memory of this thread. The
        next record that this thread reads takes the same memory. Without `cold`, or if they are cached, the kernel
        is asked to start reading. Raises Corrupt, StorageFailed, FormatError.
        """
        self._cold = cold
        start = self._frame_start(first) if first else 0
        end = self._frame_start(stop) if stop < self.header.binding.frames_count else self.header.used_bytes
        self._read, self._read_start = self._read_cold("frames", start, end) if cold else None, start
        if self._read is None:
            self._cold = False  # the frames are cached, so the ends are, too, and the map is faster
            self._segments.will_need(self.place.segment, self.place.offset + start, end - start)

    def _frame_start(self, index: int) -> int:
        """Return where in the record a frame begins, or where the last one ends."""
        bound = self.header.binding
        if bound.codec == Codec.STORED:
            return HEADER_BYTES + min(index * (bound.frame_bytes + TAG_BYTES), self.header.payload_bytes)
        return HEADER_BYTES + self.footer().offsets[index]

    def _sealed(self, start: int, stop: int) -> memoryview:
        """Return bytes of the record as they are on disk."""
        at = start - self._read_start
        if self._read is not None and 0 <= at <= at + stop - start <= len(self._read):
            return self._read[at : at + stop - start]
        if self._cold:  # of a record that is read in parts, header or footer lie outside what was read
            read = self._read_cold("ends", start, stop)
            if read is not None:
                return read
        return self._mapped[start:stop]

    def _read_cold(self, name: str, start: int, stop: int) -> memoryview | None:
        at = self.place.offset + start
        room = scratch.take(scratch_bytes(at, stop - start), name)
        return self._segments.read_cold(self.place.segment, at, stop - start, room)

    def footer(self) -> Footer:
        """Return the checked footer; raise FormatError if it is bad."""
        if self._footer is None:
            start = HEADER_BYTES + self.header.payload_bytes
            self._footer = open_footer(self.header, self.frames, self._sealed(start, self.header.used_bytes))
        return self._footer

    def check_ends(self, digest: Digest) -> None:
        """Raise FormatError unless header and footer are this record's and name `digest`."""
        if bytes(self._sealed(0, HEADER_BYTES)) != self.header.packed(self.frames):
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
            out = scratch.take(bound.frame_length(index), "plain")
            self.read(index, 0, len(out), out)
            if hasher:
                hasher.update(out)
        if hasher and hasher.digest() != digest:
            raise FormatError("plaintext has another digest")

    def read(self, index: int, start: int, stop: int, out: memoryview) -> int:
        """Put bytes [start, stop) of frame `index` into `out`, verified; return the sealed bytes that were read."""
        bound = self.header.binding
        length = bound.frame_length(index)
        sealed = self._sealed(self._frame_start(index), self._frame_start(index + 1))
        if bound.codec == Codec.STORED and stop - start == length:
            self.frames.open_into(index, sealed, out)
            return len(sealed)
        opened = scratch.take(len(sealed) - TAG_BYTES)
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


# Decrypted frames and sealed bytes on their way. Each thread has its own, because threads decrypt at the same time.
scratch = ThreadBuffers()


def corrupt(place: Place, digest: Digest | None, why: object) -> Corrupt:
    """Return the error that names a bad record by its place."""
    name = f"blob {digest.hex()[:16]}" if digest else "version record"
    if place.is_missing:
        return Corrupt(name, MISSING)
    return Corrupt(f"{name} in segment {place.segment:016x} at byte {place.offset}", str(why))
