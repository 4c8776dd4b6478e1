"""Records: header, footer and segment header come back as written, and hostile bytes give FormatError."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from arstore.formats.catalog import (
    Place,
    parse_version,
    place_of,
)
from arstore.formats.digest import Digest
from arstore.formats.frames import (
    FOOTER_INDEX,
    FRAMES_MAX_COUNT,
    TAG_BYTES,
    Binding,
    frames_of,
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
from tests.support.fuzz import FUZZ, KEY16, KEY32, OPTIONAL_KEY, SMALL_BINDINGS, U64, bindings, decoded, mutated


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
