"""Fuzz: hostile bytes for decoders, and the values that good ones are made from."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.frames import FRAME_MAX_BYTES, FRAMES_MAX_COUNT, Binding
from arstore.formats.record import PLAIN_MAX_BYTES

T = TypeVar("T")


# The deadline is for what should take microseconds: generous for a busy machine, short for a decoder that loops.
FUZZ = settings(max_examples=150, deadline=timedelta(seconds=5))


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


@st.composite
def bindings(draw: st.DrawFn, *, frames_max: int = FRAMES_MAX_COUNT, frame_max: int = FRAME_MAX_BYTES) -> Binding:
    frame_bytes = draw(st.integers(1, frame_max))
    plain_bytes = draw(st.integers(0, min(PLAIN_MAX_BYTES, frame_bytes * frames_max)))
    kind, codec = draw(st.integers(1, 2)), draw(st.integers(0, 3))
    return Binding(draw(KEY16), draw(KEY16), kind, codec, frame_bytes, plain_bytes)


SMALL_BINDINGS = bindings(frames_max=40, frame_max=4096)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
