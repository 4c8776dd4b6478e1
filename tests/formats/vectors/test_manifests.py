"""Golden vectors: identities, manifests and cuts."""

import json
import re
import struct
from typing import TYPE_CHECKING, Any

import pytest

from arstore.formats import manifest, strict_json
from arstore.formats.identity import FIELDS, PROVENANCE, KeyId, chain_blocks, identity_key, key_id, make_identity
from arstore.formats.tensor import TensorSpan, cut_span, dense_bytes
from arstore.store.artifacts.cuts import cut_file
from arstore.store.artifacts.inputs import InputFile
from arstore.store.artifacts.sources import MemorySource
from tests.support import spec_identity
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    pass
from tests.support.vectors import ROOT, each, refuses, sheet


@each("identities", "good")
def test_good_identity(vector: Any) -> None:
    identity = make_identity(vector["fields"])
    assert dict(identity) == vector["identity"]
    assert list(identity) == sorted(identity)
    assert make_identity(vector["identity"]) == identity
    spec_identity.check_identity(vector["identity"])


@each("identities", "bad", "why")
def test_bad_identity(vector: Any) -> None:
    refuses(make_identity, vector["fields"])
    with pytest.raises(Refused):
        spec_identity.check_identity(vector["fields"])


@each("identities", "not_canonical", "field", "text")
def test_a_text_that_is_not_canonical_is_made_so_and_refused_in_a_manifest(vector: Any) -> None:
    fields = {vector["field"]: vector["text"]}
    identity = dict(make_identity(fields))
    assert identity != fields
    spec_identity.check_identity(identity)
    with pytest.raises(Refused):
        spec_identity.check_identity(fields)
    good = strict_json.parse_json(sheet("manifests")["good"][0]["text"].encode())
    manifest.parse_manifest(good | {"identity": identity})
    refuses(manifest.parse_manifest, good | {"identity": fields})


@each("identities", "keys", "name")
def test_key_id(vector: Any) -> None:
    key = identity_key(bytes.fromhex(sheet("identities")["digest_key"]))
    identity = make_identity(vector["identity"])
    assert key_id(key, vector["kind"], identity).hex() == vector["id"]
    assert spec_identity.key_id(key, vector["kind"], vector["identity"]).hex() == vector["id"]


@each("identities", "blocks", "name")
def test_prefix_blocks(vector: Any) -> None:
    key = identity_key(bytes.fromhex(sheet("identities")["digest_key"]))
    root, tokens, count = bytes.fromhex(vector["root"]), vector["tokens"], vector["block_tokens"]
    packed = memoryview(struct.pack(f"<{len(tokens)}I", *tokens))
    assert [id_.hex() for id_ in chain_blocks(key, KeyId(root), packed, count)] == vector["ids"]
    assert [id_.hex() for id_ in spec_identity.block_ids(key, root, tokens, count)] == vector["ids"]


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
    assert spec_identity.claimed(json.loads(vector["text"])) == rows


@each("manifests", "bad", "why")
def test_bad_manifest(vector: Any) -> None:
    good = strict_json.parse_json(sheet("manifests")["good"][0]["text"].encode())
    value = {key: part for key, part in good.items() if key != vector.get("without")} | vector.get("puts", {})
    assert value != good or vector["why"].startswith(("format as truth", "single that is a number"))  # 1 == True
    refuses(manifest.parse_manifest, strict_json.parse_json(json.dumps(value).encode()))
    if "shape" in vector.get("puts", {}):
        with pytest.raises(Refused):
            spec_identity.Shape(value["shape"])


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
