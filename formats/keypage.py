"""Key pages: the 4 KiB pages of the key tree, and the root above them.

Every version of a page is sealed under a fresh random key that only its parent holds. Whoever lacks the current root
reads no page, however many old versions they keep. Each key seals one page version only, so the nonce may be zero. The
scheme is that of Reardon, Ritzdorf, Basin, Čapkun, "Secure Data Deletion from Persistent Media", CCS 2013.

    page    AES-256-GCM of 4,080 bytes, then the 16-byte tag
    inner   113 children of 36 bytes: position u32 (0 = none), key 32
    leaf    127 keys of 32 bytes (all zero = no key)
    tenant  see Tenant
    root    12-byte nonce, sealed (epoch u64; directory: position u32, depth u8, key 32; next tenant u32;
            catalog key 32), tag
"""

import struct
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .errors import FormatError
from .frames import KEY_BYTES, seal, unseal

PAGE_BYTES = 4096
FAN_OUT = 113
LEAF_SLOTS = 127
DEPTH_MAX = 8
TENANT_NAME_MAX_BYTES = 128
_BODY_BYTES = PAGE_BYTES - 16
_CHILD = struct.Struct("<I32s")
_TENANT = struct.Struct("<16s32s32sQQIB32sB128s")
_ROOT = struct.Struct("<QIB32sI32s")
_ROOT_BYTES = 12 + _ROOT.size + 16


@dataclass(frozen=True, slots=True)
class PageRef:
    """Where a page lies and the key that opens it. It has `depth` levels of pages below it. Position 0: no page."""

    position: int = 0
    depth: int = 0
    key: bytes = bytes(KEY_BYTES)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant: its keys, its quota in stored bytes (0: none), and the tree that holds its record keys."""

    id: bytes
    name: str
    digest_key: bytes
    index_key: bytes
    quota_bytes: int
    next_slot: int
    keys: PageRef

    def packed(self) -> bytes:
        name = self.name.encode()
        own = (self.id, self.digest_key, self.index_key, self.quota_bytes, self.next_slot)
        return _TENANT.pack(*own, self.keys.position, self.keys.depth, self.keys.key, len(name), name)

    def grown(self, keys: PageRef, next_slot: int) -> "Tenant":
        """Return the tenant with another tree of record keys."""
        return replace(self, keys=keys, next_slot=next_slot)


@dataclass(frozen=True, slots=True)
class Root:
    """The top of the key tree. A higher epoch replaces a lower one."""

    epoch: int
    directory: PageRef
    next_tenant: int
    catalog_key: bytes


def parse_tenant(body: bytes) -> Tenant:
    """Return the tenant in an opened page."""
    (id_, digest_key, index_key, quota, next_slot, position, depth, key, length, name) = _TENANT.unpack_from(body)
    if length > TENANT_NAME_MAX_BYTES or depth > DEPTH_MAX:
        raise FormatError("tenant page exceeds the limits")
    try:
        text = name[:length].decode()
    except UnicodeDecodeError:
        raise FormatError("tenant page holds a name that is not utf-8") from None
    return Tenant(id_, text, digest_key, index_key, quota, next_slot, PageRef(position, depth, key))


def seal_page(key: bytes, body: bytes) -> bytes:
    """Return the 4,096 bytes of one page version. Never seal two bodies with one key."""
    return AESGCM(key).encrypt(bytes(12), body.ljust(_BODY_BYTES, b"\0"), b"arstore key page")


def open_page(key: bytes, sealed: bytes) -> bytes:
    """Return the 4,080 bytes of a page's body; raise FormatError if the key is not this version's."""
    if len(sealed) != PAGE_BYTES:
        raise FormatError("key page is cut short")
    try:
        return AESGCM(key).decrypt(bytes(12), sealed, b"arstore key page")
    except (InvalidTag, ValueError):
        raise FormatError("key page does not open") from None


def pack_children(children: dict[int, PageRef]) -> bytes:
    """Return the body of an inner page from child number to child."""
    body = bytearray(_BODY_BYTES)
    for number, child in children.items():
        _CHILD.pack_into(body, number * _CHILD.size, child.position, child.key)
    return bytes(body)


def parse_children(body: bytes, depth: int) -> dict[int, PageRef]:
    """Return the children of an inner page that is `depth` levels above the leaves."""
    children = enumerate(_CHILD.iter_unpack(body[: FAN_OUT * _CHILD.size]))
    return {number: PageRef(position, depth - 1, key) for number, (position, key) in children if position}


def slot_key(leaf: bytes, slot: int) -> bytes | None:
    """Return the key of `slot` from its leaf page, None if the slot is empty."""
    start = slot % LEAF_SLOTS * KEY_BYTES
    key = leaf[start : start + KEY_BYTES]
    return key if any(key) else None


def seal_root(master: bytes, store_id: bytes, root: Root, nonce: bytes) -> bytes:
    """Return one root slot of 4,096 bytes."""
    top = root.directory
    plain = _ROOT.pack(root.epoch, top.position, top.depth, top.key, root.next_tenant, root.catalog_key)
    return seal(master, f"key root {store_id.hex()}", plain, nonce).ljust(PAGE_BYTES, b"\0")


def open_root(master: bytes, store_id: bytes, sealed: bytes) -> Root:
    """Return the root in a slot; raise FormatError if it was overwritten or another master key sealed it."""
    plain = unseal(master, f"key root {store_id.hex()}", sealed[:_ROOT_BYTES])
    if len(plain) != _ROOT.size:
        raise FormatError("key root is cut short")
    epoch, position, depth, key, next_tenant, catalog_key = _ROOT.unpack(plain)
    if depth > DEPTH_MAX:
        raise FormatError("key root exceeds the limits")
    return Root(epoch, PageRef(position, depth, key), next_tenant, catalog_key)
