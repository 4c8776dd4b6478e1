"""Decoders of what the store itself writes: any bytes give a value or a FormatError, values come back as they went in.

File readers and codecs have tests of their own; golden vectors are in test_vectors.py.
"""

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from math import prod
from typing import Any, TypeVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arstore.formats.catalog import (
    BlobRow,
    Named,
    NamedRow,
    Place,
    SegmentRow,
    VersionRow,
    close_row,
    open_row,
    parse_blob,
    parse_named,
    parse_segment,
    parse_version,
    place_of,
)
from arstore.formats.digest import Digest, derive, digest_bytes, keyed_hash, parse_digest
from arstore.formats.errors import FormatError
from arstore.formats.frames import (
    FOOTER_INDEX,
    FRAME_MAX_BYTES,
    FRAMES_MAX_COUNT,
    TAG_BYTES,
    Binding,
    Frames,
    frames_of,
    seal,
    unseal,
)
from arstore.formats.identity import FIELDS, UNSPECIFIED, KeyId, key_id, make_identity
from arstore.formats.keypage import (
    DEPTH_MAX,
    FAN_OUT,
    PAGE_BYTES,
    PageRef,
    Root,
    Tenant,
    open_page,
    open_root,
    pack_children,
    parse_children,
    parse_tenant,
    seal_page,
    seal_root,
    slot_key,
)
from arstore.formats.kv_layout import slot_name
from arstore.formats.kv_shape import KvShape, LayerShape, parse_shape
from arstore.formats.lease import PURPOSE_MAX_BYTES, LeaseRow, ProcessId, parse_lease, parse_process
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
from arstore.formats.record import (
    AES_256_GCM,
    ALIGN_BYTES,
    HEADER_BYTES,
    PLAIN,
    PLAIN_MAX_BYTES,
    Header,
    SegmentHeader,
    open_footer,
    parse_header,
    parse_segment_header,
    seal_footer,
    stored_payload_bytes,
)
from arstore.formats.strict_json import parse_json
from arstore.formats.tensor import BLOB_MAX_BYTES, DTYPE_BITS, TensorSpan, cut_span, dense_bytes
from arstore.store.artifacts.cuts import cut_file
from arstore.store.artifacts.inputs import InputFile
from tests.support import spec_reader

T = TypeVar("T")
# The deadline is for what should take microseconds: generous for a busy machine, short for a decoder that loops.
FUZZ = settings(max_examples=150, deadline=timedelta(seconds=5))
FEW = settings(max_examples=40, deadline=timedelta(seconds=10))

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
KEY16, KEY32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
OPTIONAL_KEY = st.none() | KEY32


def decoded(decode: Callable[..., T], *hostile: Any) -> T | None:
    """Return what a decoder makes of hostile input, None where it refuses; any other exception fails the test."""
    try:
        return decode(*hostile)
    except FormatError:
        return None


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Damage bytes as disks, copies and attackers do."""
    at, length = draw(st.integers(0, len(whole))), draw(st.integers(1, 40))
    strange = draw(st.binary(min_size=length, max_size=length) | st.just(bytes(length)) | st.just(b"\xff" * length))
    match draw(st.sampled_from(["overwrite", "flip", "cut", "remove", "insert", "swap"])):
        case "overwrite":
            return (whole[:at] + strange + whole[at + length :])[: len(whole)]
        case "flip" if at < len(whole):
            return whole[:at] + bytes([whole[at] ^ 1 << draw(st.integers(0, 7))]) + whole[at + 1 :]
        case "cut":
            return whole[:at]
        case "remove":
            return whole[:at] + whole[at + length :]
        case "insert":
            return whole[:at] + strange + whole[at:]
    return whole[at:] + whole[:at]


# --- records


@st.composite
def bindings(draw: st.DrawFn, *, frames_max: int = FRAMES_MAX_COUNT, frame_max: int = FRAME_MAX_BYTES) -> Binding:
    frame_bytes = draw(st.integers(1, frame_max))
    plain_bytes = draw(st.integers(0, min(PLAIN_MAX_BYTES, frame_bytes * frames_max)))
    kind, codec = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    return Binding(draw(KEY16), draw(KEY16), kind, codec, frame_bytes, plain_bytes)


@st.composite
def headers(draw: st.DrawFn, key: bytes | None, binding: Binding) -> Header:
    stored = stored_payload_bytes(binding)
    payload = draw(st.integers(0, stored + binding.plain_bytes // 2)) if binding.codec else stored
    protection = PLAIN if key is None else AES_256_GCM
    return Header(binding, protection, payload, draw(U64), frames_of(key, binding).commitment)


def is_written(header: Header, packed: bytes, key: bytes | None) -> bool:
    """Say whether these bytes are what the holder of a key would write for a header, which is how readers check one."""
    frames = frames_of(key, header.binding)
    return replace(header, commitment=frames.commitment).packed(frames) == packed[:HEADER_BYTES]


SMALL_BINDINGS = bindings(frames_max=40, frame_max=4096)


@FUZZ
@given(st.data(), OPTIONAL_KEY, bindings())
def test_header_comes_back_and_no_byte_of_it_is_free(data: st.DataObject, key: bytes | None, binding: Binding) -> None:
    header, frames = data.draw(headers(key, binding)), frames_of(key, binding)
    packed = header.packed(frames)
    assert len(packed) == HEADER_BYTES
    assert parse_header(packed) == header
    assert place_of(3, 4096, header).header(binding.tenant, binding.kind, header.commitment) == header
    assert header.record_bytes % ALIGN_BYTES == 0 <= header.record_bytes - header.used_bytes < ALIGN_BYTES
    assert is_written(header, packed, key)

    bad = data.draw(mutated(packed))
    assume(bad[:HEADER_BYTES] != packed)
    found = decoded(parse_header, bad)
    assert not found or not is_written(found, bad, key)


@FUZZ
@given(st.binary(max_size=400).map(lambda rest: b"ARR1\x01" + rest) | st.binary(max_size=400))
def test_any_bytes_as_header(hostile: bytes) -> None:
    header = decoded(parse_header, hostile)
    if header:
        bound = header.binding
        assert bound.frames_count <= FRAMES_MAX_COUNT
        assert header.record_bytes < 2 * PLAIN_MAX_BYTES
        assert not is_written(header, hostile, bytes(32))
        assert not is_written(header, hostile, None)


@FUZZ
@given(st.data(), OPTIONAL_KEY, SMALL_BINDINGS, KEY32)
def test_footer_comes_back_and_no_byte_of_it_is_free(
    data: st.DataObject, key: bytes | None, binding: Binding, digest: bytes
) -> None:
    frames = frames_of(key, binding)
    lengths = [binding.frame_length(index) for index in range(binding.frames_count)]
    if binding.codec:
        lengths = [data.draw(st.integers(0, length)) for length in lengths]
    payload = sum(lengths) + len(lengths) * TAG_BYTES
    header = Header(binding, PLAIN if key is None else AES_256_GCM, payload, 0, frames.commitment)
    sealed = seal_footer(frames, Digest(digest), lengths if binding.codec else None)
    assert len(sealed) == header.footer_bytes
    footer = open_footer(header, frames, sealed)
    assert footer.digest == digest
    assert [after - before - TAG_BYTES for before, after in pairwise(footer.offsets)] == lengths

    bad = data.draw(mutated(sealed))
    assume(bad != sealed)
    assert decoded(open_footer, header, frames, bad) is None


@FUZZ
@given(st.data(), OPTIONAL_KEY, SMALL_BINDINGS)
def test_footer_whose_tag_is_right_and_whose_content_is_hostile(
    data: st.DataObject, key: bytes | None, binding: Binding
) -> None:
    header, frames = data.draw(headers(key, binding)), frames_of(key, binding)
    length = header.footer_bytes - TAG_BYTES
    out = bytearray(header.footer_bytes)
    frames.seal_into(FOOTER_INDEX, data.draw(st.binary(min_size=length, max_size=length)), memoryview(out))
    footer = decoded(open_footer, header, frames, bytes(out))
    if footer:
        assert len(footer.offsets) == binding.frames_count + 1
        assert list(footer.offsets) == sorted(footer.offsets)
        assert footer.offsets[-1] == header.payload_bytes


def test_the_largest_claims_take_little_memory() -> None:
    """A header may claim a million frames and a terabyte; what is allocated follows the frames, not the bytes."""
    binding = Binding(bytes(16), bytes(16), 1, 1, PLAIN_MAX_BYTES // FRAMES_MAX_COUNT, PLAIN_MAX_BYTES)
    frames = frames_of(None, binding)
    header = Header(binding, PLAIN, stored_payload_bytes(binding), 0, frames.commitment)
    version = Place(1, 4096, 1, 9, 9, bytes(16), 9, 0, 0).packed() + b"\1" + b"\xff" * 4
    hostile: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (parse_header, (header.packed(frames),)),
        (open_footer, (header, frames, bytes(header.footer_bytes))),
        (parse_version, (version,)),
        (parse_json, (b"[" * 1_000_000,)),
        (parse_json, (b'{"a":' * 100_000,)),
        (parse_json, (b"1" * 1_000_000,)),
    ]
    tracemalloc.start()
    try:
        for decode, arguments in hostile:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            decoded(decode, *arguments)
            assert tracemalloc.get_traced_memory()[1] - before < 16 << 20, decode
    finally:
        tracemalloc.stop()


@FUZZ
@given(st.data(), KEY16, U64, st.integers(1, 4))
def test_segment_header(data: st.DataObject, store_id: bytes, segment_id: int, lifetime: int) -> None:
    header = SegmentHeader(store_id, segment_id, lifetime)
    packed = header.packed()
    assert len(packed) == ALIGN_BYTES
    assert parse_segment_header(packed + b"a record") == header
    bad = data.draw(mutated(packed) | st.binary(max_size=64).map(lambda start: start.ljust(ALIGN_BYTES, b"\0")))
    assume(bad[:ALIGN_BYTES] != packed)
    assert decoded(parse_segment_header, bad) is None


# --- frames


def sealed_frame(frames: Frames, index: int, plain: bytes) -> bytes:
    out = bytearray(len(plain) + TAG_BYTES)
    frames.seal_into(index, plain, memoryview(out))
    return bytes(out)


def opened_frame(frames: Frames, index: int, sealed: bytes, length: int) -> bytes:
    """Open a frame into a buffer of `length` bytes; if it is refused, check that nothing of it is left there."""
    out = bytearray(b"\xa5" * length)
    try:
        frames.open_into(index, sealed, memoryview(out))
    except FormatError:
        assert not any(out), "a refused frame left bytes in the buffer"
        raise
    return bytes(out)


@FUZZ
@given(st.data(), OPTIONAL_KEY, SMALL_BINDINGS, st.binary(max_size=100))
def test_a_frame_opens_only_as_what_it_was_sealed_as(
    data: st.DataObject, key: bytes | None, binding: Binding, plain: bytes
) -> None:
    indexes = st.integers(0, max(binding.frames_count - 1, 0)) | st.just(FOOTER_INDEX)
    index = data.draw(indexes)
    sealed = sealed_frame(frames_of(key, binding), index, plain)
    assert opened_frame(frames_of(key, binding), index, sealed, len(plain)) == plain

    bad = data.draw(mutated(sealed))
    if bad != sealed:
        with pytest.raises(FormatError):
            opened_frame(frames_of(key, binding), index, bad, len(plain))
    other_index, other_binding = data.draw(indexes), data.draw(st.just(binding) | one_field_changed(binding))
    other_key = data.draw(st.just(key) | KEY32) if key else None
    if (other_index, other_binding, other_key) != (index, binding, key):
        with pytest.raises(FormatError):
            opened_frame(frames_of(other_key, other_binding), other_index, sealed, len(plain))


@st.composite
def one_field_changed(draw: st.DrawFn, binding: Binding) -> Binding:
    other = draw(SMALL_BINDINGS)
    name = draw(st.sampled_from(list(Binding.__slots__)))
    return replace(binding, **{name: getattr(other, name)})


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "sealed"])
def test_no_two_frames_of_a_record_share_a_nonce(key: bytes | None) -> None:
    """Equal plaintexts at two places look different: in GCM equal ciphertext would mean an equal nonce."""
    binding = Binding(bytes(16), bytes(16), 1, 0, 16, 16 * 5000)
    frames, zeros = frames_of(key, binding), bytes(16)
    sealed = {sealed_frame(frames, index, zeros) for index in (*range(5000), FOOTER_INDEX)}
    assert len({one[:16] if key else one[16:] for one in sealed}) == 5001


def test_two_records_under_one_record_key_share_no_key_stream() -> None:
    """Two copies of a store both have its spare record keys: what they seal must still differ."""
    sealed = {
        sealed_frame(frames_of(bytes(32), Binding(bytes(16), instance, 1, 0, 16, 16)), 0, bytes(16))[:16]
        for instance in (bytes(16), bytes(15) + b"\1")
    }
    assert len(sealed) == 2


def test_the_last_frame_and_a_middle_frame_of_one_index_have_two_nonces() -> None:
    """The flag is part of the nonce: a record cut after frame 2 can't pass frame 2 off as its last."""
    starts = set()
    for frames_count in (2, 3, 4):  # frame 2 is past the end, the last, in the middle
        binding = Binding(bytes(16), bytes(16), 1, 0, 16, 16 * frames_count)
        starts.add(sealed_frame(frames_of(bytes(32), binding), 2, bytes(16))[:16])
    assert len(starts) == 2  # past the end counts as in the middle; no index past the end is ever sealed


@FUZZ
@given(bindings(), st.data())
def test_associated_data_tells_bindings_apart(binding: Binding, data: st.DataObject) -> None:
    other = data.draw(bindings() | one_field_changed(binding))
    assert (binding.packed() == other.packed()) == (binding == other)
    assert len(binding.packed()) == len(other.packed())


@FUZZ
@given(st.lists(st.binary(max_size=20), max_size=4), st.lists(st.binary(max_size=20), max_size=4), KEY32)
def test_keyed_hash_tells_lists_of_parts_apart(first: list[bytes], second: list[bytes], key: bytes) -> None:
    assert (keyed_hash(key, *first) == keyed_hash(key, *second)) == (first == second)
    glued = [b"".join(first)]
    assert (keyed_hash(key, *first) == keyed_hash(key, *glued)) == (first == glued)


@FUZZ
@given(KEY32, st.binary(max_size=100), st.binary(min_size=12, max_size=12), st.data())
def test_sealed_text_opens_for_its_key_and_purpose_alone(
    key: bytes, plain: bytes, nonce: bytes, data: st.DataObject
) -> None:
    sealed = seal(key, "one purpose", plain, nonce)
    assert unseal(key, "one purpose", sealed) == plain
    assert decoded(unseal, key, "another purpose", sealed) is None
    assert decoded(unseal, derive(key, "x"), "one purpose", sealed) is None
    bad = data.draw(mutated(sealed) | st.binary(max_size=40))
    assume(bad != sealed)
    assert decoded(unseal, key, "one purpose", bad) is None


@FUZZ
@given(st.text(max_size=70) | st.text("0123456789abcdefABCDEF \n", min_size=64, max_size=64) | st.integers())
def test_digest_text(text: object) -> None:
    digest = decoded(parse_digest, text)
    if digest is not None:
        assert digest.hex() == text
        assert len(digest) == 32


@pytest.mark.parametrize("blank", ["ab" * 31 + "  ", " " * 64, "ab" * 31 + "\n\n", "AB" * 32, "ab" * 31, "ab" * 33])
def test_digest_text_has_64_lower_case_digits(blank: str) -> None:
    with pytest.raises(FormatError):
        parse_digest(blank)


# --- identity

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
POSITIONS = st.builds(lambda first, more: f"{first}:{first + more}", st.integers(0, 99), st.integers(0, 99))
LAYERS = st.integers(-1, 4097) | st.integers(0, 9)
RUNS = st.lists(LAYERS.map(str) | st.builds("{}-{}".format, LAYERS, LAYERS), max_size=4)
HASHES = st.sampled_from(["0f" * 16, "ab" * 16, "ab" * 64, "AB" * 16, "ab" * 15])
CONTENTS = st.lists(st.builds("{}@{}".format, HASHES, st.integers(0, 99)), max_size=4)
PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5,
)  # fmt: skip
FIELD_VALUES: st.SearchStrategy[object] = st.one_of(
    TEXTS, st.text(max_size=5), st.integers(), st.integers(0, 99), st.none(), st.booleans(), st.binary(),
    st.just("x" * 4097), st.just(UNSPECIFIED), st.just([UNSPECIFIED]), st.floats(), st.floats().map(str),
    st.integers().map(str), st.just(10**5000), POSITIONS, st.just("007:٩"), st.just("\ud800"), PLAIN_JSON,
    PLAIN_JSON.map(json.dumps), RUNS, RUNS.map(",".join), CONTENTS, CONTENTS.map(",".join),
    st.lists(TEXTS, max_size=3), st.lists(st.integers(0, 99)), st.just("yes"), st.just("[" * 100_000),
)  # fmt: skip


@FUZZ
@given(st.dictionaries(st.sampled_from([*FIELDS, "colour", "Model", ""]), FIELD_VALUES, max_size=4))
def test_any_fields_as_identity(fields: dict[str, object]) -> None:
    """What comes out is canonical by the letter of FORMAT.md, whatever went in."""
    identity = decoded(make_identity, fields)
    if identity is not None:
        assert make_identity(dict(identity)) == identity == tuple(sorted(identity))
        nothing: list[object] = [(name, value) for name in FIELDS for value in (None, UNSPECIFIED)]
        nothing.append(("adapter_targets", [UNSPECIFIED]))
        given_fields = {name for name, value in fields.items() if (name, value) not in nothing}
        assert {name for name, _ in identity} == given_fields <= set(FIELDS)
        spec_reader.check_identity(dict(identity))


@FUZZ
@given(st.sampled_from(sorted(FIELDS)), st.data())
def test_any_value_of_a_field_has_one_text_or_none(field: str, data: st.DataObject) -> None:
    """A text that is not its own text is not canonical: a reader of FORMAT.md refuses exactly those."""
    value = data.draw(FIELD_VALUES)
    identity = decoded(make_identity, {field: value})
    if identity:
        assert identity == make_identity(dict(identity))
    if isinstance(value, str):
        try:
            spec_reader.check_identity({field: value})
            canonical_text = True
        except spec_reader.Refused:
            canonical_text = False
        assert canonical_text == (identity == ((field, value),))


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": [*[0] * 4096, 5]}, {"layers": ",".join(["0"] * 4097)}, {"contents": [f"{'ab' * 16}@7"] * 257},
        {"contents": [f"{'ab' * 16}@7"] * 118}, {"model": "é" * 2048 + "x"}, {"rope_scaling": "[" * 100_000},
        {"adapter_targets": ["x" * 4097]}, {"rope_theta": b"8"}, {"heads": 10**5000}, {"rope_theta": 10**5000},
    ],
)  # fmt: skip
def test_a_value_that_is_too_much_is_refused(fields: dict[str, object]) -> None:
    """And none is cut to what would fit: it would be taken for another."""
    with pytest.raises(FormatError):
        make_identity(fields)


@FUZZ
@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), TEXTS, max_size=3), st.dictionaries(
        st.sampled_from(sorted(FIELDS)), TEXTS, max_size=3), st.sampled_from(KINDS), st.sampled_from(KINDS)
)  # fmt: skip
def test_key_ids_tell_identities_and_kinds_apart(
    first: dict[str, str], second: dict[str, str], kind: str, other: str
) -> None:
    one, two = (tuple(sorted({**fields, "strict": "yes"}.items())) for fields in (first, second))
    assert (key_id(bytes(32), kind, one) == key_id(bytes(32), other, two)) == ((kind, one) == (other, two))


def test_identity_is_canonical_and_refuses_what_it_does_not_know() -> None:
    fields = {"positions": "007:٩", "layer": 3, "model": "llama", "revision": None, "rope": UNSPECIFIED}
    assert make_identity(fields) == (("layer", "3"), ("model", "llama"), ("positions", "7:9"))
    for bad in ({"colour": "red"}, {"positions": "9:7"}, {"positions": "1"}, {"model": ""}, {"layer": True}):
        with pytest.raises(FormatError):
            make_identity(bad)


# --- manifests

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
        told = spec_reader.Shape(value)
    except spec_reader.Refused:
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


# --- key pages

REFS = st.builds(PageRef, U32.filter(bool), st.integers(0, DEPTH_MAX), KEY32)
TENANT_NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=32)
TENANTS = st.builds(Tenant, KEY16, TENANT_NAMES, KEY32, KEY32, U64, U64, REFS)


@FUZZ
@given(KEY32, TENANTS, st.data())
def test_tenant_page(key: bytes, tenant: Tenant, data: st.DataObject) -> None:
    page = seal_page(key, tenant.packed())
    assert len(page) == PAGE_BYTES
    assert parse_tenant(open_page(key, page)) == tenant
    bad = data.draw(mutated(page) | st.binary(max_size=40))
    assume(bad != page)
    assert decoded(open_page, key, bad) is None
    assert decoded(open_page, derive(key, "x"), page) is None
    hostile = open_page(key, seal_page(key, data.draw(mutated(tenant.packed()) | st.binary(max_size=300))))
    found = decoded(parse_tenant, hostile)
    assert found is None or found.keys.depth <= DEPTH_MAX


@pytest.mark.parametrize("body", [bytes(100), bytes(PAGE_BYTES - 15)], ids=["short", "long"])
def test_a_page_has_one_length(body: bytes) -> None:
    """A page of another length that opens would be parsed past its end."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    page = AESGCM(bytes(32)).encrypt(bytes(12), body, b"arstore key page")
    assert decoded(open_page, bytes(32), page) is None


@FUZZ
@given(KEY32, st.dictionaries(st.integers(0, FAN_OUT - 1), REFS, max_size=5), st.integers(1, DEPTH_MAX))
def test_inner_page(key: bytes, children: dict[int, PageRef], depth: int) -> None:
    children = {number: replace(child, depth=depth - 1) for number, child in children.items()}
    assert parse_children(open_page(key, seal_page(key, pack_children(children))), depth) == children


@FUZZ
@given(st.binary(max_size=4080), st.integers(1, DEPTH_MAX), st.integers(0, 2**40))
def test_any_body_as_inner_or_leaf_page(body: bytes, depth: int, slot: int) -> None:
    opened = open_page(bytes(32), seal_page(bytes(32), body))
    for number, child in parse_children(opened, depth).items():
        assert 0 <= number < FAN_OUT
        assert child.position
    key = slot_key(opened, slot)
    assert key is None or (len(key) == 32 and any(key))


@FUZZ
@given(KEY32, KEY16, st.builds(Root, U64, REFS, U32, KEY32), st.data())
def test_key_root(master: bytes, store_id: bytes, root: Root, data: st.DataObject) -> None:
    nonce = data.draw(st.binary(min_size=12, max_size=12))
    slot = seal_root(master, store_id, root, nonce)
    assert len(slot) == PAGE_BYTES
    assert open_root(master, store_id, slot) == root
    assert decoded(open_root, master, derive(store_id, "x", 16), slot) is None
    bad = data.draw(mutated(slot[:109]) | st.binary(max_size=130))
    assume(bad[:109] != slot[:109])
    assert decoded(open_root, master, store_id, bad) is None
    hostile = seal(
        master,
        f"key root {store_id.hex()}",
        data.draw(st.binary(max_size=100) | st.binary(min_size=81, max_size=81)),
        nonce,
    )
    found = decoded(open_root, master, store_id, hostile)
    assert found is None or found.directory.depth <= DEPTH_MAX


# --- catalog rows

PLACES = st.builds(
    Place, U64, U64, U64, st.integers(0, PLAIN_MAX_BYTES), U64, KEY16, st.integers(1, FRAME_MAX_BYTES),
    st.integers(0, 3), st.integers(0, 1),
)  # fmt: skip
NAMED = st.builds(Named, U32, st.lists(KEY32.map(Digest), max_size=3).map(tuple), st.binary(max_size=50))
PROCESSES = st.builds(ProcessId, KEY16, U32, U64, U64)
ASCII = st.characters(max_codepoint=127)
ROWS: list[tuple[Callable[..., Any], st.SearchStrategy[Any]]] = [
    (parse_blob, st.builds(BlobRow, PLACES, U32, st.integers(0, 1), U32, U64, U64)),
    (parse_version, st.builds(VersionRow, PLACES, st.booleans(), st.binary(max_size=200), U64, U32)),
    (parse_named, st.builds(NamedRow, NAMED, U32)),
    (parse_segment, st.builds(SegmentRow, st.integers(0, 255), U64, U64)),
    (parse_lease, st.builds(LeaseRow, U64, U64, KEY16, PROCESSES, U64, st.text(ASCII, max_size=PURPOSE_MAX_BYTES))),
    (parse_process, PROCESSES),
]


@pytest.mark.parametrize(("parse", "rows"), ROWS, ids=["blob", "version", "identity", "segment", "lease", "process"])
@FUZZ
@given(data=st.data(), check_key=KEY32, table=st.sampled_from(["blobs", "loans", ""]), key=st.binary(max_size=28))
def test_catalog_row(
    parse: Callable[..., Any], rows: st.SearchStrategy[Any], data: st.DataObject, check_key: bytes, table: str,
    key: bytes,
) -> None:  # fmt: skip
    row = data.draw(rows)
    ids = [data.draw(KEY32)] if parse is parse_named else []
    value = close_row(check_key, table, key, row.packed(*ids))
    assert parse(open_row(check_key, table, key, value), *ids) == row
    assert decoded(open_row, check_key, table, key + b"\0", value) is None
    assert decoded(open_row, check_key, table + "s", key, value) is None
    assert decoded(open_row, check_key, table[:-1], table[-1:].encode() + key, value) is None or not table
    assert decoded(open_row, derive(check_key, "x"), table, key, value) is None
    bad = data.draw(mutated(value) | st.binary(max_size=20))
    assume(bad != value)
    assert decoded(open_row, check_key, table, key, bad) is None

    hostile = data.draw(mutated(row.packed(*ids)) | st.binary(max_size=160))
    found = decoded(parse, hostile, *ids)
    if found is not None:
        assert found.packed(*ids) == hostile
        if isinstance(found, BlobRow | VersionRow):
            assert found.place.record_bytes >= 0


@FUZZ
@given(st.builds(NamedRow, NAMED, U32), KEY32, KEY32)
def test_an_identity_row_says_nothing_without_its_id(row: NamedRow, id_: bytes, other: bytes) -> None:
    assume(id_ != other)
    packed = row.packed(id_)
    assert decoded(parse_named, packed, other) != row
    assert decoded(parse_named, packed, bytes(32)) != row or id_ == bytes(32)
    about = row.named.about
    assert not any(bytes(digest) in packed for digest in row.named.blobs)
    assert len(about) < 8 or about not in packed
    assert spec_reader.parse_identity(packed, id_) == (row.refs, row.named.tokens, list(row.named.blobs), about)


@FUZZ
@given(
    st.builds(BlobRow, PLACES, st.integers(1, 2**32 - 2), st.integers(0, 1), U32, U64, U64), st.sampled_from([1, -1])
)
def test_a_need_that_comes_or_goes_ends_a_condemnation(row: BlobRow, change: int) -> None:
    changed = row.referred(change)
    assert (changed.refs, changed.condemned_cycle, changed.condemned_s) == (row.refs + change, 0, 0)
    assert replace(changed, refs=row.refs) == replace(row, condemned_cycle=0, condemned_s=0)


@FUZZ
@given(st.builds(LeaseRow, U64, U64, KEY16, PROCESSES, U64, st.just("put")))
def test_a_released_lease_has_no_owner_and_keeps_its_epoch(row: LeaseRow) -> None:
    released = parse_lease(row.released().packed())
    assert not released.held
    assert replace(released, owner=row.owner) == row
    assert row.held == any(row.owner)


# --- the cut


@st.composite
def spans(draw: st.DrawFn, start: int = 0) -> TensorSpan:
    """A dense tensor of up to a few hundred GB: only its numbers exist."""
    dtype = draw(st.sampled_from(["U8", "BF16", "F32", "C128", "BOOL"]))
    extents = st.integers(0, 6) | st.integers(0, 300_000) | st.sampled_from([1, 4096, 32768, 1 << 22])
    shape = tuple(draw(st.lists(extents, max_size=4)))
    assume(prod(shape) * DTYPE_BITS[dtype] // 8 < 1 << 38)
    return TensorSpan(draw(st.text(max_size=3)), dtype, shape, start, dense_bytes(dtype, shape))


@FUZZ
@given(spans(), st.integers(0, 2**40))
def test_a_tensor_is_cut_by_dtype_and_shape_alone(span: TensorSpan, start: int) -> None:
    cuts = list(cut_span(span))
    assert sum(cuts) == span.length
    assert all(0 < cut <= BLOB_MAX_BYTES for cut in cuts)
    assert list(cut_span(replace(span, name="other", start=start))) == cuts
    if span.length <= BLOB_MAX_BYTES:
        assert len(cuts) <= 1
    row_bytes = span.length // span.shape[0] if span.shape and span.shape[0] else span.length
    step = BLOB_MAX_BYTES // row_bytes * row_bytes if 0 < row_bytes <= BLOB_MAX_BYTES else BLOB_MAX_BYTES
    assert all(cut == step for cut in cuts[:-1]), "as many whole rows as fit, but for the last"


@dataclass(frozen=True, slots=True)
class Sized:
    """A file of which only the size is asked."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError("the cut reads no byte")

    def read_into(self, offset: int, out: memoryview) -> None:
        raise AssertionError("the cut reads no byte")

    def mapped(self, offset: int, length: int) -> contextlib.AbstractContextManager[memoryview]:
        raise AssertionError("the cut reads no byte")

    def check_unchanged(self) -> None:
        raise AssertionError("the cut reads no byte")


@st.composite
def tensor_files(draw: st.DrawFn) -> InputFile:
    """A file with gaps, tensors back to back, and views that share bytes; listed in any order."""
    at, found = 0, list[TensorSpan]()
    for _ in range(draw(st.integers(0, 6))):
        shift = draw(st.integers(0, 9) | st.integers(-5, 5) | st.just(BLOB_MAX_BYTES + 7))
        span = draw(spans(max(at + shift, 0)))
        found.append(span)
        at = max(at, span.start + span.length)
    size = at + draw(st.integers(0, 3) | st.just(3 * BLOB_MAX_BYTES))
    return InputFile("x", 0o644, Sized(size), "safetensors", tuple(draw(st.permutations(found))))


@FEW
@given(tensor_files())
def test_a_file_is_cut_into_its_tensors_and_what_lies_between(file: InputFile) -> None:
    cuts = list(cut_file(file))
    assert sum(cut.length for cut in cuts) == file.source.size
    assert all(0 < cut.length <= BLOB_MAX_BYTES for cut in cuts)
    starts: dict[int, int] = {}
    at = 0
    for number, cut in enumerate(cuts):
        starts[at] = number
        at += cut.length
    end = 0
    for span in sorted(file.spans, key=lambda span: span.start):
        if span.start < end:
            continue  # it shares bytes with one before it
        wanted = list(cut_span(span))
        if wanted:
            first = starts[span.start]
            assert [cut.length for cut in cuts[first : first + len(wanted)]] == wanted
            assert all(cut.dtype == span.dtype for cut in cuts[first : first + len(wanted)])
        end = span.start + span.length


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((16 << 20,), [64 << 20]),
        (((16 << 20) + 1,), [64 << 20, 4]),
        ((3, 8 << 20), [64 << 20, 32 << 20]),  # two rows of 32 MiB fit, three do not
        ((3, 9 << 20), [36 << 20] * 3),
        ((2, 17 << 20), [64 << 20, 64 << 20, 8 << 20]),  # a row above the limit is cut plainly
        ((), [4]),
        ((0, 5), []),
    ],
)
def test_cut_of_known_shapes(shape: tuple[int, ...], wanted: list[int]) -> None:
    assert list(cut_span(TensorSpan("w", "F32", shape, 0, dense_bytes("F32", shape)))) == wanted
