"""The values of the rows in LMDB. Each ends in 8 bytes of keyed BLAKE3 over its key and itself.

LMDB has no checksums of its own: without the check, a flipped bit in its file would give a wrong place to read from.
Two values hold secrets. The summary of a version is sealed under that version's own key. What an identity stands for
is masked by its id. formats/row_keys.py has the keys of the rows.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .digest import DIGEST_BYTES, Digest, keyed_hash
from .errors import FormatError
from .frames import FRAME_MAX_BYTES, Binding
from .record import HEADER_BYTES, Header, footer_length, padded

CHECK_BYTES = 8
LIVE, QUARANTINED = 0, 1
_PLACE = struct.Struct("<QQQQQ16sIBB")
_BLOB = struct.Struct("<IBIQQ")
_VERSION = struct.Struct("<BQII")
_SEGMENT = struct.Struct("<BQQ")
_REFS, _NAMED = struct.Struct("<I"), struct.Struct("<IHI")
_COUNT, _NEWEST, _SLOT = struct.Struct("<Q"), struct.Struct(">I"), struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies, and all that is needed to open it but its key."""

    segment: int
    offset: int
    slot: int
    plain_bytes: int
    payload_bytes: int
    instance: bytes
    frame_bytes: int
    codec: int
    protection: int

    def header(self, tenant: bytes, kind: int, commitment: bytes = bytes(32)) -> Header:
        binding = Binding(tenant, self.instance, kind, self.codec, self.frame_bytes, self.plain_bytes)
        return Header(binding, self.protection, self.payload_bytes, self.slot, commitment)

    @property
    def is_missing(self) -> bool:
        """Whether the record was in no segment when the catalog was made anew."""
        return not self.segment

    @property
    def record_bytes(self) -> int:
        """Bytes the record takes in its segment, padding included."""
        if self.is_missing:
            return 0
        footer = footer_length(self.codec, -(-self.plain_bytes // self.frame_bytes))
        return padded(HEADER_BYTES + self.payload_bytes + footer)

    def packed(self) -> bytes:
        where = (self.segment, self.offset, self.slot, self.plain_bytes, self.payload_bytes, self.instance)
        return _PLACE.pack(*where, self.frame_bytes, self.codec, self.protection)


@dataclass(frozen=True, slots=True)
class BlobRow:
    """One blob of this host: its place, how many versions need it, and whether it was found bad.

    A blob that nothing needs carries the number and time of the collection that found it so. A new need clears both.
    """

    place: Place
    refs: int
    state: int = LIVE
    condemned_cycle: int = 0  # 0: not condemned
    condemned_s: int = 0
    checked_s: int = 0  # when a scrub last found it good, seconds since 1970

    def referred(self, change: int) -> "BlobRow":
        """Return the row with so many more needs, condemned no longer."""
        return replace(self, refs=self.refs + change, condemned_cycle=0, condemned_s=0)

    def packed(self) -> bytes:
        return self.place.packed() + _BLOB.pack(
            self.refs, self.state, self.condemned_cycle, self.condemned_s, self.checked_s
        )


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a name: the place of its record, its pin, and its summary sealed under the record's key."""

    place: Place
    pinned: bool
    summary: bytes
    used_s: int = 0  # when it was last read, to the hour, seconds since 1970; 0: never
    claimed: int = 0  # how many of the claims in its manifest it holds

    def packed(self) -> bytes:
        head = _VERSION.pack(self.pinned, self.used_s, self.claimed, len(self.summary))
        return self.place.packed() + head + self.summary


@dataclass(frozen=True, slots=True)
class Named:
    """What an identity stands for.

    With tokens it is a prefix block: the last `tokens` tokens of a sequence, whose KV is these blobs in order. With 0
    tokens it is the root of such sequences (`about` is their KV shape) or an artifact (`about` is a hash of its blobs).
    """

    tokens: int
    blobs: tuple[Digest, ...] = ()
    about: bytes = b""


@dataclass(frozen=True, slots=True)
class NamedRow:
    """An identity that this host has bytes of, and how many versions claim it with these very bytes.

    All but the count is masked by the id, which stands nowhere in the catalog. Old pages of LMDB outlive an erase, and
    no digest or shape may be read from them.
    """

    named: Named
    refs: int

    def packed(self, id_: bytes) -> bytes:
        named = self.named
        head = _NAMED.pack(named.tokens, len(named.blobs), len(named.about))
        return _REFS.pack(self.refs) + _masked(id_, head + b"".join(named.blobs) + named.about)


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One segment: its lifetime class, the bytes that commits stand on, and how many of them are live."""

    lifetime: int
    durable_bytes: int
    live_bytes: int

    def packed(self) -> bytes:
        return _SEGMENT.pack(self.lifetime, self.durable_bytes, self.live_bytes)


def place_of(segment: int, offset: int, header: Header) -> Place:
    """Return the place of a record from where it was written and its header."""
    bound = header.binding
    lengths = (bound.plain_bytes, header.payload_bytes)
    encoding = (bound.frame_bytes, bound.codec, header.protection)
    return Place(segment, offset, header.slot, *lengths, bound.instance, *encoding)


def missing_place(plain_bytes: int) -> Place:
    """Return the place of a blob that a version needs and no segment has. Its segment is 0, which is never given."""
    return Place(0, 0, 0, plain_bytes, 0, bytes(16), 1, 0, 0)


def close_row(check_key: bytes, table: str, key: bytes, packed: bytes) -> bytes:
    """Return a row's value with its check. The check fits only in this table and under this key."""
    return packed + keyed_hash(check_key, table.encode(), key, packed, length=CHECK_BYTES)


def open_row(check_key: bytes, table: str, key: bytes, value: bytes) -> bytes:
    """Return a row's value without its check; raise FormatError if the check refuses."""
    packed = value[:-CHECK_BYTES]
    if keyed_hash(check_key, table.encode(), key, packed, length=CHECK_BYTES) != value[-CHECK_BYTES:]:
        raise FormatError("catalog row fails its check")
    return packed


def parse_blob(packed: bytes) -> BlobRow:
    place = _parse_place(packed, _BLOB.size)
    refs, state, cycle, condemned_s, checked_s = _BLOB.unpack_from(packed, _PLACE.size)
    if len(packed) != _PLACE.size + _BLOB.size or state not in (LIVE, QUARANTINED):
        raise FormatError("blob row holds something this version does not know")
    return BlobRow(place, refs, state, cycle, condemned_s, checked_s)


def parse_version(packed: bytes) -> VersionRow:
    place = _parse_place(packed, _VERSION.size)
    pinned, used_s, claimed, length = _VERSION.unpack_from(packed, _PLACE.size)
    summary = packed[_PLACE.size + _VERSION.size :]
    if len(summary) != length or pinned > 1:
        raise FormatError("version row holds something this version does not know")
    return VersionRow(place, bool(pinned), summary, used_s, claimed)


def parse_named(packed: bytes, id_: bytes) -> NamedRow:
    if len(packed) < _REFS.size + _NAMED.size:
        raise FormatError("identity row is cut short")
    plain = _masked(id_, packed[_REFS.size :])
    tokens, count, about_bytes = _NAMED.unpack_from(plain)
    end = _NAMED.size + count * DIGEST_BYTES
    if len(plain) != end + about_bytes:
        raise FormatError("identity row has a wrong length")
    blobs = tuple([Digest(plain[at : at + DIGEST_BYTES]) for at in range(_NAMED.size, end, DIGEST_BYTES)])
    return NamedRow(Named(tokens, blobs, plain[end:]), _REFS.unpack_from(packed)[0])


def _masked(id_: bytes, plain: bytes) -> bytes:
    """Return the bytes xor a hash of the id of their length. A second time gives them back."""
    mask = keyed_hash(id_, b"identity row", length=len(plain))
    return (int.from_bytes(plain, "little") ^ int.from_bytes(mask, "little")).to_bytes(len(plain), "little")


def parse_segment(packed: bytes) -> SegmentRow:
    if len(packed) != _SEGMENT.size:
        raise FormatError(f"segment row is {len(packed)} bytes, wanted {_SEGMENT.size}")
    return SegmentRow(*_SEGMENT.unpack(packed))


def pack_count(count: int) -> bytes:
    return _COUNT.pack(count)


def parse_count(packed: bytes) -> int:
    """Return the number in a row of `counters`."""
    if len(packed) != _COUNT.size:
        raise FormatError(f"counter is {len(packed)} bytes, wanted {_COUNT.size}")
    return int(_COUNT.unpack(packed)[0])


def pack_newest(version: int) -> bytes:
    return _NEWEST.pack(version)


def parse_newest(packed: bytes) -> int:
    """Return the newest version number in a row of `names`."""
    if len(packed) != _NEWEST.size:
        raise FormatError(f"version number is {len(packed)} bytes, wanted {_NEWEST.size}")
    return int(_NEWEST.unpack(packed)[0])


def pack_slots(slots: Iterable[int]) -> bytes:
    return b"".join(map(_SLOT.pack, slots))


def parse_slots(packed: bytes) -> list[int]:
    """Return the slots in a row of `loans`, `spare` or `doomed`."""
    if len(packed) % _SLOT.size:
        raise FormatError("slot list is cut short")
    return [slot for (slot,) in _SLOT.iter_unpack(packed)]


def _parse_place(packed: bytes, more_bytes: int) -> Place:
    if len(packed) < _PLACE.size + more_bytes:
        raise FormatError("catalog row is cut short")
    place = Place(*_PLACE.unpack_from(packed))
    if not 0 < place.frame_bytes <= FRAME_MAX_BYTES:
        raise FormatError("catalog row exceeds the limits")
    return place
