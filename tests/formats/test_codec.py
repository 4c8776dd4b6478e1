"""Codecs: what comes out of `decode` is what went into `encode`, or a FormatError."""

import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.formats.codec import CODED_PLAIN_MAX_BYTES, GROWTH_MAX_BYTES, Codec, choose, decode, encode
from arstore.formats.errors import FormatError

# A zstd frame written by hand: one segment, content size 64, one last block that repeats 00 64 times.
ZEROS64 = bytes.fromhex("28b52ffd 20 40 030200 00")

CODECS = st.sampled_from(Codec)
# Random bytes, runs, and few-valued bytes: parts that are stored and parts that are zstd frames.
PLAINS = st.one_of(
    st.binary(max_size=600),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=8), st.integers(0, 700)),
    st.builds(lambda seed, size: few_valued(seed, size).tobytes(), st.integers(0, 99), st.integers(0, 5000)),
)


def few_valued(seed: int, size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).binomial(16, 0.5, size).astype(np.uint8)


def float32s(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return weights as models have them: N(0, 0.02)."""
    return (np.random.default_rng(seed).standard_normal(count, np.float32) * 0.02).astype(np.float32)


def bfloat16s(count: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    return (float32s(count, seed).view(np.uint32) >> 16).astype(np.uint16)


def decoded(codec: int, encoded: bytes, size: int) -> bytes:
    plain = bytearray(b"\xa5" * size)
    decode(codec, memoryview(encoded), memoryview(plain))
    return bytes(plain)


def round_trip(codec: Codec, plain: bytes) -> bytes:
    """Check that a frame comes back and has not grown; return it."""
    encoded = encode(codec, memoryview(plain))
    assert len(encoded) <= len(plain) + GROWTH_MAX_BYTES
    assert decoded(codec, encoded, len(plain)) == plain
    return encoded


@given(codec=CODECS, plain=PLAINS)
def test_round_trip(codec: Codec, plain: bytes) -> None:
    round_trip(codec, plain)


@pytest.mark.parametrize("codec", Codec)
def test_round_trip_at_every_small_length(codec: Codec) -> None:
    for size in range(70):
        round_trip(codec, bytes(size))
        round_trip(codec, bytes(range(size)))


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("short_by", [0, 1, 3])
def test_round_trip_of_a_full_frame_at_an_odd_address(codec: Codec, short_by: int) -> None:
    weights = b"?" + bfloat16s(CODED_PLAIN_MAX_BYTES // 2).tobytes()
    plain = memoryview(weights)[1 : len(weights) - short_by]
    room = memoryview(bytearray(len(weights)))[1 : len(weights) - short_by]
    decode(codec, memoryview(encode(codec, plain)), room)
    assert room == plain


def test_a_new_frame_is_no_wiser_for_the_last_one() -> None:
    for first, second in pairwise([b"", bytes(4096), b"\xff" * 4097, few_valued(0, 9999).tobytes(), b"x"]):
        for codec in Codec:
            alone = encode(codec, memoryview(second))
            encode(codec, memoryview(first))
            assert round_trip(codec, second) == alone


def test_layout_of_each_codec() -> None:
    assert [codec.value for codec in Codec] == [0, 1, 2, 3]
    assert encode(Codec.STORED, memoryview(b"abcde")) == b"abcde"
    assert encode(Codec.ZSTD, memoryview(b"abcde")) == b"abcde"
    assert encode(Codec.PLANE16, memoryview(b"abcde")) == struct.pack("<2I", 2, 2) + b"ac" + b"bd" + b"e"
    assert encode(Codec.PLANE32, memoryview(b"abcdefg")) == struct.pack("<4I", 1, 1, 1, 1) + b"abcdefg"
    assert decoded(Codec.ZSTD, ZEROS64, 64) == bytes(64)
    mixed = struct.pack("<2I", 64, len(ZEROS64)) + bytes(range(64)) + ZEROS64 + b"!"
    assert decoded(Codec.PLANE16, mixed, 129) == b"".join(bytes([low, 0]) for low in range(64)) + b"!"


INVALID: dict[str, tuple[int, bytes, int]] = {
    "unknown codec": (4, b"abc", 3),
    "stored, short": (Codec.STORED, b"ab", 3),
    "stored, long": (Codec.STORED, b"abcd", 3),
    "part longer than its plaintext": (Codec.ZSTD, b"abcd", 3),
    "part empty": (Codec.ZSTD, b"", 3),
    "no zstd frame": (Codec.ZSTD, b"abc", 64),
    "zstd frame longer than its plaintext": (Codec.ZSTD, ZEROS64, 9),
    "content size below the one wanted": (Codec.ZSTD, ZEROS64, 65),
    "content size above the one wanted": (Codec.ZSTD, ZEROS64, 63),
    "content size below the real one": (Codec.ZSTD, bytes.fromhex("28b52ffd 20 3f 030200 00"), 63),
    "content size above the real one": (Codec.ZSTD, bytes.fromhex("28b52ffd 20 41 030200 00"), 65),
    "content size not declared": (Codec.ZSTD, bytes.fromhex("28b52ffd 00 00 030200 00"), 64),
    "reserved header bit": (Codec.ZSTD, bytes.fromhex("28b52ffd 28 40 030200 00"), 64),
    "reserved block kind": (Codec.ZSTD, bytes.fromhex("28b52ffd 20 40 070000"), 64),
    "dictionary": (Codec.ZSTD, bytes.fromhex("28b52ffd 21 07 40 030200 00"), 64),
    "checksum": (Codec.ZSTD, zstandard.ZstdCompressor(write_checksum=True).compress(bytes(64)), 64),
    "skippable frame": (Codec.ZSTD, bytes.fromhex("502a4d18 03000000 616263"), 64),
    "no last block": (Codec.ZSTD, bytes.fromhex("28b52ffd 20 40 020200 00"), 64),
    "block past the end": (Codec.ZSTD, bytes.fromhex("28b52ffd 20 40 010200 00"), 64),
    "cut in a block header": (Codec.ZSTD, ZEROS64[:8], 64),
    "cut in the frame header": (Codec.ZSTD, ZEROS64[:5], 64),
    "byte after the frame": (Codec.ZSTD, ZEROS64 + b"\0", 64),
    "second frame": (Codec.ZSTD, ZEROS64 + ZEROS64, 64),
    "empty frame after the frame": (Codec.ZSTD, ZEROS64 + bytes.fromhex("28b52ffd 20 00 010000"), 64),
    "plane header cut": (Codec.PLANE16, b"\0" * 7, 0),
    "plane tail missing": (Codec.PLANE16, struct.pack("<2I", 1, 1) + b"ab", 3),
    "byte after the planes": (Codec.PLANE16, struct.pack("<2I", 1, 1) + b"ab" + b"!", 2),
    "plane part longer than its plane": (Codec.PLANE16, struct.pack("<2I", 2, 0) + b"ab", 2),
    "plane part empty": (Codec.PLANE16, struct.pack("<2I", 0, 1) + b"a", 2),
    "plane parts that wrap around": (Codec.PLANE16, struct.pack("<2I", 2**32 - 1, 3) + b"ab", 2),
    "plane lengths of another width": (Codec.PLANE32, struct.pack("<2I", 2, 2) + b"abcd", 4),
}


@pytest.mark.parametrize("case", INVALID)
def test_refuses(case: str) -> None:
    codec, encoded, size = INVALID[case]
    with pytest.raises(FormatError) as caught:
        decoded(codec, encoded, size)
    assert "\n" not in str(caught.value)


def test_only_stored_frames_may_exceed_the_limit() -> None:
    plain = bytes(CODED_PLAIN_MAX_BYTES + 8)
    round_trip(Codec.STORED, plain)
    for codec in (Codec.ZSTD, Codec.PLANE16, Codec.PLANE32):
        with pytest.raises(FormatError, match="exceeds the limit"):
            decoded(codec, plain, len(plain))


@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.PLANE16, Codec.PLANE32])
@pytest.mark.parametrize("honest", [True, False])
def test_a_bomb_is_refused_without_allocating(codec: Codec, honest: bool) -> None:
    """A frame of 256 MiB of zeros, which says so or claims to be what was asked for."""
    width = {Codec.ZSTD: 1, Codec.PLANE16: 2, Codec.PLANE32: 4}[codec]
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=256 << 20)
    frame = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(256)) + compressor.flush()
    claim = 256 << 20 if honest else 1 << 20
    assert frame[4] & 0xC0 == 0x80  # the content size has four bytes, at the end of the header
    header_end = zstandard.frame_header_size(frame)
    bomb = frame[: header_end - 4] + struct.pack("<I", claim) + frame[header_end:]
    parts = struct.pack(f"<{width}I", *[len(bomb)] * width) if width > 1 else b""
    room = bytearray(width << 20)
    decode(codec, memoryview(encode(codec, memoryview(room))), memoryview(room))  # warm this thread's contexts
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode(codec, memoryview(parts + bomb * width), memoryview(room))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=500)
@given(codec=CODECS, plain=PLAINS, drawn=st.data())
def test_a_changed_frame_decodes_or_is_a_format_error(codec: Codec, plain: bytes, drawn: st.DataObject) -> None:
    encoded = bytearray(encode(codec, memoryview(plain)))
    at = drawn.draw(st.integers(0, len(encoded)))
    change = drawn.draw(st.sampled_from(["set", "cut", "insert", "append", "length"]))
    if change == "set" and at < len(encoded):
        encoded[at] = drawn.draw(st.integers(0, 255))
    elif change == "cut":
        del encoded[at : at + drawn.draw(st.integers(1, 9))]
    elif change == "insert":
        encoded[at:at] = drawn.draw(st.binary(min_size=1, max_size=9))
    elif change == "append":
        encoded += drawn.draw(st.binary(min_size=1, max_size=9))
    size = drawn.draw(st.integers(0, 2 * len(plain))) if change == "length" else len(plain)
    guarded = bytearray(b"\xa5" * (size + 64))
    with suppress(FormatError):  # wrong bytes are for the AEAD tag to notice
        decode(codec, memoryview(encoded), memoryview(guarded)[32 : 32 + size])
    assert guarded[:32] == guarded[32 + size :] == b"\xa5" * 32


@pytest.mark.parametrize(
    ("codec", "plain", "low", "high"),
    [
        pytest.param(Codec.PLANE16, lambda: bfloat16s(1 << 20), 0.60, 0.72, id="bf16 weights"),
        pytest.param(Codec.PLANE16, lambda: float32s(1 << 20).astype(np.float16), 0.70, 0.85, id="f16 weights"),
        pytest.param(Codec.PLANE32, lambda: float32s(1 << 19), 0.80, 0.86, id="f32 weights"),
        pytest.param(Codec.PLANE32, lambda: bfloat16s(1 << 19).astype(np.uint32) << 16, 0.30, 0.36, id="f32 once bf16"),
        pytest.param(Codec.PLANE16, lambda: np.zeros(1 << 20, np.uint16), 0.0, 0.001, id="zeros"),
        pytest.param(Codec.ZSTD, lambda: np.zeros(1 << 20, np.uint16), 0.0, 0.001, id="zeros by zstd"),
    ],
)
def test_ratio(codec: Codec, plain: Callable[[], npt.NDArray[np.generic]], low: float, high: float) -> None:
    raw = plain().tobytes()
    assert low < len(round_trip(codec, raw)) / len(raw) < high


TEXT = b'{"token": "the", "id": 262}, ' * 99
NOISE = np.random.default_rng(1).bytes(1 << 20)


@pytest.mark.parametrize(
    ("requested", "dtype", "sample", "want"),
    [
        ("stored", "BF16", TEXT, Codec.STORED),
        ("zstd", "BF16", NOISE, Codec.ZSTD),
        ("plane", "BF16", b"", Codec.PLANE16),
        ("plane", "F16", b"", Codec.PLANE16),
        ("plane", "F32", b"", Codec.PLANE32),
        ("plane", "F64", b"", Codec.ZSTD),
        ("plane", "F8_E4M3", b"", Codec.ZSTD),
        ("plane", None, b"", Codec.ZSTD),
        ("auto", "BF16", bfloat16s(1 << 18).tobytes(), Codec.STORED),
        ("auto", "F32", float32s(1 << 18).tobytes(), Codec.STORED),
        ("auto", "BF16", bytes(1 << 20), Codec.ZSTD),
        ("auto", "BOOL", np.tri(512, dtype=np.bool_).tobytes(), Codec.ZSTD),
        ("auto", None, TEXT, Codec.ZSTD),
        ("auto", None, NOISE, Codec.STORED),
        ("auto", None, b"", Codec.STORED),
        ("auto", None, b"a", Codec.STORED),
        ("auto", "BF16", bytes(64 << 10) + NOISE, Codec.STORED),  # zeros in front of weights
    ],
)
def test_choose(requested: str, dtype: str | None, sample: bytes, want: Codec) -> None:
    assert choose(requested, dtype, memoryview(sample)) is want


@pytest.mark.parametrize("requested", ["", "AUTO", "lz4", "plane16"])
def test_choose_refuses_an_unknown_request(requested: str) -> None:
    with pytest.raises(ValueError, match="want auto, stored, zstd or plane"):
        choose(requested, None, memoryview(b""))


def test_threads_do_not_meet() -> None:
    def many_frames(seed: int) -> None:
        for turn in range(12):
            codec = Codec((seed + turn) % len(Codec))
            round_trip(codec, bfloat16s(100_000 + 977 * seed, seed).tobytes())
            assert choose("auto", None, memoryview(bytes(4096))) is Codec.ZSTD

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(many_frames, range(6)))
