"""Frames: each opens only as what it was sealed as."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.frames import (
    FOOTER_INDEX,
    Binding,
    Frames,
    frames_of,
)
from tests.support.frames import sealed_frame
from tests.support.fuzz import FUZZ, KEY32, OPTIONAL_KEY, SMALL_BINDINGS, bindings, mutated


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
