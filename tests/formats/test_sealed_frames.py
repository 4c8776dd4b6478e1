"""Sealed frames: a frame opens at its own place, under its own binding and key alone."""

from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.frames import FOOTER_INDEX, TAG_BYTES, Binding, SealedFrames
from arstore.formats.record import KIND_BLOB, KIND_VERSION
from tests.support.frames import sealed_frame

KEYS = st.binary(min_size=32, max_size=32)


IDS = st.binary(min_size=16, max_size=16)


BINDINGS = st.builds(
    Binding, IDS, IDS, st.sampled_from([KIND_BLOB, KIND_VERSION]), st.integers(0, 3), st.just(64), st.integers(1, 640)
)


def opened(frames: SealedFrames, index: int, sealed: bytes, length: int) -> bytes | None:
    """Return what a frame opens to, or None where it is refused; then nothing of it may be left."""
    out = bytearray(b"\xa5" * length)
    try:
        frames.open_into(index, sealed, memoryview(out))
    except FormatError:
        assert not any(out), "a refused frame left bytes behind"
        return None
    return bytes(out)


@given(KEYS, BINDINGS, st.data())
def test_a_frame_opens_at_its_own_place_alone(key: bytes, binding: Binding, data: st.DataObject) -> None:
    frames = SealedFrames(key, binding)
    index = data.draw(st.integers(0, binding.frames_count - 1), "index")
    plain = data.draw(st.binary(min_size=16, max_size=64), "plain")
    sealed = sealed_frame(frames, index, plain)
    assert opened(frames, index, sealed, len(plain)) == plain

    others = {*range(binding.frames_count + 1), FOOTER_INDEX} - {index}
    for other in others:
        assert opened(frames, other, sealed, len(plain)) is None
    at = data.draw(st.integers(0, 8 * len(sealed) - 1), "bit")
    flipped = bytearray(sealed)
    flipped[at // 8] ^= 1 << at % 8
    assert opened(frames, index, bytes(flipped), len(plain)) is None
    for cut in (sealed[:-1], sealed[1:], sealed + b"\0", sealed[:TAG_BYTES], b""):
        assert opened(frames, index, cut, len(plain)) is None
    for length in (len(plain) - 1, len(plain) + 1, 0):
        assert opened(frames, index, sealed, length) is None


@given(KEYS, BINDINGS, BINDINGS, st.integers(0, 9))
def test_a_frame_opens_under_its_own_binding_alone(key: bytes, binding: Binding, other: Binding, index: int) -> None:
    """Tenant, instance, kind, codec, frame size and total length: each alone makes it another frame."""
    plain = bytes(range(48))
    sealed = sealed_frame(SealedFrames(key, binding), index, plain)
    for name in Binding.__slots__:
        fields = {field: getattr(binding, field) for field in Binding.__slots__} | {name: getattr(other, name)}
        changed = Binding(**fields)
        assert (opened(SealedFrames(key, changed), index, sealed, len(plain)) == plain) == (changed == binding)


@given(KEYS, st.integers(2, 9))
def test_a_record_that_was_cut_does_not_end(key: bytes, frames_count: int) -> None:
    """A middle frame can't pass as the last one, nor the last as a middle one, even with the length it would need."""
    whole = Binding(bytes(16), bytes(16), KIND_BLOB, 0, 64, 64 * frames_count)
    shorter = Binding(bytes(16), bytes(16), KIND_BLOB, 0, 64, 64 * (frames_count - 1))
    plain = bytes(64)
    last_of_shorter = frames_count - 2
    # The bindings differ in length, which alone would do. But the nonces differ too: so does the key stream.
    starts = {sealed_frame(SealedFrames(key, binding), last_of_shorter, plain)[:64] for binding in (whole, shorter)}
    assert len(starts) == 2
    sealed = sealed_frame(SealedFrames(key, whole), last_of_shorter, plain)
    assert opened(SealedFrames(key, shorter), last_of_shorter, sealed, 64) is None
    sealed = sealed_frame(SealedFrames(key, shorter), last_of_shorter, plain)
    assert opened(SealedFrames(key, whole), last_of_shorter, sealed, 64) is None


@given(KEYS, KEYS, BINDINGS)
def test_a_key_is_committed_to(key: bytes, other: bytes, binding: Binding) -> None:
    mine, theirs = SealedFrames(key, binding), SealedFrames(other, binding)
    assert (mine.commitment == theirs.commitment) == (key == other)
    assert (mine.header_check(b"header") == theirs.header_check(b"header")) == (key == other)
    assert len(mine.commitment) == 32
    assert mine.commitment not in (key, bytes(32))
