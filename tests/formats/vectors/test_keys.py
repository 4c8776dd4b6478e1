"""Golden vectors: key pages, roots, sealed texts and stanzas."""

import json
import resource
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arstore.formats import digest, keypage
from arstore.formats.frames import seal, unseal
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt, KeyRefused
from arstore.store.keys.unlock import Secrets, Stanzas, open_masters
from tests.support import spec_keys
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    pass
from tests.support.vectors import VECTORS, each, refuses, sheet


@each("keys", "pages", "page", "holds")
def test_good_key_page(vector: Any) -> None:
    page = (VECTORS / sheet("keys")["pages_file"]).read_bytes()[4096 * vector["page"] :][:4096]
    key, body = bytes.fromhex(vector["key"]), bytes.fromhex(vector["body"])
    opened = keypage.open_page(key, page)
    assert opened == body.ljust(4080, b"\0")
    assert keypage.seal_page(key, body) == page
    if vector["holds"] == "inner":
        children = keypage.parse_children(opened, 1)
        assert keypage.pack_children(children) == opened
        keys = {one["page"]: one["key"] for one in sheet("keys")["pages"]}
        assert {child.position: child.key.hex() for child in children.values()}.items() <= keys.items()
    elif vector["holds"] == "tenant":
        tenant = keypage.parse_tenant(opened)
        assert tenant.packed().ljust(4080, b"\0") == opened
        assert tenant.name in ("default", "zweite-Mieterin-é")
    else:
        assert any(keypage.slot_key(opened, slot) for slot in range(127))


@each("keys", "bad_pages", "why")
def test_bad_key_page(vector: Any) -> None:
    page = bytearray((VECTORS / sheet("keys")["pages_file"]).read_bytes()[4096 * vector["page"] :][:4096])
    page[vector["at"]] ^= vector["mask"]
    refuses(keypage.open_page, bytes.fromhex(vector["key"]), bytes(page))
    refuses(keypage.open_page, bytes.fromhex(vector["key"]), bytes(page[:-1]))


@each("keys", "bad_tenants", "why")
def test_bad_tenant_page(vector: Any) -> None:
    body = bytes.fromhex(vector["body"])
    refuses(keypage.parse_tenant, keypage.open_page(bytes(32), keypage.seal_page(bytes(32), body)))


def test_good_key_root() -> None:
    told = sheet("keys")["root"]
    master, store_id, slot = (bytes.fromhex(told[name]) for name in ("master", "store_id", "slot"))
    at = told["directory"]
    directory = keypage.PageRef(at["position"], at["depth"], bytes.fromhex(at["key"]))
    root = keypage.Root(told["epoch"], directory, told["next_tenant"], bytes.fromhex(told["catalog_key"]))
    whole = keypage.seal_root(master, store_id, root, slot[:12])
    assert whole == slot.ljust(4096, b"\0")
    assert keypage.open_root(master, store_id, whole) == root
    refuses(keypage.open_root, master[::-1], store_id, whole)
    refuses(keypage.open_root, master, store_id[::-1], whole)


@each("keys", "bad_roots", "why")
def test_bad_key_root(vector: Any) -> None:
    told = sheet("keys")["root"]
    master, store_id = bytes.fromhex(told["master"]), bytes.fromhex(told["store_id"])
    slot = bytearray.fromhex(vector.get("slot", told["slot"]))
    if "flipped" in vector:
        slot[vector["flipped"]] ^= 1
    refuses(keypage.open_root, master, store_id, bytes(slot))
    with pytest.raises((Refused, struct.error)):  # the page says nothing of what is sealed, but how long it is
        spec_keys.open_root([master], store_id, bytes(slot).ljust(8192, b"\0"))


def test_sealed_text() -> None:
    told = sheet("keys")["sealed_text"]
    key, plain, sealed = (bytes.fromhex(told[name]) for name in ("key", "plain", "sealed"))
    assert unseal(key, told["context"], sealed) == plain
    assert seal(key, told["context"], plain, sealed[:12]) == sealed
    refuses(unseal, key, "master key", sealed)


def document_of(vector: Any) -> Any:
    """Return the stanzas file of a vector that lists stanzas by name, or by name and what is put over them."""
    known = sheet("stanzas")["stanzas"]
    named = [(way, {}) if isinstance(way, str) else way for way in vector["ways"]]
    return {"format": 1, "stanzas": [known[name] | puts for name, puts in named]}


def unlocked(document: Any, secret: bytes, home: Path) -> list[str]:
    """Open stanzas with a secret in every place where a secret can be; return the master keys."""
    (home / "stanzas.json").write_text(json.dumps(document))
    (home / "secret").write_bytes(secret + b"\r\n")
    held = Secrets(home / "secret", home / "secret", f"cat {home / 'secret'}")
    listed = document["stanzas"] if isinstance(document, dict) else []
    sealed = not any(isinstance(one, dict) and one.get("kind") == "open" for one in listed)
    store_id = bytes.fromhex(sheet("stanzas")["store_id"])
    return [master.hex() for master in open_masters(home, held, store_id, lambda: None, encrypted=sealed)]


@each("stanzas", "good", "name")
def test_good_stanza(vector: Any, tmp_path: Path) -> None:
    document, secret, kind = document_of(vector), bytes.fromhex(vector["secret"]), vector["kind"]
    assert unlocked(document, secret, tmp_path) == vector["masters"]
    store_id = bytes.fromhex(sheet("stanzas")["store_id"])
    masters = spec_keys.open_stanzas(document, kind != "open", {kind: secret}, store_id)
    assert [master.hex() for master in masters] == vector["masters"]
    opened = {way["opens"] for way in document["stanzas"] if way["kind"] in (kind, "previous")}
    names = {digest.derive(master, "master key name", 8).hex() for master in masters}
    assert names <= opened, "a stanza says which master key it opens"


@each("stanzas", "good", "name")
def test_a_finished_rotation_leaves_the_ways_to_one_master_key(vector: Any, tmp_path: Path) -> None:
    secret = bytes.fromhex(vector["secret"])
    unlocked(document_of(vector), secret, tmp_path)
    Stanzas.read(tmp_path).only_to(bytes.fromhex(vector["masters"][0])).write(tmp_path, Disk())
    left = json.loads((tmp_path / "stanzas.json").read_bytes())
    assert "previous" not in {way["kind"] for way in left["stanzas"]}
    assert unlocked(left, secret, tmp_path) == vector["masters"][:1]


@each("stanzas", "bad", "why")
def test_bad_stanza(vector: Any, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KeyRefused):
        unlocked(document_of(vector), bytes.fromhex(vector["secret"]), tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 << 10, "a stanza must not make opening cost all memory"


@each("stanzas", "unreadable", "why")
def test_unreadable_stanzas(vector: Any, tmp_path: Path) -> None:
    with pytest.raises(Corrupt):
        unlocked(vector["document"], b"secret", tmp_path)
