"""Key pages, roots and stanzas, FORMAT.md sections 6 and 7."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from golden.primitives import Json, changed, derive, fixed, seal, trimmed
from golden.records import PAGE, Owner

if TYPE_CHECKING:
    from golden.stores import Store


@dataclass(frozen=True)
class Ref:
    position: int = 0
    depth: int = 0
    key: bytes = bytes(32)

    def packed(self) -> bytes:
        return struct.pack("<IB32s", self.position, self.depth, self.key)

    def described(self) -> Json:
        return {"position": self.position, "depth": self.depth, "key": self.key.hex()}


class Pages:
    """The file keys/pages while it is written; the root can reach every page but number 0."""

    def __init__(self, store: str) -> None:
        self._store = store
        self.bodies: list[bytes] = [b""]

    def add(self, body: bytes, depth: int = 0) -> Ref:
        self.bodies.append(body.ljust(PAGE - 16, b"\0"))
        position = len(self.bodies) - 1
        return Ref(position, depth, fixed(f"{self._store} page {position}"))

    def inner(self, children: Mapping[int, Ref], depth: int) -> Ref:
        body = bytearray(113 * 36)
        for number, child in children.items():
            struct.pack_into("<I32s", body, 36 * number, child.position, child.key)
        return self.add(bytes(body), depth)

    def leaf(self, keys: Mapping[int, bytes]) -> Ref:
        body = bytearray(127 * 32)
        for slot, key in keys.items():
            body[32 * (slot % 127) : 32 * (slot % 127) + 32] = key
        return self.add(bytes(body))

    def packed(self) -> bytes:
        sealed = [bytes(PAGE)]
        for position, body in enumerate(self.bodies[1:], start=1):
            key = fixed(f"{self._store} page {position}")
            sealed.append(AESGCM(key).encrypt(bytes(12), body, b"arstore key page"))
        return b"".join(sealed)


def tenant_body(
    owner: Owner, name: bytes, quota: int, next_slot: int, keys: Ref, name_length: int | None = None
) -> bytes:
    length = len(name) if name_length is None else name_length
    head = struct.pack("<16s32s32sQQ", owner.tenant, owner.digest_key, owner.index_key, quota, next_slot)
    return head + keys.packed() + bytes([length]) + name.ljust(128, b"\0")


def root_plain(epoch: int, directory: Ref, next_tenant: int) -> bytes:
    return struct.pack("<Q", epoch) + directory.packed() + struct.pack("<I", next_tenant)


def root_slot(master: bytes, store_id: bytes, plain: bytes) -> bytes:
    return seal(master, f"key root {store_id.hex()}", plain, f"root {store_id.hex()}").ljust(PAGE, b"\0")


def root_file(master: bytes, store_id: bytes, epoch: int, directory: Ref, next_tenant: int) -> bytes:
    current, effaced = root_slot(master, store_id, root_plain(epoch, directory, next_tenant)), fixed("effaced", PAGE)
    return current + effaced if epoch % 2 == 0 else effaced + current


def keys(store: "Store") -> Json:
    """Return what the pages of the sealed store hold, and pages and roots that must be refused."""
    pages = [
        {"page": n, "key": fixed(f"sealed page {n}").hex(), "holds": what, "body": trimmed(store.pages.bodies[n])}
        for n, what in store.holds.items()
    ]
    first = pages[0]
    root = Ref(3, 1, fixed("directory"))
    slot = root_slot(store.master, store.id, root_plain(7, root, 2))[:77]
    deep = root_slot(store.master, store.id, root_plain(7, Ref(3, 9, fixed("directory")), 2))[:77]
    short = root_slot(store.master, store.id, root_plain(7, root, 2)[:-1])[:76]
    owner = store.owner
    return {
        "pages_file": "sealed-store/keys/pages",
        "pages": pages,
        "bad_pages": [
            {"why": "opened with the key of another page", "page": 1, "key": pages[1]["key"], "at": 0, "mask": 0},
            {"why": "a bit of the body flipped", "page": 1, "key": first["key"], "at": 4000, "mask": 1},
            {"why": "a bit of the tag flipped", "page": 1, "key": first["key"], "at": 4095, "mask": 128},
            {"why": "page 0 holds nothing", "page": 0, "key": first["key"], "at": 0, "mask": 0},
        ],
        "bad_tenants": [
            {"why": "name of 129 bytes", "body": tenant_body(owner, b"x", 0, 1, Ref(), 129).hex()},
            {"why": "name that is not UTF-8", "body": tenant_body(owner, b"\xff", 0, 1, Ref()).hex()},
            {"why": "keys in a tree of depth 9", "body": tenant_body(owner, b"x", 0, 1, Ref(1, 9)).hex()},
        ],
        "root": {
            "master": store.master.hex(), "store_id": store.id.hex(), "slot": slot.hex(), "epoch": 7,
            "directory": root.described(), "next_tenant": 2,
        },
        "bad_roots": [
            {"why": "a bit of the nonce flipped", "slot": changed(slot, 0).hex()},
            {"why": "a bit of the sealed text flipped", "slot": changed(slot, 12).hex()},
            {"why": "a bit of the tag flipped", "slot": changed(slot, 76).hex()},
            {"why": "cut by a byte", "slot": slot[:-1].hex()},
            {"why": "effaced", "slot": fixed("effaced", 77).hex()},
            {"why": "a directory of depth 9", "slot": deep.hex()},
            {"why": "a root of 48 bytes", "slot": short.hex()},
            {"why": "empty", "slot": ""},
        ],
        "sealed_text": {
            "key": fixed("text key").hex(), "context": "version summary", "plain": b"text".hex(),
            "sealed": seal(fixed("text key"), "version summary", b"text", "text").hex(),
        },
    }  # fmt: skip


def stanza(kind: str, secret: bytes, master: bytes, store_id: bytes, costs: tuple[int, int, int] = (64, 2, 2)) -> Json:
    salt = fixed(f"salt {kind}", 16)
    made: Json = {"kind": kind, "salt": salt.hex()}
    if kind == "open":
        return {**made, "master": master.hex()}
    key = derive(salt + secret, "stanza key")
    if kind == "passphrase":
        memory, iterations, lanes = costs
        made |= {"memory_kib": memory, "iterations": iterations, "lanes": lanes}
        kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
        key = kdf.derive(secret)
    return {**made, "sealed": seal(key, f"master key {store_id.hex()}", master, f"stanza {kind}").hex()}


def stanzas() -> Json:
    master, store_id = fixed("master"), fixed("store id", 16)
    secret = b"correct horse battery staple"
    made = {kind: stanza(kind, secret, master, store_id) for kind in ("open", "key-file", "command", "passphrase")}
    foreign = stanza("key-file", secret, master, fixed("another store", 16))
    key_file, passphrase = made["key-file"], made["passphrase"]
    unknown = {"kind": "moonlight", "phase": 3}
    flipped = changed(bytes.fromhex(key_file["sealed"]), 30)

    def document(*listed: Json, number: Any = 1) -> Json:
        return {"format": number, "stanzas": list(listed)}

    good = [{"kind": kind, "secret": secret.hex(), "document": document(unknown, made[kind])} for kind in made]
    good += [{"kind": "passphrase", "secret": secret.hex(), "document": document(key_file, passphrase)}]
    bad = [
        ("key", "another secret", document(key_file), b"wrong"),
        ("key", "the tag of the sealed key cut", document(key_file | {"sealed": key_file["sealed"][:-2]}), secret),
        ("key", "a bit of the sealed key flipped", document(key_file | {"sealed": flipped.hex()}), secret),
        ("key", "sealed for another store", document(foreign), secret),
        ("key", "a salt of another stanza", document(key_file | {"salt": passphrase["salt"]}), secret),
        ("key", "a kind that is not known", document(unknown), secret),
        ("key", "no sealed key", document({"kind": "key-file", "salt": key_file["salt"]}), secret),
        ("key", "a salt that is not hex", document(key_file | {"salt": "salt"}), secret),
        ("key", "a salt that is not text", document(key_file | {"salt": 7}), secret),
        ("key", "a sealed key that is not text", document(key_file | {"sealed": [1]}), secret),
        ("unreadable", "format 2", document(key_file, number=2), secret),
        ("unreadable", "no format", {"stanzas": [key_file]}, secret),
        ("unreadable", "no stanzas", document(), secret),
        ("unreadable", "65 stanzas", document(*[{"kind": ""}] * 65), secret),
        ("key", "an open stanza whose master key is not text", document({"kind": "open", "master": 7}), secret),
        ("unreadable", "a stanza without a kind", document({"salt": "00"}), secret),
        ("unreadable", "a stanza that is no object", {"format": 1, "stanzas": ["open"]}, secret),
        ("unreadable", "a list instead of an object", [key_file], secret),
    ]  # fmt: skip
    for cost in (
        {"memory_kib": (4 << 20) + 1}, {"memory_kib": 15}, {"iterations": 0}, {"lanes": 0}, {"lanes": None},
        {"memory_kib": 1e300}, {"memory_kib": "much"},
    ):  # fmt: skip
        bad.append(("key", f"Argon2id with {cost}", document(passphrase | cost), secret))
    for why, costs in (("101 iterations", (8, 101, 1)), ("65 lanes", (520, 1, 65))):
        costly = stanza("passphrase", secret, master, store_id, costs)
        bad.append(("key", f"Argon2id with {why}, and everything fits", document(costly), secret))
    return {
        "master": master.hex(), "store_id": store_id.hex(), "good": good,
        "bad": [
            {"why": why, "refused": refused, "secret": used.hex(), "document": listed}
            for refused, why, listed, used in bad
        ],
    }  # fmt: skip
