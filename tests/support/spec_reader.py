"""A second reader of stores, written from formats/FORMAT.md alone: it knows not a name of the product.

It checks what that page says must be checked and raises Refused for the rest; numbers in comments are its sections.
"""

import json
import math
import re
import struct
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

Rows = Mapping[str, Mapping[bytes, bytes]]
Named = tuple[int, int, list[bytes], bytes]  # refs, tokens, digests and about
Identities = tuple[dict[bytes, Named], dict[bytes, int]]
TABLES = ("blobs", "versions", "names", "segments", "counters", "loans", "spare", "doomed", "leases", "identities")


class Refused(Exception):
    """The bytes break a rule of FORMAT.md."""


def need(holds: object, rule: str) -> None:
    if not holds:
        raise Refused(rule)


# --- 1. primitives


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


# --- 5. codecs


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


# --- 4. records


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


# --- 6. and 7. keys


def open_stanzas(document: Any, encrypted: bool, secrets: Mapping[str, bytes], store_id: bytes) -> list[bytes]:
    """Return the master key that one of the secrets, by stanza kind, opens, and behind it the one before, if any."""
    need(document["format"] == 1 and 1 <= len(document["stanzas"]) <= 64, "stanzas file")
    for kind in ("key-file", "command", "passphrase") if encrypted else ("open",):
        if kind == "open" or kind in secrets:
            found = open_ways(document, kind, secrets.get(kind, b""), store_id)
            if found:
                return [found[0], *open_ways(document, "previous", found[0], store_id)]
    raise Refused("no stanza opens")


def open_ways(document: Any, kind: str, secret: bytes, store_id: bytes) -> list[bytes]:
    """Return what the stanzas of one kind give to a secret."""
    found = []
    for stanza in reversed(document["stanzas"]):  # the newest first
        if stanza["kind"] != kind:
            continue
        if kind == "open":
            found.append(bytes.fromhex(stanza["master"]))
            continue
        try:
            sealed = bytes.fromhex(stanza["sealed"])
            found.append(unseal(stanza_key(stanza, secret), f"master key {store_id.hex()}", sealed))
        except Refused:
            continue
    return found


def stanza_key(stanza: Any, secret: bytes) -> bytes:
    salt = bytes.fromhex(stanza["salt"])
    if stanza["kind"] != "passphrase":
        return derive(salt + secret, "stanza key")
    memory, iterations, lanes = stanza["memory_kib"], stanza["iterations"], stanza["lanes"]
    need(8 * lanes <= memory <= 4194304 and 1 <= iterations <= 100 and 1 <= lanes <= 64, "Argon2id limits")
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
    return kdf.derive(secret)


@dataclass(frozen=True)
class Ref:
    """A reference to a key page."""

    position: int
    depth: int
    key: bytes


def parse_ref(packed: bytes) -> Ref:
    ref = Ref(*struct.unpack("<IB32s", packed))
    need(ref.depth <= 8, "depth")
    return ref


@dataclass(frozen=True)
class Root:
    """The top of the key tree."""

    epoch: int
    directory: Ref
    next_tenant: int
    catalog_key: bytes


def open_root(masters: Sequence[bytes], store_id: bytes, slots: bytes) -> Root:
    """Return the newest root that one of the master keys opens."""
    found = []
    for master in masters:
        for slot in (slots[:4096], slots[4096:8192]):
            try:
                plain = unseal(master, f"key root {store_id.hex()}", slot[:109])
            except Refused:
                continue
            epoch, directory, next_tenant, catalog_key = struct.unpack("<Q37sI32s", plain)
            found.append(Root(epoch, parse_ref(directory), next_tenant, catalog_key))
    need(found, "a root opens")
    return max(found, key=lambda root: root.epoch)


def leaf(pages: bytes, ref: Ref, number: int) -> bytes | None:
    """Return the body of a leaf of a key tree."""
    if ref.position == 0 or number >= 113**ref.depth:
        return None
    sealed = pages[4096 * ref.position : 4096 * ref.position + 4096]
    body = gcm_open(ref.key, bytes(12), sealed, b"arstore key page")
    need(len(body) == 4080, "page length")
    if ref.depth == 0:
        return body
    child, rest = divmod(number, 113 ** (ref.depth - 1))
    position, key = struct.unpack_from("<I32s", body, 36 * child)
    return leaf(pages, Ref(position, ref.depth - 1, key), rest)


def leaves(pages: bytes, ref: Ref, most: int) -> dict[int, bytes]:
    """Return the bodies of those of the first leaves that are there: any may be missing."""
    return {number: body for number in range(most) if (body := leaf(pages, ref, number)) is not None}


class Tenant:
    """A tenant page, and the keys of its records."""

    def __init__(self, body: bytes, pages: bytes) -> None:
        self.id, self.digest_key, self.index_key, self.quota, self.next_slot = struct.unpack_from("<16s32s32sQQ", body)
        self._keys, self._pages = parse_ref(body[96:133]), pages
        need(body[133] <= 128, "name length")
        self.name = body[134 : 134 + body[133]].decode()

    def key(self, slot: int) -> bytes:
        body = leaf(self._pages, self._keys, slot // 127)
        key = body[slot % 127 * 32 : slot % 127 * 32 + 32] if body else bytes(32)
        need(any(key), "the slot has a key")
        return key

    def slots(self) -> set[int]:
        """Return every slot that holds a key."""
        found = leaves(self._pages, self._keys, self.next_slot // 127 + 1)
        return {
            127 * number + at
            for number, body in found.items()
            for at in range(127)
            if any(body[32 * at : 32 * at + 32])
        }


# --- 8. identities and KV


def is_count(text: str, digits: int = 19) -> bool:
    return re.fullmatch(f"0|[1-9][0-9]{{0,{digits - 1}}}", text) is not None


def number_text(text: str) -> str:
    """Return the one text of a number that this text spells."""
    number = float(text)
    need(math.isfinite(number), "a finite number")
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def json_text(text: str) -> str:
    value = json.loads(text)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def names_text(text: str) -> str:
    names = text.split(",")
    need(all(names), "no empty name")
    return ",".join(sorted(set(names)))


def layers_text(text: str) -> str:
    runs = [part.partition("-") for part in text.split(",")]
    need(all(is_count(first) and (is_count(last) or not dash) for first, dash, last in runs), "layers are numbers")
    bounds = [(int(first), int(last if dash else first)) for first, dash, last in runs]
    need(all(0 <= first <= last <= 4095 for first, last in bounds), "layers from 0 to 4,095")
    layers = sorted({layer for first, last in bounds for layer in range(first, last + 1)})
    cuts = [0, *(n for n in range(1, len(layers)) if layers[n] != layers[n - 1] + 1), len(layers)]
    found = [(layers[a], layers[b - 1]) for a, b in pairwise(cuts)]
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in found)


def contents_text(text: str) -> str:
    found = [part.partition("@") for part in text.split(",")]
    need(len(found) <= 256, "256 contents")
    need(all(re.fullmatch("[0-9a-f]{32,128}", name) and is_count(at, 10) for name, _, at in found), "digest@position")
    return ",".join(f"{name}@{at}" for name, _, at in sorted(found, key=lambda one: (int(one[2]), one[0])))


def positions_text(text: str) -> str:
    first, _, end = text.partition(":")
    need(is_count(first) and is_count(end) and int(first) <= int(end), "positions A:B")
    return f"{first}:{end}"


def count_text(text: str) -> str:
    need(is_count(text), "a count")
    return text


PROVENANCE = ("engine", "engine_version", "attention_backend", "chunk_schedule", "hardware", "framework")
KINDS_OF_FIELDS: tuple[tuple[Callable[[str], str], str], ...] = (
    (str, "model revision weights precision adapter quantisation scales rope architecture config attention window"),
    (str, "layer_kinds layer module layout shard encoding tokenizer sequence embeddings draft salt"),
    (str, " ".join(PROVENANCE)),
    (count_text, "rope_original_positions attention_chunk sinks heads kv_heads head_dim page_tokens block_tokens"),
    (count_text, "start step"),
    (number_text, "adapter_scale rope_theta rope_factor rope_partial"),
    (json_text, "rope_sections rope_scaling"),
    (names_text, "adapter_targets"),
    (layers_text, "layers"),
    (contents_text, "contents"),
    (positions_text, "positions"),
    (lambda text: "yes", "strict"),
)
FIELDS = {name: text for text, names in KINDS_OF_FIELDS for name in names.split()}


def check_identity(identity: Mapping[str, Any]) -> None:
    for name, text in identity.items():
        need(name in FIELDS, "field is known")
        need(isinstance(text, str) and text != "unspecified" and "\0" not in text, "text that says something")
        try:
            need(1 <= len(text.encode()) <= 4096, "1 to 4,096 bytes")
            canonical = FIELDS[name](text)
        except (ValueError, RecursionError):
            raise Refused("text of its kind") from None
        need(canonical == text, "canonical text")


def key_id(identity_key: bytes, kind: str, identity: Mapping[str, str]) -> bytes:
    check_identity(identity)
    counted = [name for name in sorted(identity) if "strict" in identity or name not in PROVENANCE]
    parts = ["identity", "1", kind, *(part for name in counted for part in (name, identity[name]))]
    return keyed(identity_key, *(part.encode() for part in parts))


def block_ids(identity_key: bytes, root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    found = [root]
    for at in range(0, len(tokens), block_tokens):
        block = tokens[at : at + block_tokens]
        found.append(digest(identity_key, found[-1] + struct.pack(f"<{len(block)}I", *block)))
    return found[1:]


SIZES = {
    1: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    2: "I16 U16 F16 BF16",
    4: "I32 U32 F32",
    8: "C64 F64 I64 U64",
    16: "C128",
}
ELEMENT_BYTES = {dtype: size for size, dtypes in SIZES.items() for dtype in dtypes.split()}


class Shape:
    """A KV shape: the sides of every layer, in the order of a block, as (name, heads, bytes of dim elements)."""

    def __init__(self, shape: Any) -> None:
        need(isinstance(shape, dict) and set(shape) == {"dtype", "layers"}, "keys of a shape")
        need(isinstance(shape["dtype"], str) and shape["dtype"] in ELEMENT_BYTES, "dtype")
        need(isinstance(shape["layers"], list) and shape["layers"], "layers")
        element, self.sides, end, before = ELEMENT_BYTES[shape["dtype"]], [], 0, None
        for run in shape["layers"]:
            need(isinstance(run, list) and len(run) == 6 and all(type(part) is int for part in run), "6 integers")
            first, count, *extents = run
            need(count >= 1 and end <= first <= 4096 - count, "layers ascend")
            need(first != end or extents != before, "equal neighbours are one run")
            key, value = extents[:2], extents[2:]
            need(all(1 <= part <= 65536 for part in key), "extents of keys")
            need(value == [0, 0] or all(1 <= part <= 65536 for part in value), "extents of values")
            sides = [("key", *key), ("value", *value)][: 2 if any(value) else 1]
            for layer in range(first, first + count):
                self.sides += [(f"layers.{layer}.{side}", heads, dim * element) for side, heads, dim in sides]
            end, before = first + count, extents
        self.token_bytes = sum(heads * row for _, heads, row in self.sides)
        need(self.token_bytes <= 4 << 30, "a token has at most 4 GiB")

    def cut(self, block: bytes, tokens: int) -> dict[tuple[str, int], bytes]:
        """Return what a block holds of each head of each side, [tokens, dim]."""
        need(tokens >= 1 and len(block) == tokens * self.token_bytes, "length of a block")
        found, at = {}, 0
        for name, heads, row in self.sides:
            for head in range(heads):
                found[name, head] = block[at : at + tokens * row]
                at += tokens * row
        return found


def parse_identity(value: bytes, id_: bytes) -> Named:
    """Return refs, tokens, digests and what is said about them."""
    need(len(value) >= 14, "length of an identity")
    mask = keyed(id_, b"identity row", length=len(value) - 4)
    plain = bytes(one ^ other for one, other in zip(value[4:], mask, strict=True))
    tokens, count, about = struct.unpack_from("<IHI", plain)
    end = 10 + 32 * count
    need(len(plain) == end + about, "length of an identity")
    return struct.unpack_from("<I", value)[0], tokens, [plain[at : at + 32] for at in range(10, end, 32)], plain[end:]


def claimed(manifest: Any) -> list[tuple[bytes, int, list[bytes], bytes]]:
    """Return what each claim of a manifest puts into its row: id, tokens, digests and about."""
    blobs = [bytes.fromhex(name) for name, _ in manifest["blobs"]]
    about = keyed(bytes(32), *blobs)
    if "shape" in manifest:
        Shape(manifest["shape"])
        about = json_text(json.dumps(manifest["shape"])).encode()
    return [
        (bytes.fromhex(id_), tokens, [blobs[number] for number in numbers], b"" if tokens else about)
        for id_, tokens, numbers in manifest.get("claims", [])
    ]


# --- 9. rows of slots and leases


@dataclass(frozen=True)
class Lease:
    """The fields of a lease row."""

    epoch: int
    expires_ns: int
    owner: bytes
    process: bytes
    acquired_s: int
    purpose: str


def parse_lease(value: bytes) -> Lease:
    need(76 <= len(value) <= 76 + 64, "length of a lease")
    epoch, expires_ns, owner, process, acquired_s = struct.unpack_from("<QQ16s36sQ", value)
    return Lease(epoch, expires_ns, owner, process, acquired_s, value[76:].decode())


def parse_slots(value: bytes) -> list[int]:
    need(len(value) % 8 == 0, "length of slots")
    return [slot for (slot,) in struct.iter_unpack(">Q", value)]


# --- 2., 3. and 9. the store


class Store:
    """A store directory, opened to read."""

    def __init__(self, root: Path, secrets: Mapping[str, bytes], tenant: str = "default") -> None:
        config = tomllib.loads((root / "config.toml").read_text("utf-8"))
        need(config["format"] == 1, "format")
        self._root, self.id, self.encrypted = root, bytes.fromhex(config["store_id"]), config["encrypted"]
        self._segments: dict[int, bytes] = {}
        document = json.loads((root / "keys" / "stanzas.json").read_bytes())
        masters = open_stanzas(document, self.encrypted, secrets, self.id)
        roots = Path(config.get("root_file", root / "keys" / "root")).read_bytes()
        pages = (root / "keys" / "pages").read_bytes()
        self.top = open_root(masters, self.id, roots)
        tenants = leaves(pages, self.top.directory, self.top.next_tenant).items()
        found = {number: one for number, body in tenants if (one := Tenant(body, pages)).name == tenant}
        need(len(found) == 1, "tenant is known")
        [(self.number, self.tenant)] = found.items()
        if not self.encrypted:
            seed = derive(self.id + tenant.encode(), "open tenant", 80)
            need(self.tenant.id + self.tenant.digest_key + self.tenant.index_key == seed, "keys of an open tenant")

    def catalog(self) -> Rows:
        """Return the tables of the catalog as they are."""
        environment = lmdb.open(str(self._root / "catalog"), readonly=True, lock=False, max_dbs=16)
        try:
            with environment.begin() as view:
                tables = {name: environment.open_db(name.encode(), view, create=False) for name in TABLES}
                return {name: dict(view.cursor(table)) for name, table in tables.items()}
        finally:
            environment.close()

    def row(self, rows: Rows, table: str, key: bytes) -> bytes:
        value = rows[table][key]
        check = keyed(self.top.catalog_key, table.encode(), key, value[:-8], length=8)
        need(value[-8:] == check, "check of the row")
        return value[:-8]

    def segment(self, segment: int) -> bytes:
        if segment in self._segments:
            return self._segments[segment]
        whole = (self._root / "segments" / f"{segment:016x}.seg").read_bytes()
        need(whole[:8] == b"ARSEGMT1" and whole[8:24] == self.id, "segment of this store")
        need(whole[24:32] == struct.pack("<Q", segment) and not any(whole[33:4064]), "segment of this name")
        need(whole[4064:4096] == derive(whole[:4064], "segment header"), "check of the segment header")
        self._segments[segment] = whole
        return whole

    def record(self, whole: bytes, offset: int) -> tuple[Header, bytes, bytes]:
        """Return header, digest and plaintext of the record at an offset of a segment."""
        header = parse_header(whole[offset : offset + 160])
        need(header.tenant == self.tenant.id, "tenant")
        need((header.protection == 1) == self.encrypted, "protection is the store's")
        key = self.tenant.key(header.slot) if header.protection else None
        return header, *Record(whole[offset : offset + header.record_bytes], key).read(self.tenant.digest_key)

    def at(self, place: bytes, kind: int) -> tuple[bytes, bytes]:
        """Return digest and plaintext of the record at a place of the catalog."""
        need(len(place) == 62, "length of a place")
        segment, offset, slot, plain, payload = struct.unpack_from("<QQQQQ", place)
        header, name, content = self.record(self.segment(segment), offset)
        told = (slot, plain, payload, place[40:56], *struct.unpack("<IBB", place[56:]), kind)
        found = (header.slot, header.plain_bytes, header.payload_bytes, header.instance, header.frame_bytes,
                 header.codec, header.protection, header.kind)  # fmt: skip
        need(told == found, "place and header agree")
        return name, content

    # --- 11. reading a file back

    def files(self, name: str, version: int | None = None, rows: Rows | None = None) -> dict[str, tuple[int, bytes]]:
        """Return mode and bytes of every file of a version, the newest by default, by way of the catalog."""
        rows = rows or self.catalog()
        hashed = self.hashed("name", name.encode())
        given = struct.unpack(">I", self.row(rows, "names", hashed))[0]
        value = self.row(rows, "versions", hashed + struct.pack(">I", version or given))
        pinned, _, _, length = struct.unpack_from("<BQII", value, 62)
        need(pinned in (0, 1) and len(value) == 79 + length, "version row")
        slot = struct.unpack_from("<Q", value, 16)[0]
        summary = unseal(self.tenant.key(slot), "version summary", value[79:]) if self.encrypted else value[79:]
        _, packed = self.at(value[:62], kind=2)
        body = json.loads(packed)
        self._check_version(body, json.loads(summary), (name, version or given))

        return self._assembled(body["manifest"], lambda wanted: self.blob(rows, wanted))

    def blob(self, rows: Rows, wanted: bytes) -> bytes:
        value = self.row(rows, "blobs", self.hashed("blob", wanted))
        need(len(value) == 87 and value[66] == 0, "blob row is live")
        found, plain = self.at(value[:62], kind=1)
        need(found == wanted, "blob is the one that was asked for")
        return plain

    def hashed(self, what: str, name: bytes) -> bytes:
        """Return the row key of a blob, name or identity."""
        return struct.pack(">I", self.number) + keyed(self.tenant.index_key, what.encode(), name, length=20)

    def named(self, rows: Rows, id_: bytes) -> Named | None:
        key = self.hashed("identity", id_)
        return parse_identity(self.row(rows, "identities", key), id_) if key in rows["identities"] else None

    def kv(self, tokens: Sequence[int], identity: Mapping[str, str]) -> tuple[int, dict[str, bytes]]:
        """Return how many of the tokens are stored, and their `layers.{i}.key` and `.value`, [heads, tokens, dim]."""
        rows, key = self.catalog(), derive(self.tenant.digest_key, "identity")
        root = key_id(key, "kv", identity)
        top = self.named(rows, root)
        if top is None:
            return 0, {}
        need(top[1:3] == (0, []), "row of a key id")
        shape, matched = Shape(json.loads(top[3])), 0
        found: dict[tuple[str, int], bytes] = {}
        for id_ in block_ids(key, root, tokens, int(identity["block_tokens"])):
            row = self.named(rows, id_)
            if row is None or any(self.row(rows, "blobs", self.hashed("blob", name))[66] for name in row[2]):
                break
            _, count, blobs, about = row
            need(about == b"", "row of a block")
            for head, part in shape.cut(b"".join(self.blob(rows, name) for name in blobs), count).items():
                found[head] = found.get(head, b"") + part
            matched += count
        sides = {name: b"".join(found[name, head] for head in range(heads)) for name, heads, _ in shape.sides if found}
        return matched, sides

    def _check_version(self, body: Any, summary: Any, wanted: tuple[str, int]) -> None:
        need(list(body) == ["name", "version", "label", "created", "manifest"], "keys of a version record")
        need((body["name"], body["version"]) == wanted, "name and version")
        manifest = body["manifest"]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        size = sum(file[2] for file in manifest["files"])
        need(summary == [
            body["name"], body["label"], digest(self.tenant.digest_key, text.encode()).hex(), manifest["kind"],
            manifest["identity"].get("model"), size, body["created"],
        ], "summary")  # fmt: skip

    def _assembled(self, manifest: Any, blob: Any) -> dict[str, tuple[int, bytes]]:
        need(manifest["format"] == 1, "manifest format")
        found = {}
        for path, mode, size, _, numbers in manifest["files"]:
            content = b"".join(blob(bytes.fromhex(manifest["blobs"][number][0])) for number in numbers)
            need(len(content) == size, "size")
            found[path] = (mode, content)
        return found

    def scan(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield kind, digest and plaintext of every record of this tenant in every segment: no catalog is needed."""
        for path in sorted((self._root / "segments").glob("[!.]*.seg")):
            try:
                whole = self.segment(int(path.name.removesuffix(".seg"), 16))
            except Refused:
                continue
            at = 4096
            while at < len(whole):
                try:
                    header, name, plain = self.record(whole, at)
                except Refused:
                    at += 4096
                    continue
                yield header.kind, name, plain
                at += header.record_bytes

    def scanned_files(self) -> dict[tuple[str, int], dict[str, tuple[int, bytes]]]:
        """Return the files of every version by name and number, from segments and keys alone: what a rebuild finds."""
        records = list(self.scan())
        blobs = {name: plain for kind, name, plain in records if kind == 1}
        bodies = [json.loads(plain) for kind, _, plain in records if kind == 2]
        return {
            (body["name"], body["version"]): self._assembled(body["manifest"], blobs.__getitem__)
            for body in sorted(bodies, key=lambda body: str(body["created"]))
            if all(bytes.fromhex(blob) in blobs for blob, _ in body["manifest"]["blobs"])
        }

    def version_bodies(self) -> list[Any]:
        """Return every version record, the first that was created first."""
        return sorted(
            (json.loads(plain) for kind, _, plain in self.scan() if kind == 2), key=lambda one: one["created"]
        )

    def identities(self, rows: Rows) -> Identities:
        """Return what the catalog says of every identity, by its id, and how many claims versions hold, by row key."""
        ids = {id_ for body in self.version_bodies() for id_, *_ in claimed(body["manifest"])}
        found = {id_: row for id_ in ids if (row := self.named(rows, id_))}
        need(len(found) == len(rows["identities"]), "every identity is claimed")
        return found, {
            key: struct.unpack_from("<I", self.row(rows, "versions", key), 71)[0] for key in rows["versions"]
        }

    def scanned_identities(self) -> Identities:
        """Return the same as a rebuild makes it: what was created first wins."""
        found: dict[bytes, Named] = {}
        held: dict[bytes, int] = {}
        for body in self.version_bodies():
            key = self.hashed("name", body["name"].encode()) + struct.pack(">I", body["version"])
            held[key] = 0
            for id_, tokens, blobs, about in claimed(body["manifest"]):
                row = found.get(id_, (0, tokens, blobs, about))
                if row[1:] != (tokens, blobs, about):
                    break
                found[id_] = (row[0] + 1, tokens, blobs, about)
                held[key] += 1
        return found, held
