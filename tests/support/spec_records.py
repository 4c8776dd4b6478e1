"""Primitives, codecs and records, as formats/FORMAT.md says (sections 1, 4 and 5)."""

import struct
from dataclasses import dataclass

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class Refused(Exception):
    """The bytes break a rule of FORMAT.md."""


def need(holds: object, rule: str) -> None:
    if not holds:
        raise Refused(rule)


def derive(secret: bytes, context: str, length: int = 32) -> bytes:
    return blake3(secret, derive_key_context="arstore 2026-11 " + context).digest(length=length)


def keyed(key: bytes, *parts: bytes, length: int = 32) -> bytes:
    return blake3(b"".join(struct.pack("<Q", len(part)) + part for part in parts), key=key).digest(length=length)


def digest(key: bytes, plain: bytes) -> bytes:
    return blake3(plain, key=key).digest()


def gcm_open(key: bytes, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, sealed, bound)
    except (InvalidTag, ValueError):
        raise Refused("authentication tag") from None


def unseal(key: bytes, context: str, sealed: bytes) -> bytes:
    return gcm_open(key, sealed[:12], sealed[12:], context.encode())


def decode(codec: int, encoded: bytes, length: int) -> bytes:
    need(codec in (0, 1, 2, 3), "codec is known")
    need(codec == 0 or length <= 4 << 20, "frame limit")
    if codec == 0:
        need(len(encoded) == length, "stored length")
        return encoded
    if codec == 1:
        return decode_part(encoded, length)
    width = 2 if codec == 2 else 4
    elements, over = divmod(length, width)
    need(len(encoded) >= 4 * width + over, "plane lengths")
    lengths = struct.unpack_from(f"<{width}I", encoded)
    need(4 * width + sum(lengths) + over == len(encoded), "plane lengths add up")
    plain, at = bytearray(length), 4 * width
    for plane, size in enumerate(lengths):
        plain[plane : elements * width : width] = decode_part(encoded[at : at + size], elements)
        at += size
    plain[elements * width :] = encoded[at:]
    return bytes(plain)


def decode_part(part: bytes, length: int) -> bytes:
    if len(part) == length:
        return part
    need(len(part) < length and part[:4] == bytes.fromhex("28b52ffd"), "part is shorter, and zstd")
    try:
        told = zstandard.get_frame_parameters(part)
        need(told.content_size == length and not told.dict_id and not told.has_checksum, "zstd frame header")
        plain = (unpacker := zstandard.ZstdDecompressor().decompressobj()).decompress(part)
        need(unpacker.eof and not unpacker.unused_data and len(plain) == length, "one zstd frame, to its end")
    except zstandard.ZstdError:
        raise Refused("zstd frame decodes") from None
    return plain


@dataclass(frozen=True)
class Header:
    """The fields of a record header."""

    kind: int
    codec: int
    protection: int
    frame_bytes: int
    plain_bytes: int
    payload_bytes: int
    slot: int
    tenant: bytes
    instance: bytes
    commitment: bytes

    @property
    def frames(self) -> int:
        return (self.plain_bytes + self.frame_bytes - 1) // self.frame_bytes

    @property
    def record_bytes(self) -> int:
        used = 160 + self.payload_bytes + 48 + (4 * self.frames if self.codec else 0)
        return (used + 4095) // 4096 * 4096


def parse_header(record: bytes) -> Header:
    need(len(record) >= 160 and record[:4] == b"ARR1", "magic")
    kind, codec, protection, zero, frame_bytes, zeros, plain, payload, slot = struct.unpack_from(
        "<BBBBIIQQQ", record, 4
    )
    need(zero == 0 and zeros == 0 and not any(record[104:128]), "zeros")
    need(kind in (1, 2) and protection in (0, 1), "kind and protection")
    need(0 < frame_bytes <= 16 << 20 and plain <= 1 << 40, "limits")
    header = Header(
        kind, codec, protection, frame_bytes, plain, payload, slot, record[40:56], record[56:72], record[72:104]
    )
    tags = 16 * header.frames
    need(header.frames <= 1 << 20, "frames limit")
    need(payload == plain + tags if codec == 0 else payload <= plain * 3 // 2 + tags + 4096, "payload")
    return header


class Record:
    """A record whose header was checked against its key; None is the key of a plain one."""

    def __init__(self, record: bytes, key: bytes | None) -> None:
        header = self.header = parse_header(record)
        need((key is not None) == (header.protection == 1), "protection is the store's")
        need(len(record) >= header.record_bytes, "record is whole")
        self._bytes = record[: header.record_bytes]
        fields = (header.tenant, header.instance, header.kind, header.codec, header.frame_bytes, header.plain_bytes)
        self._binding = b"arstore frame 1" + struct.pack("<16s16sBBIQ", *fields)
        if key is None:
            self._key = self._header_key = derive(self._binding, "plain frame tag")
            self._prefix, commitment = self._key[:7], bytes(32)
        else:
            derived = derive(key + header.instance, "record keys", 103)
            self._key, commitment, self._header_key, self._prefix = (
                derived[:32], derived[32:64], derived[64:96], derived[96:],
            )  # fmt: skip
        need(header.commitment == commitment, "commitment")
        need(record[128:160] == keyed(self._header_key, record[:128]), "check")

    def _open(self, index: int, flag: int, sealed: bytes) -> bytes:
        nonce = self._prefix + struct.pack(">I", index) + bytes([flag])
        if self.header.protection == 1:
            return gcm_open(self._key, nonce, sealed, self._binding)
        content, tag = sealed[:-16], sealed[-16:]
        need(digest(keyed(self._key, nonce), content)[:16] == tag, "tag")
        return content

    def read(self, digest_key: bytes) -> tuple[bytes, bytes]:
        """Return digest and plaintext, every byte of the record checked."""
        header = self.header
        start = 160 + header.payload_bytes
        stop = start + 48 + (4 * header.frames if header.codec else 0)
        footer = self._open(2**32 - 1, 2, self._bytes[start:stop])
        need(not any(self._bytes[stop:]), "padding")
        shares = [min(header.frame_bytes, header.plain_bytes - i * header.frame_bytes) for i in range(header.frames)]
        lengths = struct.unpack(f"<{header.frames}I", footer[32:]) if header.codec else shares
        need(sum(lengths) + 16 * header.frames == header.payload_bytes, "frame lengths add up")
        plain, at = [], 160
        for index, (length, share) in enumerate(zip(lengths, shares, strict=True)):
            flag = 1 if index == header.frames - 1 else 0
            plain.append(decode(header.codec, self._open(index, flag, self._bytes[at : at + length + 16]), share))
            at += length + 16
        whole = b"".join(plain)
        need(digest(digest_key, whole) == footer[:32], "digest")
        return footer[:32], whole
