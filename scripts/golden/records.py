"""Segment headers and records, FORMAT.md sections 3 and 4: good ones, and every way for one to be wrong."""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from golden.codecs import BF16, F32, TEXT, encoded
from golden.primitives import Json, changed, derive, digest, fixed, keyed, trimmed

PAGE = 4096
FOOTER = 0xFFFFFFFF
HEADER = struct.Struct("<4sBBBBIIQQQ16s16s32s24s")
BLOB, VERSION = 1, 2


def segment_header(store_id: bytes, segment: int, lifetime: int) -> bytes:
    body = struct.pack("<8s16sQB", b"ARSEGMT1", store_id, segment, lifetime).ljust(4064, b"\0")
    return body + derive(body, "segment header")


def padded(whole: bytes) -> bytes:
    return whole + bytes(-len(whole) % PAGE)


@dataclass(frozen=True)
class Owner:
    """Who records belong to. `keys` are those of the slots; a plain tenant has none."""

    tenant: bytes
    digest_key: bytes
    index_key: bytes
    keys: Mapping[int, bytes]


@dataclass(frozen=True)
class Wrong:
    """What a bad record does otherwise than FORMAT.md says, with every tag and check made to fit it."""

    header: tuple[tuple[int, bytes], ...] = ()  # offset and bytes, put there before the check is made
    last_flag: int = 1
    footer_index: int = FOOTER
    footer_flag: int = 2
    frames: tuple[bytes, ...] = ()
    lengths: tuple[int, ...] = ()
    digest: bytes = b""


@dataclass(frozen=True)
class Record:
    """One record: its plaintext, how it is kept, and its bytes without padding."""

    owner: Owner
    slot: int
    plain: bytes
    codec: int
    kind: int = BLOB
    frame_bytes: int = 64
    wrong: Wrong = Wrong()

    @property
    def key(self) -> bytes | None:
        return self.owner.keys.get(self.slot)

    @property
    def instance(self) -> bytes:
        return fixed(f"instance {self.slot} {self.plain!r}", 16)

    @property
    def digest(self) -> bytes:
        return digest(self.owner.digest_key, self.plain)

    @property
    def frames(self) -> list[bytes]:
        cuts = range(0, len(self.plain), self.frame_bytes)
        return [encoded(self.codec, self.plain[at : at + self.frame_bytes]) for at in cuts]

    def binding(self, instance: bytes) -> bytes:
        fields = (self.owner.tenant, instance, self.kind, self.codec, self.frame_bytes, len(self.plain))
        return b"arstore frame 1" + struct.pack("<16s16sBBIQ", *fields)

    def keys(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return frame key, commitment, header key and nonce prefix; for a plain record the plain key twice."""
        if self.key is None:
            plain_key = derive(self.binding(self.instance), "plain frame tag")
            return plain_key, bytes(32), plain_key, plain_key[:7]
        derived = derive(self.key + self.instance, "record keys", 103)
        return derived[:32], derived[32:64], derived[64:96], derived[96:]

    def sealed(self, index: int, flag: int, content: bytes) -> bytes:
        frame_key, _, _, prefix = self.keys()
        nonce = prefix + index.to_bytes(4, "big") + bytes([flag])
        if self.key is None:
            return content + blake3(content, key=keyed(frame_key, nonce)).digest(length=16)
        return AESGCM(frame_key).encrypt(nonce, content, self.binding(self.instance))

    def packed(self) -> bytes:
        """Return the record without its padding."""
        wrong, frames = self.wrong, self.wrong.frames or self.frames
        last = len(frames) - 1
        sealed = [self.sealed(i, wrong.last_flag if i == last else 0, frame) for i, frame in enumerate(frames)]
        payload = b"".join(sealed)
        footer = wrong.digest or self.digest
        if self.codec:
            footer += struct.pack(f"<{len(frames)}I", *(wrong.lengths or map(len, frames)))
        _, commitment, header_key, _ = self.keys()
        header = HEADER.pack(
            b"ARR1", self.kind, self.codec, int(self.key is not None), 0, self.frame_bytes, 0, len(self.plain),
            len(payload), self.slot, self.owner.tenant, self.instance, commitment, bytes(24),
        )  # fmt: skip
        for at, put in wrong.header:
            header = header[:at] + put + header[at + len(put) :]
        closed = self.sealed(wrong.footer_index, wrong.footer_flag, footer)
        return header + keyed(header_key, header) + payload + closed

    def described(self) -> Json:
        """Return the good vector of this record."""
        whole = self.packed()
        _, commitment, header_key, prefix = self.keys()
        return {
            "kind": self.kind, "codec": self.codec, "frame_bytes": self.frame_bytes, "slot": self.slot,
            "instance": self.instance.hex(), "key": self.key.hex() if self.key else None,
            "binding": self.binding(self.instance).hex(), "header_key": header_key.hex(),
            "nonce_prefix": prefix.hex(), "commitment": commitment.hex(), "digest": self.digest.hex(),
            "plain": self.plain.hex(), "encoded": [frame.hex() for frame in self.frames] if self.codec else None,
            "record": trimmed(whole),
        }  # fmt: skip


def runs(old: bytes, new: bytes) -> list[list[Any]]:
    """Return where `new` differs from `old`, as [offset, hex], or [offset, count] for zeros."""
    found: list[list[Any]] = []
    for at in (n for n in range(len(old)) if old[n] != new[n]):
        if found and at - (found[-1][0] + len(found[-1][1]) // 2) < 3:
            found[-1][1] = new[found[-1][0] : at + 1].hex()
        else:
            found.append([at, new[at : at + 1].hex()])
    return [[at, put if put.strip("0") else len(put) // 2] for at, put in found]


def refusal(good: Json, refused: str, why: str, whole: bytes) -> Json:
    old = bytes.fromhex(good["record"]).ljust(PAGE, b"\0")
    return {"of": good["name"], "why": why, "refused": refused, "puts": runs(old, whole.ljust(PAGE, b"\0"))}


# Where each field of the header is, a bit of it, and what notices that it is flipped.
HEADER_BITS = [
    ("form", "magic", 0, 1), ("form", "kind", 4, 4), ("header", "kind", 4, 3), ("header", "codec", 5, 1),
    ("form", "protection", 6, 4), ("key", "protection", 6, 1), ("form", "zero byte 7", 7, 1),
    ("header", "frame_bytes", 8, 1), ("form", "zero byte 15", 15, 1), ("form", "plain_bytes", 16, 1),
    ("form", "payload_bytes", 24, 1), ("header", "slot", 32, 1), ("header", "tenant", 40, 1),
    ("header", "instance", 56, 1), ("header", "commitment", 72, 1), ("form", "zero byte 127", 127, 128),
    ("header", "check", 128, 1),
]  # fmt: skip
QUICK = b"The quick brown fox jumps over the lazy dog. " * 2  # 90 bytes: in frames of 32 three, the last of 26


def with_a_bit_flipped(record: Record) -> Iterable[tuple[str, str, bytes]]:
    """Yield a record of three stored frames with one bit flipped in every kind of place."""
    whole, payload = record.packed(), len(record.plain) + 16 * 3
    for refused, field, at, mask in HEADER_BITS:
        yield refused, f"bit mask {mask} of {field} flipped", changed(whole, at, mask)
    for refused, what, at in (
        ("frame", "the first frame", 160), ("frame", "the tag of the first frame", 192),
        ("frame", "the last frame", 256), ("frame", "the tag of the last frame", 160 + payload - 1),
        ("footer", "the digest in the footer", 160 + payload), ("footer", "the tag of the footer", len(whole) - 1),
        ("padding", "the first byte of padding", len(whole)), ("padding", "the last byte of padding", PAGE - 1),
    ):  # fmt: skip
        yield refused, f"a bit of {what} flipped", changed(padded(whole), at, 0x80)


def with_parts_misplaced(record: Record) -> Iterable[tuple[str, str, bytes]]:
    """Yield a record of three stored frames whose parts lie elsewhere or are another record's."""
    whole = record.packed()
    stranger = replace(record, plain=QUICK.upper()).packed()
    ends = len(whole) - 48
    first, second = whole[160:208], whole[208:256]
    yield "frame", "frames 0 and 1 change places", whole[:160] + second + first + whole[256:]
    yield "frame", "frame 1 stands in for frame 0", whole[:160] + second * 2 + whole[256:]
    yield "frame", "frame 0 of another record", whole[:160] + stranger[160:208] + whole[208:]
    yield "footer", "footer of another record", whole[:ends] + stranger[ends:]
    yield "footer", "header of another record", stranger[:160] + whole[160:]
    yield "digest", "another record, whole", stranger
    yield "footer", "torn: zeros after the first frame", whole[:208]
    yield "footer", "torn: the last byte never reached the disk", whole[:-1]
    yield "footer", "header alone", whole[:160]
    yield "form", "zeros where a record should start", b""
    yield "header", "torn inside the header", whole[:140]


def with_everything_fitting(record: Record) -> Iterable[tuple[str, str, bytes]]:
    """Yield a record of three stored frames with one thing wrong and every tag and check made to fit it."""
    plain = record.key is None
    for refused, what, at, value in (
        ("form", "kind 3", 4, b"\3"), ("header" if plain else "footer", "codec 4", 5, b"\4"),
        ("form", "protection 2", 6, b"\2"), ("form", "frame_bytes 0", 8, bytes(4)),
        ("form", "frames above 16 MiB", 8, struct.pack("<I", (16 << 20) + 1)),
        ("form", "a plaintext above 1 TiB", 16, struct.pack("<Q", (1 << 40) + 1)),
        ("form", "more than 1,048,576 frames", 16, struct.pack("<Q", 32 << 20 | 1)),
        ("form", "a payload shorter than plaintext and tags", 24, struct.pack("<Q", 137)),
        ("header", "slot 3", 32, struct.pack("<Q", 3)),
        ("header", "another tenant", 40, fixed("another tenant", 16)),
    ):  # fmt: skip
        if plain and at == 32:
            continue  # a plain record has no key, whatever its slot
        yield refused, f"the header says {what}, and its check fits", wrong(record, header=((at, value),))
    yield "frame", "the last frame does not carry the last flag", wrong(record, last_flag=0)
    yield "footer", "the footer is sealed as frame 3", wrong(record, footer_index=3, footer_flag=0)
    yield "footer", "the footer carries the flag of a last frame", wrong(record, footer_flag=1)
    yield "digest", "the footer names another digest", wrong(record, digest=fixed("another digest"))
    lying = replace(record, plain=QUICK.upper(), wrong=Wrong(digest=record.digest))
    yield "plaintext", "plaintext and digest differ, and every tag fits", lying.packed()
    yield "codec", "codec 4, in all places", replace(record, codec=4).packed()
    garbage = replace(record, codec=1, wrong=Wrong(frames=(b"x", b"y", b"z")))
    yield "codec", "frames that are no zstd frames", garbage.packed()


def wrong(record: Record, **how: Any) -> bytes:
    return replace(record, wrong=Wrong(**how)).packed()


def with_lengths_that_lie(record: Record) -> Iterable[tuple[str, str, bytes]]:
    """Yield an encoded record of two frames whose footer, its tag fitting, tells other lengths."""
    first, second = map(len, record.frames)
    yield "lengths", "frame lengths in the footer do not add up", wrong(record, lengths=(first + 1, second))
    yield "lengths", "a frame length in the footer of 4 GiB", wrong(record, lengths=(0xFFFFFFFF, second))
    yield "frame", "frame lengths in the footer cut elsewhere", wrong(record, lengths=(first + 1, second - 1))


def records(sealed: Owner, plain: Owner) -> Json:
    version = b'{"name":"n","version":1,"label":null,"created":"2026-11-24T00:00:00Z","manifest":{}}'
    contents = [
        ("stored: one frame", b"twenty bytes of text", 0, BLOB, 64), ("stored: three frames", QUICK, 0, BLOB, 32),
        ("stored: two whole frames", bytes(range(64)), 0, BLOB, 32),
        ("zstd: a frame that shrinks, frames that do not", bytes(40) + TEXT[:70], 1, BLOB, 40),
        ("plane16", BF16 + b"!", 2, BLOB, 32), ("plane32", F32, 3, BLOB, 60), ("version", version, 1, VERSION, 512),
    ]  # fmt: skip
    good: list[Json] = []
    bad: list[Json] = []
    for way, owner, slots in (("sealed", sealed, [*range(1, 7), 130]), ("plain", plain, [0] * 7)):
        made: list[tuple[Json, Record]] = []
        for slot, (name, content, codec, kind, frame_bytes) in zip(slots, contents, strict=True):
            record = Record(owner, slot, content, codec, kind, frame_bytes)
            made.append(({"name": f"{way}: {name}", "store": way, **record.described()}, record))
        good += [described for described, _ in made]
        three, planes16 = made[1], made[4]
        for makers, (described, record) in (
            ((with_a_bit_flipped, with_parts_misplaced, with_everything_fitting), three),
            ((with_lengths_that_lie,), planes16),
        ):
            for maker in makers:
                bad += [refusal(described, *how) for how in maker(record)]
        if way == "sealed":
            foreign = replace(three[1], owner=replace(owner, keys={2: fixed("a stranger's key")}))
            bad.append(refusal(three[0], "header", "sealed under another key", foreign.packed()))
            unsealed = replace(three[1], owner=replace(owner, keys={}))
            bad.append(refusal(three[0], "key", "a plain record in an encrypted store", unsealed.packed()))
            erased = replace(three[1], slot=7, owner=replace(owner, keys={7: fixed("record key 7")}))
            bad.append(refusal(three[0], "key", "its key was destroyed", erased.packed()))
    owners = {
        way: {"tenant": owner.tenant.hex(), "digest_key": owner.digest_key.hex()}
        for way, owner in (("sealed", sealed), ("plain", plain))
    }
    return {"owners": owners, "good": good, "bad": bad}


def segments() -> Json:
    store_id = fixed("store id", 16)
    good: list[Json] = [
        {"store_id": store_id.hex(), "segment": n, "lifetime": lifetime} for n, lifetime in ((1, 1), (2**64 - 1, 4))
    ]
    packed = segment_header(store_id, 1, 1)
    bad = [("magic", changed(packed, 7)), ("check", changed(packed, 4095))]
    bad += [(f"a bit at {at}", changed(packed, at)) for at in (8, 24, 32, 33, 2000, 4063, 4064)]
    bad += [("cut by a byte", packed[:-1]), ("empty", b""), ("zeros", bytes(PAGE))]

    def spread(whole: bytes) -> Json:
        """Return 4 KiB that are mostly zeros as the pieces that are not."""
        pieces = {str(at): whole[at : at + 64].rstrip(b"\0").hex() for at in range(0, len(whole), 64)}
        return {"length": len(whole), "pieces": {at: piece for at, piece in pieces.items() if piece}}

    for one in good:
        one["header"] = spread(segment_header(store_id, one["segment"], one["lifetime"]))
    return {"good": good, "bad": [{"why": why, "header": spread(whole)} for why, whole in bad]}
