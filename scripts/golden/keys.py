"""Key pages, roots and stanzas, FORMAT.md sections 6 and 7."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from golden.primitives import Json, changed, derive, fixed, seal, trimmed
from golden.records import PAGE, Owner
from golden.sheets import Built


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


def root_plain(epoch: int, directory: Ref, next_tenant: int, catalog_key: bytes) -> bytes:
    return struct.pack("<Q", epoch) + directory.packed() + struct.pack("<I", next_tenant) + catalog_key


def root_slot(master: bytes, store_id: bytes, plain: bytes) -> bytes:
    return seal(master, f"key root {store_id.hex()}", plain, f"root {store_id.hex()}").ljust(PAGE, b"\0")


def root_file(master: bytes, store_id: bytes, epoch: int, plain: bytes) -> bytes:
    """Return the two slots of a root; `plain` is the sealed part of the one that stands."""
    current, effaced = root_slot(master, store_id, plain), fixed("effaced", PAGE)
    return current + effaced if epoch % 2 == 0 else effaced + current


def keys(store: Built) -> Json:
    """Return what the pages of the sealed store hold, and pages and roots that must be refused."""
    pages = [
        {"page": n, "key": fixed(f"sealed page {n}").hex(), "holds": what, "body": trimmed(store.page_bodies[n])}
        for n, what in store.holds.items()
    ]
    first = pages[0]
    root = Ref(3, 1, fixed("directory"))
    plain = root_plain(7, root, 2, store.catalog_key)
    slot = root_slot(store.master, store.id, plain)[:109]
    deep = root_slot(store.master, store.id, root_plain(7, Ref(3, 9, fixed("directory")), 2, store.catalog_key))[:109]
    short = root_slot(store.master, store.id, plain[:-1])[:108]
    keyless = root_slot(store.master, store.id, plain[:49])[:77]
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
            {"why": "name of 129 bytes", "body": trimmed(tenant_body(owner, b"x", 0, 1, Ref(), 129))},
            {"why": "name that is not UTF-8", "body": trimmed(tenant_body(owner, b"\xff", 0, 1, Ref()))},
            {"why": "keys in a tree of depth 9", "body": trimmed(tenant_body(owner, b"x", 0, 1, Ref(1, 9)))},
        ],
        "root": {
            "master": store.master.hex(),
            "store_id": store.id.hex(),
            "slot": slot.hex(),
            "epoch": 7,
            "directory": root.described(),
            "next_tenant": 2,
            "catalog_key": store.catalog_key.hex(),
        },
        "bad_roots": [
            {"why": "a bit of the nonce flipped", "flipped": 0},
            {"why": "a bit of the sealed text flipped", "flipped": 12},
            {"why": "a bit of the catalog key flipped", "flipped": 92},
            {"why": "a bit of the tag flipped", "flipped": 108},
            {"why": "cut by a byte", "slot": slot[:-1].hex()},
            {"why": "effaced", "slot": fixed("effaced", 109).hex()},
            {"why": "a directory of depth 9", "slot": deep.hex()},
            {"why": "a root of 80 bytes", "slot": short.hex()},
            {"why": "a root without a catalog key", "slot": keyless.hex()},
            {"why": "empty", "slot": ""},
        ],
        "sealed_text": {
            "key": fixed("text key").hex(),
            "context": "version summary",
            "plain": b"text".hex(),
            "sealed": seal(fixed("text key"), "version summary", b"text", "text").hex(),
        },
    }


def stanza(kind: str, secret: bytes, master: bytes, store_id: bytes, costs: tuple[int, int, int] = (64, 2, 2)) -> Json:
    """Return one way in to `master`; of the kind `previous`, `secret` is the master key that came after it."""
    salt = fixed(f"salt {kind}", 16)
    made: Json = {"kind": kind, "opens": derive(master, "master key name", 8).hex(), "salt": salt.hex()}
    if kind == "open":
        return {**made, "master": master.hex()}
    key = derive(salt + secret, "stanza key")
    if kind == "passphrase":
        memory, iterations, lanes = costs
        made |= {"memory_kib": memory, "iterations": iterations, "lanes": lanes}
        kdf = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory)
        key = kdf.derive(secret)
    return {**made, "sealed": seal(key, f"master key {store_id.hex()}", master, f"stanza {kind}").hex()}


def refused_stanzas(ways: Json, secret: bytes, newer: bytes) -> Json:
    """Return documents that a secret must not open, and why: names of stanzas, or one and what is put in its place."""
    sealed = ways["key-file"]["sealed"]
    flipped = changed(bytes.fromhex(sealed), 30).hex()
    bad: list[tuple[str, bytes, list[Any]]] = [
        ("another secret", b"wrong", ["key-file"]),
        ("the tag of the sealed key cut", secret, [["key-file", {"sealed": sealed[:-2]}]]),
        ("a bit of the sealed key flipped", secret, [["key-file", {"sealed": flipped}]]),
        ("sealed for another store", secret, ["foreign"]),
        ("a salt of another stanza", secret, [["key-file", {"salt": ways["passphrase"]["salt"]}]]),
        ("a kind that is not known", secret, ["unknown"]),
        ("a previous key alone, the secret being the master key that opens it", newer, ["previous"]),
        ("a previous key of a way that the secret does not open", secret, ["new", "previous"]),
        ("no sealed key", secret, ["unsealed"]),
        ("a salt that is not hex", secret, [["key-file", {"salt": "salt"}]]),
        ("a salt that is not text", secret, [["key-file", {"salt": 7}]]),
        ("a sealed key that is not text", secret, [["key-file", {"sealed": [1]}]]),
        ("an open stanza whose master key is not text", secret, [["open", {"master": 7}]]),
        ("Argon2id with 101 iterations, and everything fits", secret, ["101 iterations"]),
        ("Argon2id with 65 lanes, and everything fits", secret, ["65 lanes"]),
    ]
    for cost in (
        {"memory_kib": (4 << 20) + 1},
        {"memory_kib": 15},
        {"iterations": 0},
        {"lanes": 0},
        {"lanes": None},
        {"memory_kib": 1e300},
        {"memory_kib": "much"},
    ):
        bad.append((f"Argon2id with {cost}", secret, [["passphrase", cost]]))
    return [{"why": why, "secret": used.hex(), "ways": listed} for why, used, listed in bad]


def unreadable_documents(master: bytes) -> Json:
    """Return documents that are none, and why."""
    fine = {"kind": "open", "master": master.hex()}
    unreadable: list[tuple[str, Any]] = [
        ("format 2", {"format": 2, "stanzas": [fine]}),
        ("no format", {"stanzas": [fine]}),
        ("no stanzas", {"format": 1, "stanzas": []}),
        ("65 stanzas", {"format": 1, "stanzas": [{"kind": ""}] * 65}),
        ("a stanza without a kind", {"format": 1, "stanzas": [{"salt": "00"}]}),
        ("a stanza that is no object", {"format": 1, "stanzas": ["open"]}),
        ("a list instead of an object", [fine]),
    ]
    return [{"why": why, "document": document} for why, document in unreadable]


def stanzas() -> Json:
    """Return stanzas by name, and documents made of them: a name, or a name and what is put in its place."""
    master, newer, store_id = fixed("master"), fixed("master after a rotation"), fixed("store id", 16)
    secret, new_secret = b"correct horse battery staple", b"the key file after a rotation"
    ways = {kind: stanza(kind, secret, master, store_id) for kind in ("open", "key-file", "command", "passphrase")}
    ways |= {
        "unknown": {"kind": "moonlight", "phase": 3},
        "new": stanza("key-file", new_secret, newer, store_id),
        "previous": stanza("previous", newer, master, store_id),
        "stale": stanza("previous", fixed("another master"), master, store_id),
        "foreign": stanza("key-file", secret, master, fixed("another store", 16)),
        "unsealed": {"kind": "key-file", "salt": fixed("salt key-file", 16).hex()},
        "101 iterations": stanza("passphrase", secret, master, store_id, (8, 101, 1)),
        "65 lanes": stanza("passphrase", secret, master, store_id, (520, 1, 65)),
    }
    good = [(kind, kind, secret, [master], ["unknown", kind]) for kind in ("open", "key-file", "command", "passphrase")]
    good += [
        ("passphrase behind a key file", "passphrase", secret, [master], ["key-file", "passphrase"]),
        ("rotation, new key file", "key-file", new_secret, [newer, master], ["key-file", "new", "previous"]),
        ("rotation, old key file", "key-file", secret, [master], ["key-file", "new", "previous"]),
        ("a previous key sealed for another", "key-file", new_secret, [newer], ["new", "stale"]),
    ]
    return {
        "store_id": store_id.hex(),
        "stanzas": ways,
        "good": [
            {"name": name, "kind": kind, "secret": used.hex(), "masters": [one.hex() for one in opened], "ways": listed}
            for name, kind, used, opened, listed in good
        ],
        "bad": refused_stanzas(ways, secret, newer),
        "unreadable": unreadable_documents(master),
    }
