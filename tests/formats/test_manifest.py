"""Manifests: they come back from their bytes, and hostile JSON gives FormatError."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.formats.catalog import (
    NamedRow,
    parse_named,
)
from arstore.formats.digest import Digest, digest_bytes
from arstore.formats.errors import FormatError
from arstore.formats.identity import KeyId, make_identity
from arstore.formats.kv_layout import slot_name
from arstore.formats.kv_shape import KvShape, LayerShape, parse_shape
from arstore.formats.manifest import (
    KINDS,
    BlobName,
    Claim,
    Manifest,
    StoredFile,
    Tensor,
    canonical,
    check_path,
    parse_manifest,
    parse_needs,
)
from arstore.formats.strict_json import parse_json
from arstore.formats.tensor import BLOB_MAX_BYTES, TensorSpan
from tests.support import spec_identity, spec_records
from tests.support.fuzz import FUZZ, KEY32, TEXTS, decoded, mutated

PARTS = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8
).filter(lambda part: part not in (".", ".."))  # fmt: skip


PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


SHAPES = st.builds(
    lambda dtype, first, extents: KvShape(dtype, tuple(enumerate((LayerShape(*one) for one in extents), first))),
    st.sampled_from(["BF16", "C128", "U8"]), st.integers(0, 9),
    st.lists(st.sampled_from([(8, 128, 8, 128), (1, 576, 0, 0)]), min_size=1, max_size=5),
)  # fmt: skip


BLOBS = st.builds(BlobName, KEY32.map(Digest), st.integers(1, BLOB_MAX_BYTES))


MODES = st.integers(0, 0o777)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    blobs = draw(st.lists(BLOBS, max_size=4))
    paths = draw(st.lists(PATHS, unique=True, max_size=4))
    files_count = draw(st.integers(0, len(paths)))
    files, tensors = [], []
    for number, path in enumerate(paths[:files_count]):
        used = tuple(draw(st.lists(st.integers(0, len(blobs) - 1), max_size=3))) if blobs else ()
        size = sum(blobs[blob].length for blob in used)
        files.append(StoredFile(path, draw(MODES), size, draw(st.sampled_from(["bytes", "safetensors"])), used))
        start = draw(st.integers(0, size))
        length = draw(st.integers(0, size - start))
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        stride = draw(st.none() | st.just(shape))
        tensors.append(Tensor(number, TensorSpan(draw(TEXTS), "U8", shape, start, length, stride)))
    directories = tuple((path, draw(MODES)) for path in paths[files_count:])
    identity = make_identity(draw(st.dictionaries(st.sampled_from(["model", "revision"]), TEXTS)))
    single = len(files) == 1 and draw(st.booleans())
    numbers = st.lists(st.integers(0, len(blobs) - 1), max_size=3) if blobs else st.just([])
    claim = st.builds(Claim, KEY32.map(KeyId), st.integers(0, 2**32 - 1) | st.just(0), numbers.map(tuple))
    return Manifest(
        draw(st.sampled_from(KINDS)), identity, single, directories, tuple(files), tuple(tensors), tuple(blobs),
        tuple(draw(st.lists(claim, max_size=3, unique_by=lambda one: one.id))), draw(st.none() | SHAPES),
    )  # fmt: skip


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 600),
        st.sampled_from([-1, 2**63 - 1, 2**63, 2**200, 0.0, 1.5, 1e300]),
        st.text(max_size=6), st.sampled_from(["..", "/etc", "a/../b", "", "\0", "\ud800", "x" * 300, "ab" * 32]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@st.composite
def json_changed(draw: st.DrawFn, value: Any) -> Any:
    """Put something else somewhere into a JSON value: replaced, removed, added or doubled."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        if isinstance(value, int) and draw(st.booleans()):
            return draw(st.sampled_from([value - 1, value + 1, value | 1 << 11, float(value), bool(value), int(value)]))
        return draw(JSON)
    at = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    match draw(st.sampled_from(["inside", "inside", "inside", "remove", "add"])):
        case "inside":
            changed[at] = draw(json_changed(value[at]))
        case "remove":
            del changed[at]
        case "add" if isinstance(changed, dict):
            changed[draw(st.text(max_size=4))] = draw(JSON)
        case "add":
            changed.insert(at, draw(st.just(value[at]) | JSON))
    return changed


@FUZZ
@given(manifests())
def test_manifest_comes_back(manifest: Manifest) -> None:
    packed = manifest.packed()
    assert parse_manifest(parse_json(packed)) == manifest
    assert canonical(json.loads(packed)) == packed
    assert bytes(manifest.id(bytes(32))) == digest_bytes(bytes(32), packed)
    for id_, named in manifest.needs().claims:
        assert parse_named(NamedRow(named, 2**32 - 1).packed(id_), id_) == NamedRow(named, 2**32 - 1)
        assert id_ in {claim.id for claim in manifest.claims}


@settings(max_examples=400, deadline=timedelta(seconds=5))
@given(manifests().flatmap(lambda manifest: json_changed(json.loads(manifest.packed()))))
def test_a_changed_manifest_is_refused_or_is_another_valid_one(value: Any) -> None:
    """What is taken in is exactly what was written: a key or bit this version does not know is never dropped."""
    manifest = decoded(parse_manifest, value)
    if manifest is None:
        return
    assert manifest.packed() == canonical(value)
    assert manifest.needs() == parse_needs(value)
    for id_, named in manifest.needs().claims:
        row = NamedRow(named, 1)
        assert parse_named(row.packed(id_), id_) == row, "a claim fits into the row that it asks for"
    assert manifest.kind in KINDS
    assert make_identity(dict(manifest.identity)) == manifest.identity
    for path in [file.path for file in manifest.files] + [path for path, _ in manifest.directories]:
        assert not path.startswith("/")
        assert {"", ".", ".."}.isdisjoint(path.split("/"))
    for number, file in enumerate(manifest.files):
        pieces = list(manifest.pieces(number, 0, file.size))
        assert sum(last - first for _, first, last in pieces) == file.size
    for tensor in manifest.tensors:
        span = tensor.span
        pieces = list(manifest.pieces(tensor.file, span.start, span.start + span.length))
        assert sum(last - first for _, first, last in pieces) == span.length


@FUZZ
@given(st.data(), manifests())
def test_any_bytes_as_version_record(data: st.DataObject, manifest: Manifest) -> None:
    hostile = data.draw(mutated(manifest.packed()) | st.binary(max_size=60))
    value = decoded(parse_json, hostile)
    decoded(parse_manifest, value)
    decoded(parse_needs, value)


@FUZZ
@given(JSON | st.fixed_dictionaries({"blobs": JSON, "claims": JSON}, optional={"shape": JSON}))
def test_any_json_as_manifest(value: Any) -> None:
    assert decoded(parse_manifest, value) is None
    decoded(parse_needs, value)


@FUZZ
@given(SHAPES.flatmap(lambda shape: json_changed(shape.fields())) | JSON)
def test_any_json_as_kv_shape(value: Any) -> None:
    """The product and a reader of FORMAT.md refuse the same, and agree on what is left."""
    shape = decoded(parse_shape, value)
    try:
        told = spec_identity.Shape(value)
    except spec_records.Refused:
        assert shape is None
        return
    assert shape is not None
    assert canonical(shape.fields()) == canonical(value)
    assert told.token_bytes == shape.token_bytes
    sides = [(slot_name((n, side)), heads, dim * shape.element_bytes) for n, side, heads, dim, _ in shape.places(1)]
    assert told.sides == sides


@pytest.mark.parametrize(
    "claims", [[["ab" * 32, 2**32, []]], [["ab" * 32, 1, [0] * 65536]], [["ab" * 32, 1, [1]]], [["ab" * 32, 0, []]] * 2]
)  # fmt: skip
def test_a_claim_that_no_row_can_say_is_refused(claims: list[Any]) -> None:
    manifest = Manifest("file", (), False, (), (), (), (BlobName(Digest(bytes(32)), 1),)).fields()
    parse_manifest(manifest | {"claims": [["ab" * 32, 2**32 - 1, [0] * 65535]]})
    with pytest.raises(FormatError):
        parse_manifest(manifest | {"claims": claims})


@pytest.mark.parametrize(
    "packed",
    [
        b'{"a":1,"a":1}', b"[NaN]", b"[Infinity]", b"\xff", b"", b"[1", b"[" * 100_000, b"1" * 5000, b"[1]x",
        b"\xef\xbb\xbf[1]", "[1]".encode("utf-16"), "[1]".encode("utf-32"),
    ],
)  # fmt: skip
def test_json_that_is_refused(packed: bytes) -> None:
    with pytest.raises(FormatError):
        parse_json(packed)


@FUZZ
@given(
    st.text(max_size=12) | st.lists(st.sampled_from(["..", ".", "", "a", "\0", "é", "\ud800", "x" * 256])).map("/".join)
)
def test_any_text_as_path(text: str) -> None:
    path = decoded(check_path, text)
    if path is not None:
        path.encode()
        assert {"", ".", ".."}.isdisjoint(path.split("/"))
        assert "\0" not in path
