"""The segment file and its records: header, frames, footer, zero padding to 4 KiB.

A segment starts with one 4 KiB block and then holds records back to back, each at a multiple of 4,096:

    0       8      magic "ARSEGMT1"
    8       16     store id
    24      8      segment id
    32      1      lifetime: 1 weights, 2 KV, 3 intermediates, 4 files
    33      4031   zero
    4064    32     BLAKE3 of bytes 0-4063 (derived hash, context "segment header")

A record:

    offset  bytes  field
    0       4      magic "ARR1"
    4       1      kind: 1 blob, 2 version
    5       1      codec of every frame (codec.py)
    6       1      protection: 0 plain + BLAKE3 tags, 1 AES-256-GCM
    7       1      zero
    8       4      frame_bytes, plaintext bytes of every frame but the last
    12      4      zero
    16      8      plain_bytes
    24      8      payload_bytes, all sealed frames with their tags
    32      8      slot of the record's key in the key tree (0 where plain)
    40      16     tenant id
    56      16     instance id, random
    72      32     key commitment
    104     24     zero
    128     32     check: keyed BLAKE3 of bytes 0-127 under a key derived from the record's
    160            payload
            ...    footer: sealed digest (32) + one u32 a frame, its encoded bytes (only where codec is not 0)
            ...    zeros to the next 4,096

All integers little-endian. A record is valid iff its magic, zeros and limits hold, its commitment and check match
its key, every frame and the footer open, and the padding is zero. Readers trust lengths only within the limits.
"""

import struct
from dataclasses import dataclass

from .digest import DIGEST_BYTES, Digest, derive
from .errors import FormatError
from .frames import (
    FOOTER_INDEX,
    FRAME_MAX_BYTES,
    FRAMES_MAX_COUNT,
    TAG_BYTES,
    Binding,
    Frames,
)

ALIGN_BYTES = 4096
HEADER_BYTES = 160
PLAIN_MAX_BYTES = 1 << 40
KIND_BLOB, KIND_VERSION = 1, 2
PLAIN, AES_256_GCM = 0, 1

_HEADER = struct.Struct("<4sBBBBIIQQQ16s16s32s24s")
_MAGIC = b"ARR1"
_SEGMENT = struct.Struct("<8s16sQB")
_SEGMENT_MAGIC = b"ARSEGMT1"


@dataclass(frozen=True, slots=True)
class Header:
    """The first 160 bytes of a record, checked for form but not yet against its key."""

    binding: Binding
    protection: int
    payload_bytes: int
    slot: int
    commitment: bytes

    @property
    def footer_bytes(self) -> int:
        return footer_length(self.binding.codec, self.binding.frames_count)

    @property
    def used_bytes(self) -> int:
        """Bytes from the record's start to the end of its footer."""
        return HEADER_BYTES + self.payload_bytes + self.footer_bytes

    @property
    def record_bytes(self) -> int:
        """Bytes the record takes in its segment, padding included."""
        return padded(self.used_bytes)

    def packed(self, frames: Frames) -> bytes:
        """Return the 160 header bytes with their check."""
        body = self._body()
        return body + frames.header_check(body)

    def _body(self) -> bytes:
        bound = self.binding
        return _HEADER.pack(
            _MAGIC,
            bound.kind,
            bound.codec,
            self.protection,
            0,
            bound.frame_bytes,
            0,
            bound.plain_bytes,
            self.payload_bytes,
            self.slot,
            bound.tenant,
            bound.instance,
            self.commitment,
            bytes(24),
        )


def footer_length(codec: int, frames_count: int) -> int:
    """Return the bytes of a record's footer: digest, table of frame lengths where they vary, tag."""
    return DIGEST_BYTES + (4 * frames_count if codec else 0) + TAG_BYTES


def stored_payload_bytes(binding: Binding) -> int:
    """Return the payload bytes of a record whose codec is `stored`."""
    return binding.plain_bytes + binding.frames_count * TAG_BYTES


def parse_header(packed: bytes) -> Header:
    """Return the header in `packed`; raise FormatError if it breaks the form or the limits."""
    if len(packed) < HEADER_BYTES:
        raise FormatError("record header is cut short")
    (
        magic,
        kind,
        codec,
        protection,
        zero,
        frame_bytes,
        zero2,
        plain_bytes,
        payload_bytes,
        slot,
        tenant,
        instance,
        commitment,
        zeros,
    ) = _HEADER.unpack_from(packed)
    if magic != _MAGIC:
        raise FormatError("no record starts here")
    if zero or zero2 or any(zeros) or protection > AES_256_GCM or kind not in (KIND_BLOB, KIND_VERSION):
        raise FormatError("record header holds a value this version does not know")
    if not 0 < frame_bytes <= FRAME_MAX_BYTES or plain_bytes > PLAIN_MAX_BYTES:
        raise FormatError("record header exceeds the limits")
    binding = Binding(tenant, instance, kind, codec, frame_bytes, plain_bytes)
    if binding.frames_count > FRAMES_MAX_COUNT:
        raise FormatError("record header exceeds the limits")
    if codec == 0 and payload_bytes != stored_payload_bytes(binding):
        raise FormatError("record lengths contradict each other")
    # An encoded frame may be larger than its plaintext by a few bytes of codec header, never by half.
    if payload_bytes > stored_payload_bytes(binding) + plain_bytes // 2 + 4096:
        raise FormatError("record header exceeds the limits")
    return Header(binding, protection, payload_bytes, slot, commitment)


def seal_footer(frames: Frames, digest: Digest, encoded_lengths: list[int] | None) -> bytes:
    """Return the sealed footer; `encoded_lengths` is None where the codec is `stored`."""
    plain = digest + (struct.pack(f"<{len(encoded_lengths)}I", *encoded_lengths) if encoded_lengths else b"")
    out = bytearray(len(plain) + TAG_BYTES)
    frames.seal_into(FOOTER_INDEX, plain, memoryview(out))
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Footer:
    """The digest of the plaintext, and where each sealed frame lies in the payload."""

    digest: Digest
    offsets: tuple[int, ...]  # frames_count + 1 of them


def open_footer(header: Header, frames: Frames, sealed: bytes | memoryview) -> Footer:
    """Return the footer of a record; raise FormatError if it fails its tag or contradicts the header."""
    out = bytearray(header.footer_bytes - TAG_BYTES)
    frames.open_into(FOOTER_INDEX, sealed, memoryview(out))
    count = header.binding.frames_count
    digest = Digest(bytes(out[:DIGEST_BYTES]))
    if header.binding.codec:
        lengths = list(struct.unpack_from(f"<{count}I", out, DIGEST_BYTES))
    else:
        lengths = [header.binding.frame_length(index) for index in range(count)]
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length + TAG_BYTES)
    if offsets[-1] != header.payload_bytes:
        raise FormatError("record footer contradicts its header")
    return Footer(digest, tuple(offsets))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Which segment of which store a file is, so that a renamed or foreign file is never read as another."""

    store_id: bytes
    segment_id: int
    lifetime: int

    def packed(self) -> bytes:
        body = _SEGMENT.pack(_SEGMENT_MAGIC, self.store_id, self.segment_id, self.lifetime).ljust(4064, b"\0")
        return body + derive(body, "segment header")


def parse_segment_header(packed: bytes) -> SegmentHeader:
    """Return the header of a segment file; raise FormatError unless all 4,096 bytes are as written."""
    if len(packed) < ALIGN_BYTES or packed[:8] != _SEGMENT_MAGIC:
        raise FormatError("not a segment file")
    _, store_id, segment_id, lifetime = _SEGMENT.unpack_from(packed)
    header = SegmentHeader(store_id, segment_id, lifetime)
    if header.packed() != packed[:ALIGN_BYTES]:
        raise FormatError("segment header fails its check")
    return header


def padded(length: int) -> int:
    """Return `length` rounded up to the 4 KiB grain of segments."""
    return -(-length // ALIGN_BYTES) * ALIGN_BYTES
