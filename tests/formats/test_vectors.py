"""Golden vectors: the product reads every good one, writes the same bytes again, and refuses every bad one by its rule.

The vectors are written by scripts/vectors from FORMAT.md alone, and `spec_reader` reads from FORMAT.md alone: what the
two of them and the product agree on stands in that page.
"""

import ast
import json
import os
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

import arstore
from arstore.formats import catalog, codec, digest, keypage, lease, manifest, record, strict_json
from arstore.formats.errors import FormatError
from arstore.formats.frames import TAG_BYTES, Binding, frames_of, seal, unseal
from arstore.formats.identity import FIELDS, PROVENANCE, KeyId, chain_blocks, identity_key, key_id, make_identity
from arstore.formats.kv_shape import parse_shape
from arstore.formats.tensor import TensorSpan, cut_span, dense_bytes
from arstore.store.access import rebuild_catalog
from arstore.store.artifacts.cuts import cut_file
from arstore.store.artifacts.inputs import InputFile, MemorySource
from arstore.store.config import write_config
from arstore.store.disk import Disk
from arstore.store.errors import Conflict, Corrupt, KeyRefused, StoreError
from arstore.store.keys.keyring import Keyring, create_keyring
from arstore.store.keys.tenant_keys import TenantKeys
from arstore.store.keys.unlock import Secrets, Stanzas, new_key_file, open_masters
from arstore.store.kv.arrays import cut_of, parts_of
from arstore.store.kv.prefix import Prefix
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.segments.reader import SegmentReader
from arstore.store.segments.records import OpenRecord
from arstore.store.store import Store
from tests.support import spec_reader
from tests.support.spec_reader import Refused

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "tests" / "vectors"
WAYS = ("sealed", "plain")


@cache
def sheet(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_bytes())


def each(name: str, part: str, *say: str) -> pytest.MarkDecorator:
    """Return a decorator that runs a test over one list of vectors, each called by what it says of itself."""
    vectors = sheet(name)[part]
    ids = [" ".join(str(one.get(key)) for key in say) or str(number) for number, one in enumerate(vectors)]
    return pytest.mark.parametrize("vector", vectors, ids=ids)


def refuses(decode: Callable[..., object], *arguments: Any) -> str:
    """Check that a decoder raises FormatError, exactly; return what it says."""
    with pytest.raises(FormatError) as caught:
        decode(*arguments)
    assert type(caught.value) is FormatError
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- digests and codecs


def test_digests() -> None:
    for one in sheet("digests")["digests"]:
        assert digest.digest_bytes(bytes.fromhex(one["key"]), bytes.fromhex(one["plain"])).hex() == one["digest"]
        assert digest.parse_digest(one["digest"]).hex() == one["digest"]
    for one in sheet("digests")["derived"]:
        assert digest.derive(bytes.fromhex(one["secret"]), one["context"], one["length"]).hex() == one["derived"]
    for one in sheet("digests")["keyed"]:
        parts = [bytes.fromhex(part) for part in one["parts"]]
        assert digest.keyed_hash(bytes.fromhex(one["key"]), *parts, length=one["length"]).hex() == one["keyed"]
    for one in sheet("digests")["bad_texts"]:
        refuses(digest.parse_digest, one["text"])


def decoded(number: int, encoded: bytes, length: int) -> bytes:
    plain = bytearray(length)
    codec.decode(number, memoryview(encoded), memoryview(plain))
    return bytes(plain)


@each("codecs", "good", "name")
def test_good_frame(vector: Any) -> None:
    encoded, plain = bytes.fromhex(vector["encoded"]), bytes.fromhex(vector["plain"])
    assert decoded(vector["codec"], encoded, len(plain)) == plain
    assert spec_reader.decode(vector["codec"], encoded, len(plain)) == plain
    again = codec.encode(codec.Codec(vector["codec"]), memoryview(plain))  # zstd may find other bytes for the same
    assert decoded(vector["codec"], again, len(plain)) == plain
    if vector["codec"] == codec.Codec.STORED:
        assert again == encoded


CODEC_RULES = {
    "length": r"stored frame is \d+ bytes|codec part is \d+ bytes, want at most",
    "zstd": r"codec part|zstd frame",
    "planes": r"plane frame is|plane parts are",
    "limits": r"exceeds the limit",
    "codec": r"codec \d+ is not known",
}


@each("codecs", "bad", "why")
def test_bad_frame(vector: Any) -> None:
    encoded = bytes.fromhex(vector["encoded"])
    said = refuses(decoded, vector["codec"], encoded, vector["plain_bytes"])
    assert re.search(CODEC_RULES[vector["refused"]], said), said
    with pytest.raises(Refused):
        spec_reader.decode(vector["codec"], encoded, vector["plain_bytes"])


# --- segments


def spread(pieces: Any) -> bytes:
    whole = bytearray(pieces["length"])
    for at, piece in pieces["pieces"].items():
        whole[int(at) : int(at) + len(piece) // 2] = bytes.fromhex(piece)
    return bytes(whole)


@each("segments", "good")
def test_good_segment_header(vector: Any) -> None:
    header = record.SegmentHeader(bytes.fromhex(vector["store_id"]), vector["segment"], vector["lifetime"])
    assert record.parse_segment_header(spread(vector["header"])) == header
    assert header.packed() == spread(vector["header"])


@each("segments", "bad", "why")
def test_bad_segment_header(vector: Any) -> None:
    refuses(record.parse_segment_header, spread(vector["header"]))


# --- records, read as the store reads them: from a segment, with the key that the golden key tree has in their slot


class Shelf:
    """A golden store's keys, and segments of one record each."""

    def __init__(self, way: str, home: Path) -> None:
        told = sheet(f"{way}-store")
        shutil.copytree(VECTORS / f"{way}-store" / "keys", home / "keys")
        header = record.parse_segment_header((VECTORS / f"{way}-store" / "segments" / f"{1:016x}.seg").read_bytes())
        self.store_id, self._home = header.store_id, home
        master = bytes.fromhex(told["master"])
        self.keyring = Keyring(home / "keys", home / "keys" / "root", [master], self.store_id, Disk())
        number, tenant = self.keyring.tenant("default")
        self.keys = TenantKeys(number, tenant, self.keyring, encrypted=way == "sealed")

    def opened(self, whole: bytes) -> OpenRecord:
        """Write a record to a segment and return it opened, not yet checked."""
        header = record.parse_header(whole)
        (self._home / f"{1:016x}.seg").write_bytes(record.SegmentHeader(self.store_id, 1, 1).packed() + whole)
        place = catalog.place_of(1, 4096, header)
        return OpenRecord(SegmentReader(self._home, self.store_id), self.keys, place, header.binding.kind)


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shelf]]:
    made = {way: Shelf(way, tmp_path_factory.mktemp(way)) for way in WAYS}
    yield made
    for shelf in made.values():
        shelf.keyring.close()


def padded(text: str) -> bytes:
    return bytes.fromhex(text).ljust(4096, b"\0")


@each("records", "good", "name")
def test_good_record(vector: Any, shelves: dict[str, Shelf]) -> None:
    shelf, owner = shelves[vector["store"]], sheet("records")["owners"][vector["store"]]
    whole, plain, named = padded(vector["record"]), bytes.fromhex(vector["plain"]), bytes.fromhex(vector["digest"])
    digest_key, key = bytes.fromhex(owner["digest_key"]), bytes.fromhex(vector["key"]) if vector["key"] else None
    opened = shelf.opened(whole)
    assert shelf.keys.tenant.digest_key == digest_key
    assert shelf.keys.key(opened.place) == key
    opened.check(digest.Digest(named), digest_key)
    assert opened.footer().digest == named
    assert opened.read_all() == plain
    assert spec_reader.Record(whole, key).read(digest_key) == (named, plain)


@each("records", "good", "name")
def test_good_record_is_written_again_byte_by_byte(vector: Any) -> None:
    owner = sheet("records")["owners"][vector["store"]]
    plain, frame_bytes = bytes.fromhex(vector["plain"]), vector["frame_bytes"]
    binding = Binding(
        bytes.fromhex(owner["tenant"]), bytes.fromhex(vector["instance"]), vector["kind"], vector["codec"],
        frame_bytes, len(plain),
    )  # fmt: skip
    assert binding.packed().hex() == vector["binding"]
    frames = frames_of(bytes.fromhex(vector["key"]) if vector["key"] else None, binding)
    assert frames.commitment.hex() == vector["commitment"]
    cut = [plain[at : at + frame_bytes] for at in range(0, len(plain), frame_bytes)]
    encoded = [bytes.fromhex(frame) for frame in vector["encoded"]] if vector["codec"] else cut
    payload = b""
    for index, frame in enumerate(encoded):
        sealed = bytearray(len(frame) + TAG_BYTES)
        frames.seal_into(index, frame, memoryview(sealed))
        payload += sealed
    header = record.Header(binding, int(vector["key"] is not None), len(payload), vector["slot"], frames.commitment)
    named = digest.Digest(bytes.fromhex(vector["digest"]))
    footer = record.seal_footer(frames, named, [len(frame) for frame in encoded] if vector["codec"] else None)
    assert header.packed(frames) + payload + footer == padded(vector["record"])[: header.used_bytes]
    assert header.record_bytes == 4096


RECORD_RULES = {
    "form": r"no record starts here|does not know|exceeds the limits|contradict each other",
    "header": r"header is not the one that was written",
    "footer": r"footer fails its",
    "lengths": r"footer contradicts its header",
    "digest": r"holds another blob",
    "padding": r"padding is not zero",
    "frame": r"frame \d+ fails its",
    "codec": r"codec",
    "plaintext": r"another digest",
}


def damaged(vector: Any) -> tuple[Any, bytes]:
    """Return the good record that a bad one was made of, and the bad one."""
    of = next(one for one in sheet("records")["good"] if one["name"] == vector["of"])
    whole = bytearray(padded(of["record"]))
    for at, put in vector["puts"]:
        piece = bytes(put) if isinstance(put, int) else bytes.fromhex(put)
        whole[at : at + len(piece)] = piece
    assert whole != padded(of["record"])
    return of, bytes(whole)


@each("records", "bad", "of", "why")
def test_bad_record(vector: Any, shelves: dict[str, Shelf]) -> None:
    of, whole = damaged(vector)
    shelf = shelves[of["store"]]

    def read() -> bytes:
        opened = shelf.opened(whole)
        opened.check(digest.Digest(bytes.fromhex(of["digest"])), shelf.keys.tenant.digest_key)
        return opened.read_all()

    if vector["refused"] == "key":  # there is no key to try, so the store says which record it is
        with pytest.raises(Corrupt):
            read()
        return
    said = refuses(read)
    assert re.search(RECORD_RULES[vector["refused"]], said), said
    if vector["refused"] == "form":
        refuses(record.parse_header, whole)
    else:
        record.parse_header(whole)


@each("records", "bad", "of", "why")
def test_rules_of_the_specification_refuse_a_bad_record(vector: Any) -> None:
    of, whole = damaged(vector)
    told = sheet(f"{of['store']}-store")
    store = spec_store(of["store"], VECTORS / f"{of['store']}-store", told)
    try:
        _, found, plain = store.record(whole, 0)
    except Refused:
        return
    assert vector["refused"] == "digest", "only a record of another blob is one that opens"
    assert found.hex() != of["digest"]
    assert plain.hex() != of["plain"]


# --- keys


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
        spec_reader.open_root([master], store_id, bytes(slot).ljust(8192, b"\0"))


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
    masters = spec_reader.open_stanzas(document, kind != "open", {kind: secret}, store_id)
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


# --- identities and manifests


@each("identities", "good")
def test_good_identity(vector: Any) -> None:
    identity = make_identity(vector["fields"])
    assert dict(identity) == vector["identity"]
    assert list(identity) == sorted(identity)
    assert make_identity(vector["identity"]) == identity
    spec_reader.check_identity(vector["identity"])


@each("identities", "bad", "why")
def test_bad_identity(vector: Any) -> None:
    refuses(make_identity, vector["fields"])
    with pytest.raises(Refused):
        spec_reader.check_identity(vector["fields"])


@each("identities", "not_canonical", "field", "text")
def test_a_text_that_is_not_canonical_is_made_so_and_refused_in_a_manifest(vector: Any) -> None:
    fields = {vector["field"]: vector["text"]}
    identity = dict(make_identity(fields))
    assert identity != fields
    spec_reader.check_identity(identity)
    with pytest.raises(Refused):
        spec_reader.check_identity(fields)
    good = strict_json.parse_json(sheet("manifests")["good"][0]["text"].encode())
    manifest.parse_manifest(good | {"identity": identity})
    refuses(manifest.parse_manifest, good | {"identity": fields})


@each("identities", "keys", "name")
def test_key_id(vector: Any) -> None:
    key = identity_key(bytes.fromhex(sheet("identities")["digest_key"]))
    identity = make_identity(vector["identity"])
    assert key_id(key, vector["kind"], identity).hex() == vector["id"]
    assert spec_reader.key_id(key, vector["kind"], vector["identity"]).hex() == vector["id"]


@each("identities", "blocks", "name")
def test_prefix_blocks(vector: Any) -> None:
    key = identity_key(bytes.fromhex(sheet("identities")["digest_key"]))
    root, tokens, count = bytes.fromhex(vector["root"]), vector["tokens"], vector["block_tokens"]
    packed = memoryview(struct.pack(f"<{len(tokens)}I", *tokens))
    assert [id_.hex() for id_ in chain_blocks(key, KeyId(root), packed, count)] == vector["ids"]
    assert [id_.hex() for id_ in spec_reader.block_ids(key, root, tokens, count)] == vector["ids"]


def test_ids_of_the_golden_vectors_differ() -> None:
    """But for provenance, which is only counted where it is asked for."""
    keys = {one["name"]: one["id"] for one in sheet("identities")["keys"]}
    assert keys.pop("with provenance: as without") == keys["KV"]
    assert len(set(keys.values())) == len(keys)
    blocks = {one["name"]: one["ids"] for one in sheet("identities")["blocks"]}
    assert blocks["a short last block"][:2] == blocks["two blocks"]
    others = [id_ for name, ids in blocks.items() if name != "a short last block" for id_ in ids]
    assert len(set(others)) == len(others)


def test_the_specification_names_every_identity_field_and_its_kind() -> None:
    text = (ROOT / "formats" / "FORMAT.md").read_text("utf-8")
    rows = re.findall(r"^\| (\w+) \| `([a-z_ ]+)`(?: \(\*\*(\w+)\*\*\))? \|$", text, re.MULTILINE)
    told = [(name, kind) for kind, names, _ in rows for name in names.split()]
    kinds = {"text": "_text", "count": "_count", "number": "_number", "JSON": "_json", "names": "_names",
             "layers": "_layers", "contents": "_contents", "positions": "_positions", "yes": "_yes"}  # fmt: skip
    assert len(told) == len(FIELDS)
    assert {name: kinds[kind] for name, kind in told} == {name: take.__name__ for name, take in FIELDS.items()}
    assert {name for _, names, note in rows if note for name in names.split()} == PROVENANCE


@each("manifests", "good", "name")
def test_good_manifest(vector: Any) -> None:
    parsed = manifest.parse_manifest(strict_json.parse_json(vector["text"].encode()))
    assert parsed.packed() == vector["text"].encode()
    assert parsed.id(bytes.fromhex(sheet("manifests")["digest_key"])).hex() == vector["id"]
    rows = [(bytes.fromhex(id_), tokens, [bytes.fromhex(one) for one in blobs], bytes.fromhex(about))
            for id_, tokens, blobs, about in vector["rows"]]  # fmt: skip
    claims = parsed.needs().claims
    assert [(id_, named.tokens, list(named.blobs), named.about) for id_, named in claims] == rows
    assert spec_reader.claimed(json.loads(vector["text"])) == rows


@each("manifests", "bad", "why")
def test_bad_manifest(vector: Any) -> None:
    good = strict_json.parse_json(sheet("manifests")["good"][0]["text"].encode())
    value = {key: part for key, part in good.items() if key != vector.get("without")} | vector.get("puts", {})
    assert value != good or vector["why"].startswith(("format as truth", "single that is a number"))  # 1 == True
    refuses(manifest.parse_manifest, strict_json.parse_json(json.dumps(value).encode()))
    if "shape" in vector.get("puts", {}):
        with pytest.raises(Refused):
            spec_reader.Shape(value["shape"])


@each("manifests", "bad_texts", "why")
def test_bad_manifest_text(vector: Any) -> None:
    refuses(lambda: manifest.parse_manifest(strict_json.parse_json(vector["text"].encode())))


@each("manifests", "bad_bytes", "why")
def test_bad_manifest_bytes(vector: Any) -> None:
    refuses(strict_json.parse_json, bytes.fromhex(vector["bytes"]))


def repeated(cuts: Any) -> list[tuple[Any, ...]]:
    return [(length, *more) for length, times, *more in cuts for _ in range(times)]


@each("cuts", "tensors", "dtype", "shape")
def test_cut_of_a_tensor(vector: Any) -> None:
    shape = tuple(vector["shape"])
    stride = shape if vector["strided"] else None
    span = TensorSpan("name", vector["dtype"], shape, 7, dense_bytes(vector["dtype"], shape), stride)
    assert [(length,) for length in cut_span(span)] == repeated(vector["blobs"])


class Length(MemorySource):
    """A file of which only the length is asked."""

    def __init__(self, size: int) -> None:
        super().__init__([])
        self.size = size


@each("cuts", "files", "size", "tensors")
def test_cut_of_a_file(vector: Any) -> None:
    spans = tuple(
        TensorSpan(str(number), dtype, tuple(shape), start, dense_bytes(dtype, tuple(shape)))
        for number, (start, dtype, shape) in enumerate(vector["tensors"])
    )
    cuts = cut_file(InputFile("x", 0o644, Length(vector["size"]), "safetensors", spans))
    assert [(cut.length, cut.dtype) for cut in cuts] == repeated(vector["blobs"])


# --- catalog rows

PARSERS: dict[str, Callable[..., Any]] = {
    "blobs": catalog.parse_blob, "versions": catalog.parse_version, "segments": catalog.parse_segment,
    "blob": catalog.parse_blob, "version": catalog.parse_version, "segment": catalog.parse_segment,
    "identities": catalog.parse_named, "identity": catalog.parse_named,
    "leases": lease.parse_lease, "lease": lease.parse_lease, "process": lease.parse_process,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_good_catalog_rows(way: str) -> None:
    told = sheet(f"{way}-store")
    check_key = bytes.fromhex(told["catalog_key"])
    assert set(told["catalog"]) == set(spec_reader.TABLES)
    for table, rows in told["catalog"].items():
        assert rows or (way == "plain" and table in ("loans", "spare", "doomed")), table
        for key_text, value_text in rows.items():
            key, value = bytes.fromhex(key_text), bytes.fromhex(value_text)
            packed = catalog.open_row(check_key, table, key, value)
            if table in PARSERS:
                ids = [bytes.fromhex(told["ids"][key_text])] if table == "identities" else []
                packed = PARSERS[table](packed, *ids).packed(*ids)
            assert catalog.close_row(check_key, table, key, packed) == value


def ids_for(row: str) -> list[bytes]:
    """Return what a row of the sheet is masked by, besides its bytes."""
    return [bytes.fromhex(sheet("catalog")["id"])] if row == "identity" else []


@each("catalog", "good_rows", "row", "name")
def test_good_catalog_row_says_what_it_says(vector: Any) -> None:
    packed = bytes.fromhex(vector["value"])
    parsed = PARSERS[vector["row"]](packed, *ids_for(vector["row"]))
    assert parsed.packed(*ids_for(vector["row"])) == packed
    said = {**asdict(parsed), **asdict(getattr(parsed, "process", getattr(parsed, "named", parsed)))}
    said = {name: value.hex() if isinstance(value, bytes) else value for name, value in said.items()}
    said["blobs"] = [blob.hex() for blob in said.get("blobs", ())]
    assert {name: said[name] for name in vector["says"]} == vector["says"]
    if vector["row"] == "lease":
        held = spec_reader.parse_lease(packed)
        assert (held.epoch, held.owner.hex(), held.purpose) == (said["epoch"], said["owner"], said["purpose"])
    if vector["row"] == "identity":
        refs, tokens, blobs, about = spec_reader.parse_identity(packed, *ids_for("identity"))
        found = {"refs": refs, "tokens": tokens, "blobs": [blob.hex() for blob in blobs], "about": about.hex()}
        assert found == vector["says"]


@each("catalog", "bad_checks", "why")
def test_catalog_row_with_a_bad_check(vector: Any) -> None:
    check_key = bytes.fromhex(sheet("catalog")["check_key"])
    key, value = bytes.fromhex(vector["key"]), bytes.fromhex(vector["value"])
    refuses(catalog.open_row, check_key, vector["table"], key, value)


@each("catalog", "bad_rows", "row", "why")
def test_catalog_row_that_says_too_much(vector: Any) -> None:
    refuses(PARSERS[vector["row"]], bytes.fromhex(vector["value"]), *ids_for(vector["row"]))
    if vector["row"] == "identity":
        with pytest.raises(Refused):
            spec_reader.parse_identity(bytes.fromhex(vector["value"]), *ids_for("identity"))


# --- whole stores


def spec_store(way: str, root: Path, told: Any) -> spec_reader.Store:
    secret = {"key-file": bytes.fromhex(told["key_file"]).strip()} if way == "sealed" else {}
    return spec_reader.Store(root, secret)


@pytest.fixture(params=WAYS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Any]:
    """Return a golden store as a directory of its own, its catalog made of its rows, its key file beside it."""
    way = request.param
    told, root = sheet(f"{way}-store"), tmp_path / "golden"
    shutil.copytree(VECTORS / f"{way}-store", root)
    for path in [root, *root.rglob("*")]:  # a checkout may be read-only
        path.chmod(0o700 if path.is_dir() else 0o600)
    with lmdb.open(str(root / "catalog"), max_dbs=16, map_size=1 << 20) as environment:
        for table, rows in told["catalog"].items():
            place = environment.open_db(table.encode())
            with environment.begin(write=True, db=place) as change:
                for key, value in rows.items():
                    change.put(bytes.fromhex(key), bytes.fromhex(value))
    if told["key_file"]:
        (tmp_path / "key").write_bytes(bytes.fromhex(told["key_file"]))
    return way, root, told


def opened(root: Path) -> arstore.Store:
    return arstore.open_store(root, key_file=root.parent / "key")


def test_golden_store_is_read_by_the_product(golden: tuple[str, Path, Any], tmp_path: Path) -> None:
    _, root, told = golden
    with opened(root) as store:
        listed = {found.summary.name: found.summary for found in store.ls()}
        assert listed.keys() == told["artifacts"].keys() | {one["name"] for one in told["kv"]}
        for name, artifact in told["artifacts"].items():
            summary = listed[name]
            expected = artifact["version"], artifact["label"], artifact["pinned"]
            assert (summary.version, summary.label, summary.pinned) == expected
            single = len(artifact["files"]) == 1
            store.get_to(name, dest := tmp_path / "out" / name)
            for path, file in artifact["files"].items():
                got = dest if single else dest / path
                assert got.read_bytes().hex() == file["bytes"]
                assert stat.S_IMODE(got.stat().st_mode) == file["mode"]
        scrubbed = store.verify(deep=True)
        assert scrubbed.corrupt == ()
        assert scrubbed.checked == sum(map(len, (told["catalog"][table] for table in ("blobs", "versions"))))


def test_golden_store_takes_more(golden: tuple[str, Path, Any], tmp_path: Path) -> None:
    way, root, told = golden
    (tmp_path / "more").write_bytes(b"more " * 100)
    with opened(root) as store:
        assert store.put(tmp_path / "more", name="golden/more").summary.version == 1
        assert store.put(tmp_path / "more", name="golden/note").summary.version == 2
        assert store.put(tmp_path / "more", name="golden/more").blobs_new == 0
        store.rm("golden/note@1")
        assert store.verify(deep=True).corrupt == ()
    other = spec_store(way, root, told)
    assert other.files("golden/note") == {"more": (0o644, b"more " * 100)}


def test_golden_store_ends_what_was_killed_in_it(golden: tuple[str, Path, Any]) -> None:
    """In the sealed one an erase came no further than its doomed list, and a put left its loan."""
    way, root, told = golden
    before = spec_store(way, root, told)
    check_slots(before)
    opened(root).close()
    erased = spec_store(way, root, told)
    assert before.tenant.slots() - erased.tenant.slots() == ({10} if way == "sealed" else set())
    check_slots(erased)
    with opened(root) as store:
        assert [(held.purpose, held.epoch, held.state) for held in store.leases()] == [("gc", 3, "dead")]
        assert store.gc(AT_ONCE).deleted_blobs == 0
        assert store.leases() == []
    after = spec_store(way, root, told)
    assert before.tenant.slots() - after.tenant.slots() == ({5, 6, 10} if way == "sealed" else set())
    check_slots(after)
    rows = after.catalog()
    assert spec_reader.parse_lease(after.row(rows, "leases", b"gc")).epoch == 4
    assert after.row(rows, "counters", b"gc-cycle") == struct.pack("<Q", 4)
    assert {version for _, version in after.scanned_files()} == {one["version"] for one in told["artifacts"].values()}


def test_golden_store_is_rebuilt(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    shutil.rmtree(root / "catalog")
    with pytest.raises(Corrupt):
        opened(root)
    repaired = rebuild_catalog(root, key_file=root.parent / "key", forget_lost=True)
    assert repaired.lost == ()
    assert repaired.recovered == sum(len(told["catalog"][table]) for table in ("blobs", "versions"))
    store = spec_store(way, root, told)
    rows = store.catalog()
    ends_of = {"blobs": 62 + 5, "names": None, "segments": None, "identities": None}
    for table, ends in ends_of.items():  # what only the catalog knew is gone
        for key_text, value_text in told["catalog"][table].items():
            found = store.row(rows, table, bytes.fromhex(key_text))
            assert found[:ends] == bytes.fromhex(value_text)[:-8][:ends], table
    for table in ("versions", "identities"):
        assert rows[table].keys() == {bytes.fromhex(key) for key in told["catalog"][table]}
    assert store.identities(rows) == store.scanned_identities()
    assert not any(rows[table] for table in ("loans", "spare", "doomed", "leases"))
    check_slots(store)


def test_golden_store_is_read_from_the_specification(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    store = spec_store(way, root, told)
    assert store.top.epoch == told["epoch"]
    assert store.top.catalog_key.hex() == told["catalog_key"]
    for slot in told["slots_without_a_key"]:
        with pytest.raises(Refused):
            store.tenant.key(slot)
    scanned = store.scanned_files()
    for name, artifact in told["artifacts"].items():
        files = {path: (file["mode"], bytes.fromhex(file["bytes"])) for path, file in artifact["files"].items()}
        assert store.files(name) == files
        assert scanned[name, artifact["version"]] == files


def arrays_of(prefix: Prefix, **how: Any) -> dict[str, tuple[list[int], str]]:
    """Return shape and bytes, in hex, of the tensors of a prefix."""
    import torch

    tensors = prefix.tensors(**how).items()
    return {name: (list(one.shape), one.view(torch.uint8).numpy().tobytes().hex()) for name, one in tensors}


def test_golden_kv_is_read_by_the_product(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    long, short = told["kv"]
    with opened(root) as store:
        for one in (long, short):
            wanted = {name: (array["shape"], array["bytes"]) for name, array in one["arrays"].items()}
            hit = store.longest_prefix(one["tokens"], one["identity"])
            assert (hit.tokens_count, hit.blocks_count) == (len(one["tokens"]), -(-len(one["tokens"]) // 4))
            assert arrays_of(hit) == arrays_of(store.kv.open(one["name"])) == wanted
            other = {**one["identity"], "engine": "another"}
            assert arrays_of(store.longest_prefix([*one["tokens"], 5], other)).keys() == wanted.keys()
        assert store.longest_prefix([*long["tokens"][:8], 9], long["identity"]).tokens_count == 8
        assert store.longest_prefix(long["tokens"][:6], long["identity"]).tokens_count == 4
        assert not store.longest_prefix(long["tokens"], {**long["identity"], "layout": "NHD"})
        store.rm(long["name"])
        assert store.longest_prefix(long["tokens"], long["identity"]).tokens_count == 4
        store.rm(short["name"])
        assert not store.longest_prefix(long["tokens"], long["identity"])
    after = spec_store(way, root, told)
    assert after.catalog()["identities"] == {}


def test_golden_kv_is_read_from_the_specification(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    store, (long, short) = spec_store(way, root, told), told["kv"]
    for one in (long, short):
        wanted = {name: bytes.fromhex(array["bytes"]) for name, array in one["arrays"].items()}
        assert store.kv(one["tokens"], one["identity"]) == (len(one["tokens"]), wanted)
        [(_, content)] = store.files(one["name"]).values()
        assert sorted(content) == sorted(b"".join(wanted.values()))
    assert store.kv([*long["tokens"][:8], 9], long["identity"])[0] == 8
    assert store.kv(long["tokens"][1:], long["identity"])[0] == 0
    assert store.kv(long["tokens"], {**long["identity"], "model": "another"}) == (0, {})
    found, held = store.identities(store.catalog())
    assert store.scanned_identities() == (found, held)
    assert {id_.hex() for id_ in found} == set(told["ids"].values())
    assert sorted(row[0] for row in found.values()) == [1, 1, 1, 2, 2], "the sequences share key id and first block"
    assert sorted(held.values()) == [0] * len(told["artifacts"]) + [3, 4]


def test_a_key_tree_of_three_levels_is_read_from_the_specification(tmp_path: Path) -> None:
    """The golden trees are small; leaf 113 is the first that needs a second inner level."""
    root, master, store_id = tmp_path / "root", bytes(range(32)), bytes(16)
    (tmp_path / "keys").mkdir()
    create_keyring(tmp_path / "keys", root, master, store_id, Disk())
    keyring = Keyring(tmp_path / "keys", root, [master], store_id, Disk())
    try:
        number = keyring.add_tenant("big", open_keys=False)
        made = dict(keyring.reserve(number, 127 * 114))

        def tenant() -> spec_reader.Tenant:
            pages = (tmp_path / "keys" / "pages").read_bytes()
            top = spec_reader.open_root([master], store_id, root.read_bytes())
            assert (top.epoch, top.catalog_key) == (keyring.epoch, keyring.catalog_key)
            body = spec_reader.leaf(pages, top.directory, number)
            assert body is not None
            return spec_reader.Tenant(body, pages)

        for slot in (1, 126, 127, 127 * 112, 127 * 113 - 1, 127 * 113, 127 * 114):
            assert tenant().key(slot) == made[slot]
        with pytest.raises(Refused):
            tenant().key(127 * 114 + 1)

        doomed = {1, 126, 127 * 113, *range(127 * 5, 127 * 7)}  # of leaves 5 and 6 nothing is left
        keyring.destroy({number: doomed})
        found = tenant()
        assert found.slots() == made.keys() - doomed == set(keyring.slots(number))
        assert found.key(2) == made[2]
        keyring.destroy({number: made})
        assert tenant().slots() == set()
        [(slot, key)] = keyring.reserve(number, 1)
        assert slot == 127 * 114 + 1
        assert (tenant().slots(), tenant().key(slot)) == ({slot}, key)
    finally:
        keyring.close()


# --- a store that the product makes now, read from the specification


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a directory of files that take every codec, several frames, one blob twice and one name in UTF-8."""
    import numpy as np
    from safetensors.numpy import save_file

    chance = np.random.default_rng(7)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "half": chance.standard_normal((64, 100)).astype(np.float16),
        "single": (chance.standard_normal((31, 5)) * 0.02).astype(np.float32),
        "other": chance.standard_normal((33,)).astype(np.float16),
        "zeros": np.zeros((5 << 20,), np.uint8),
        "empty": np.zeros((0, 3), np.int64),
    }
    home = tmp_path / "checkpoint"
    (home / "größe").mkdir(parents=True)
    save_file(weights, home / "model.safetensors")
    (home / "größe" / "config.json").write_text('{"hidden_size": 8}')
    (home / "again.bin").write_bytes(weights["half"].tobytes())
    (home / "nothing").write_bytes(b"")
    (home / "run.sh").write_bytes(b"#!/bin/sh\n")
    (home / "run.sh").chmod(0o750)
    (home / "random.bin").write_bytes(chance.bytes((8 << 20) + 12345))
    return home


def files_of(home: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(home).as_posix(): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in home.rglob("*")
        if path.is_file()
    }


def check_slots(reader: spec_reader.Store) -> None:
    """Check that every key is that of a record with a row, lent, spare or doomed, and only one of these."""
    rows, mine = reader.catalog(), struct.pack(">I", reader.number)

    def of(table: str) -> dict[bytes, bytes]:
        return {key: reader.row(rows, table, key) for key in rows[table] if key.startswith(mine)}

    used = [struct.unpack_from("<Q", row, 16)[0] for table in ("blobs", "versions") for row in of(table).values()]
    lent = [slot for row in of("loans").values() for slot in spec_reader.parse_slots(row)]
    spare = [slot for row in of("spare").values() for slot in spec_reader.parse_slots(row)]
    doomed = [slot for row in of("doomed").values() for slot in spec_reader.parse_slots(row)]
    every = [slot for slot in (*used, *lent, *spare, *doomed) if slot]
    assert len(set(every)) == len(every)
    assert set(every) == reader.tenant.slots()
    assert bool(every) == reader.encrypted


@pytest.mark.parametrize("kind", ["key-file", "passphrase", "open"])
def test_a_fresh_store_is_read_from_the_specification(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    root, wanted = tmp_path / "fresh", files_of(checkpoint)
    passphrase = b"correct horse battery staple" if kind == "passphrase" else None
    arstore.create_store(root, encrypted=kind != "open", passphrase=passphrase, key_file=tmp_path / "key")
    with arstore.open_store(root, passphrase=passphrase) as store:
        for number in range(3):
            store.tenants.add(f"other-{number}")
        store.put(checkpoint, name="model", codec="plane", identity={"model": "größe"})
        store.put(checkpoint / "run.sh", name="model@script", pin=True)
    with arstore.open_store(root, passphrase=passphrase, tenant="other-1") as store:
        store.put(checkpoint, name="model")  # where nothing of it is stored yet: that other tenant's blobs are its own
        store.put(checkpoint / "größe", name="model")

    secrets: dict[str, bytes] = {}
    if kind != "open":
        secrets[kind] = passphrase or (tmp_path / "key").read_bytes().strip()
    assert (root / "catalog" / "data.mdb").exists()
    reader = spec_reader.Store(root, secrets)
    script = {"run.sh": wanted["run.sh"]}
    assert reader.files("model", version=1) == wanted
    assert reader.files("model") == script
    assert reader.scanned_files() == {("model", 1): wanted, ("model", 2): script}
    config = {"config.json": wanted["größe/config.json"]}
    other = spec_reader.Store(root, secrets, tenant="other-1")
    assert other.files("model", version=1) == wanted
    assert other.files("model") == config
    assert other.scanned_files() == {("model", 1): wanted, ("model", 2): config}
    check_slots(reader)
    check_slots(other)
    codecs = {catalog.parse_blob(value[:-8]).place.codec for value in reader.catalog()["blobs"].values()}
    assert codecs == {0, 1, 2, 3}, "it would prove little if all were stored alike"
    if kind != "open":
        with pytest.raises(Refused):
            spec_reader.Store(root, {kind: b"another secret"})


HEADS = {0: (2, 8, 2, 8), 3: (4, 6, 1, 2)}  # layer -> key heads, key dim, value heads, value dim
LATENT = {0: (1, 5, 0, 0), 1: (1, 7, 0, 0)}
KV_FIELDS = {"model": "größe", "revision": "r", "precision": "f16", "rope_theta": 5e5, "block_tokens": 16}


def made_kv(tokens: int, layers: Mapping[int, Sequence[int]]) -> "dict[str, np.ndarray[Any, Any]]":
    """Return KV as arrays [tokens, heads, dim], with every bit pattern in it."""
    import numpy as np

    chance, found = np.random.default_rng(11), {}
    for number, (key_heads, key_dim, value_heads, value_dim) in layers.items():
        for side, heads, dim in (("key", key_heads, key_dim), ("value", value_heads, value_dim)):
            if heads:
                words = chance.integers(0, 1 << 16, (tokens, heads, dim), "uint16")
                found[f"layers.{number}.{side}"] = words.view(np.float16)
    return found


def head_major(arrays: "dict[str, np.ndarray[Any, Any]]", tokens: int) -> dict[str, bytes]:
    return {name: array[:tokens].transpose(1, 0, 2).tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_kv_of_a_fresh_store_is_read_from_the_specification(encrypted: bool, tmp_path: Path) -> None:
    """From identity and tokens to the bytes of every layer, whatever layout and codec they were put in."""
    import numpy as np

    arstore.create_store(tmp_path / "store", encrypted=encrypted, key_file=tmp_path / "key")
    tokens, sparse = list(range(70, 110)), {**KV_FIELDS, "layers": [3, 0]}
    arrays, latent = made_kv(40, HEADS), made_kv(40, LATENT)
    turned = {name: np.ascontiguousarray(array.transpose(1, 0, 2)) for name, array in arrays.items()}
    begun = {name: array[:33] for name, array in arrays.items()}
    fork = {name: np.concatenate([array[:20], array[:20]]) for name, array in arrays.items()}
    forked = [*tokens[:20], *tokens[:20]]
    with arstore.open_store(tmp_path / "store") as store:
        store.kv.put(arrays, name="plain", tokens=tokens, identity=sparse)
        assert store.kv.put(begun, name="begun", tokens=tokens[:33], identity=sparse).blobs_new == 1
        store.kv.put(fork, name="fork", tokens=forked, identity=sparse, join=True)
        store.kv.put(turned, name="turned", tokens=tokens, identity={**sparse, "layout": "HND"}, codec="zstd")
        store.kv.put(latent, name="latent", tokens=tokens, identity={**KV_FIELDS, "engine": "e", "strict": "yes"})
    secrets = {"key-file": (tmp_path / "key").read_bytes().strip()} if encrypted else {}
    reader = spec_reader.Store(tmp_path / "store", secrets)
    plain = dict(make_identity(sparse))
    strict = dict(make_identity({**KV_FIELDS, "engine": "e", "strict": "yes"}))
    for identity, source in ((plain, arrays), ({**plain, "layout": "HND"}, arrays), (strict, latent)):
        assert reader.kv(tokens, identity) == (40, head_major(source, 40))
        assert reader.kv([*tokens[:32], 5], identity) == (32, head_major(source, 32))
        assert reader.kv([5, *tokens], identity) == (0, {})
        assert reader.kv(tokens, {**identity, "model": "other"}) == (0, {})
    assert reader.kv(tokens[:33], plain) == (33, head_major(arrays, 33))
    assert reader.kv(tokens[:33], strict)[0] == 32, "a short last block counts only where the sequence ends with it"
    assert reader.kv(forked, plain) == (40, head_major(fork, 40))
    found, held = reader.identities(reader.catalog())
    assert reader.scanned_identities() == (found, held)
    assert len(found) == 7 + 4 + 4
    stranger = spec_reader.key_id(digest.derive(bytes(32), "identity"), "kv", plain)
    assert reader.named(reader.catalog(), stranger) is None, "ids hang on the tenant"


def test_identities_are_rebuilt_by_what_was_created_first(tmp_path: Path) -> None:
    """Other bytes under one identity never win; once the catalog is lost, the time of the put says who was first."""
    root, secrets = tmp_path / "store", Secrets(tmp_path / "key")
    arstore.create_store(root, key_file=tmp_path / "key")
    secret = {"key-file": (tmp_path / "key").read_bytes().strip()}
    tokens, arrays = list(range(40)), made_kv(40, HEADS)
    other = {name: array[::-1].copy() for name, array in arrays.items()}
    identity = {**KV_FIELDS, "layers": "0,3"}

    def put(year: int, kv: "dict[str, np.ndarray[Any, Any]]") -> None:
        with Store(root, held=secrets, now=lambda: datetime(year, 1, 1, tzinfo=UTC)) as store:
            store.kv.put(kv, name=f"of-{year}", tokens=tokens, identity=identity)

    put(2030, arrays)
    with pytest.raises(Conflict):
        put(2020, other)
    put(2025, arrays)
    canonical = dict(make_identity(identity))
    reader = spec_reader.Store(root, secret)
    assert reader.kv(tokens, canonical) == (40, head_major(arrays, 40))
    shutil.rmtree(root / "catalog")
    rebuild_catalog(root, key_file=tmp_path / "key")
    rebuilt = spec_reader.Store(root, secret)
    assert rebuilt.kv(tokens, canonical) == (40, head_major(other, 40))
    found, held = rebuilt.identities(rebuilt.catalog())
    assert (found, held) == rebuilt.scanned_identities()
    assert sorted(row[0] for row in found.values()) == [1, 1, 1, 3], "three versions claim the key id, one all blocks"
    assert sorted(held.values()) == [1, 1, 4]


def test_a_prefix_ends_before_a_block_in_quarantine(tmp_path: Path) -> None:
    root, tokens, arrays = tmp_path / "store", list(range(40)), made_kv(40, LATENT)
    arstore.create_store(root, encrypted=False)
    with arstore.open_store(root) as store:
        store.kv.put(arrays, name="kv", tokens=tokens, identity=KV_FIELDS)
    [segment] = (root / "segments").iterdir()
    whole = bytearray(segment.read_bytes())
    whole[whole.index(head_major(arrays, 32)["layers.1.key"][16 * 14 :])] ^= 1  # the second half, in the second block
    segment.write_bytes(whole)
    with arstore.open_store(root) as store:
        hit = store.longest_prefix(tokens, KV_FIELDS)
        assert hit.tokens_count == 40
        with pytest.raises(Corrupt):
            hit.tensors()
        assert store.longest_prefix(tokens, KV_FIELDS).tokens_count == 16
    reader = spec_reader.Store(root, {})
    assert reader.kv(tokens, dict(make_identity(KV_FIELDS))) == (16, head_major(arrays, 16))
    mark = reader.row(reader.catalog(), "counters", b"quarantines" + bytes(4))
    assert mark == struct.pack("<Q", 1)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("layers", "heads", "dim", "tokens", "parts", "frame_bytes"),
    [
        (2, 2, 8, 16, [2048], MIB // 4), (3, 8, 128, 256, [3 * MIB], MIB // 4),
        (1, 3, 5, 100, [6000], 44 * 6000), (40, 8, 128, 256, [32 * MIB, 8 * MIB], MIB // 4),
        (3, 8, 128, 4096, [32 * MIB, 16 * MIB], MIB), (2, 6, 64, 512, [3 * MIB // 2], 3 * MIB // 8),
        (1, 1, 2048, 2048, [16 * MIB], MIB), (2, 1, 4096, 4096, [64 * MIB, 64 * MIB], MIB),
        (1, 1, 1024, 2048, [8 * MIB], 4 * MIB),
    ],
)  # fmt: skip
def test_parts_and_frames_of_a_block(
    layers: int, heads: int, dim: int, tokens: int, parts: list[int], frame_bytes: int
) -> None:
    """Worked out by hand from section 8 of FORMAT.md."""
    shape = parse_shape({"dtype": "F16", "layers": [[0, layers, heads, dim, heads, dim]]})
    found = [cut_of(part) for part in parts_of(shape, 0, tokens)]
    assert [cut.length for cut in found] == parts
    assert {cut.frame_bytes for cut in found} == {frame_bytes}


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_a_store_with_holes_is_read_from_the_specification(encrypted: bool, tmp_path: Path) -> None:
    """What was erased, removed and collected leaves holes, empty slots and missing leaves; readers step over them."""
    root, key_file = tmp_path / "store", tmp_path / "key"
    arstore.create_store(root, encrypted=encrypted, key_file=key_file)
    wanted = {}
    with arstore.open_store(root) as store:
        for name in ("gone", "shared", "kept", "erased"):
            (home := tmp_path / name).mkdir()
            for number in range(40):  # 160 records: more than the slots of one leaf
                text = f"{name if number else 'all'} {number} ".encode() * 2000
                (home / f"{number}").write_bytes(text)
            store.put(home, name=name)
            wanted[name] = files_of(home)
        store.put(tmp_path / "gone", name="again")
        store.rm("gone")
        store.rm("shared")
        if encrypted:
            store.erase("erased")
        else:
            store.rm("erased")
        for number in range(3):
            store.tenants.add(f"other-{number}")
        store.tenants.remove("other-0")
        collected = store.gc(AT_ONCE)
        assert collected.deleted_blobs >= 38
    with arstore.open_store(root, tenant="other-1") as store:
        store.put(tmp_path / "kept", name="kept")
    left = {"kept": wanted["kept"], "again": wanted["gone"]}
    secrets = {"key-file": key_file.read_bytes().strip()} if encrypted else {}
    reader = spec_reader.Store(root, secrets)
    assert {name: reader.files(name) for name in left} == left
    assert reader.scanned_files() == {(name, 1): files for name, files in left.items()}
    check_slots(reader)
    other = spec_reader.Store(root, secrets, tenant="other-1")
    assert other.scanned_files() == {("kept", 1): wanted["kept"]}
    check_slots(other)
    rows = reader.catalog()
    leases = [spec_reader.parse_lease(reader.row(rows, "leases", key)) for key in rows["leases"]]
    assert {held.owner for held in leases} == {bytes(16)}
    assert {held.purpose for held in leases} == {"put", "gc"}
    whole = b"".join(path.read_bytes()[4096:] for path in sorted((root / "segments").iterdir()))
    holes = sum(not any(whole[at : at + 4096]) for at in range(0, len(whole), 4096))
    assert holes, "it would prove little without holes"

    rebuild_catalog(root, forget_lost=True)
    rebuilt = spec_reader.Store(root, secrets)
    assert {name: rebuilt.files(name) for name in left} == left
    check_slots(rebuilt)


@pytest.mark.parametrize("resealed", [False, True], ids=["root under the old key", "root under the new key"])
def test_a_rotation_that_was_killed_is_read_from_the_specification(resealed: bool, tmp_path: Path) -> None:
    root, old_file, new_file = tmp_path / "store", tmp_path / "key", tmp_path / "new"
    config = arstore.create_store(root, key_file=old_file)
    (tmp_path / "file").write_bytes(b"bytes " * 100)
    with arstore.open_store(root) as store:
        store.put(tmp_path / "file", name="file")
    wanted, newer = {"file": (0o644, b"bytes " * 100)}, os.urandom(32)
    old, new = old_file.read_bytes().strip(), new_key_file(new_file, Disk())
    older = open_masters(root / "keys", Secrets(old_file), config.store_id, lambda: None)
    grown = Stanzas.read(root / "keys").adding("key-file", new, newer, config.store_id)
    grown.adding_previous(older[0], newer, config.store_id).write(root / "keys", Disk())
    if resealed:
        keyring = Keyring(root / "keys", root / "keys" / "root", older, config.store_id, Disk())
        keyring.reseal(newer)
        keyring.close()
        with pytest.raises(Refused):
            spec_reader.Store(root, {"key-file": old})
    else:
        assert spec_reader.Store(root, {"key-file": old}).files("file") == wanted
    assert spec_reader.Store(root, {"key-file": new}).files("file") == wanted
    before = spec_reader.Store(root, {"key-file": new}).top.catalog_key

    arstore.open_store(root, key_file=new_file).close()
    kinds = [way["kind"] for way in Stanzas.read(root / "keys").ways]
    assert kinds == ["key-file", "key-file", "previous"], "nothing is dropped while the config names the old key file"
    write_config(root, replace(config, key_file=new_file), Disk())
    arstore.open_store(root).close()
    finished = spec_reader.Store(root, {"key-file": new})
    assert finished.files("file") == wanted
    assert finished.top.catalog_key == before
    assert [way["kind"] for way in Stanzas.read(root / "keys").ways] == ["key-file"]
    with pytest.raises(Refused):
        spec_reader.Store(root, {"key-file": old})


# --- config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format = 1", "format = 2"), ("format = 1\n", ""), ("format = 1", 'format = "1"'),
        ("encrypted = true", "encrypted = false"), ("encrypted = true", "encrypted = 1"), ('_id = "', '_id = "00'),
        ("store_id", "store_di"), ("encrypted = true", "encrypted = true\nkey_file = 7"), ("format", "\x00"),
    ],
)  # fmt: skip
def test_bad_config(old: str, new: str, tmp_path: Path) -> None:
    """Nothing authenticates the config: whatever is written there, the store only shuts."""
    arstore.create_store(root := tmp_path / "store", key_file=tmp_path / "key")
    config = root / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    with pytest.raises(StoreError):
        arstore.open_store(root, key_file=tmp_path / "key")


# --- the vectors themselves


def test_vectors_are_what_scripts_vectors_writes(tmp_path: Path) -> None:
    """A check that script and files have not drifted apart; the files themselves are never written here."""
    command = [sys.executable, str(ROOT / "scripts" / "vectors"), "--into"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, tmp_path / "new"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert made == {path.relative_to(VECTORS) for path in VECTORS.rglob("*") if path.is_file()}
    for path in made:
        assert (tmp_path / "new" / path).read_bytes() == (VECTORS / path).read_bytes(), path

    (tmp_path / "new" / "cuts.json").write_text("{}")
    (tmp_path / "new" / "keys.json").unlink()
    done = subprocess.run([*command, tmp_path / "new"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cuts.json" in done.stderr
    assert (tmp_path / "new" / "cuts.json").read_text() == "{}"
    assert not (tmp_path / "new" / "keys.json").exists(), "it wrote some files before it refused"


def test_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in VECTORS.rglob("*") if path.is_file()) < 290_000


@pytest.mark.parametrize(
    "path", [Path("tests/support/spec_reader.py"), Path("scripts/vectors"), Path("scripts/golden")], ids=str
)
def test_second_implementations_do_not_know_the_product(path: str) -> None:
    files = sorted((ROOT / path).glob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] == "arstore" for module in modules), file


def test_every_vector_file_is_named_in_the_specification() -> None:
    text = (ROOT / "formats" / "FORMAT.md").read_text("utf-8")
    named = {name for names in re.findall(r"\[([a-z, -]+)\]", text) for name in names.split(", ")}
    assert {path.stem for path in VECTORS.glob("*.json")} <= named
