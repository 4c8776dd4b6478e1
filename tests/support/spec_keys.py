"""Keys, as formats/FORMAT.md says (sections 6 and 7)."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.support.spec_records import Refused, derive, gcm_open, need, unseal


def open_stanzas(document: Any, encrypted: bool, secrets: Mapping[str, bytes], store_id: bytes) -> list[bytes]:
    """Return the master key that one of the secrets, by stanza kind, opens, and behind it the one before, if any."""
    need(document["format"] == 1 and 1 <= len(document["stanzas"]) <= 64, "stanzas file")
    work = [s["memory_kib"] * s["iterations"] for s in document["stanzas"] if "memory_kib" in s and may_be_tried(s)]
    need(sum(work) <= 12582912, "Argon2id limits of all stanzas")
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
    need(may_be_tried(stanza), "Argon2id limits")
    kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
    return kdf.derive(secret)


def may_be_tried(stanza: Any) -> bool:
    memory, iterations, lanes = stanza["memory_kib"], stanza["iterations"], stanza["lanes"]
    in_range = 8 * lanes <= memory <= 4194304 and 1 <= iterations <= 100 and 1 <= lanes <= 64
    return bool(in_range and memory * iterations <= 4194304)


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
