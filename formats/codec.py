"""Codecs of one frame: up to 4 MiB of plaintext to encoded bytes and back, each frame on its own.

Invariant: `decode` fills its destination whole or raises FormatError; it never writes past it, and no
length that the encoded bytes declare makes it allocate. A frame never grows by more than GROWTH_MAX_BYTES.

Encoded frame, by codec number. N is the plaintext length in bytes, known from outside the frame.

    0 STORED    N bytes        the plaintext

    1 ZSTD      <= N bytes     one part for N bytes

    2 PLANE16   W = 2          elements of W bytes, E = N // W of them, T = N % W bytes over
    3 PLANE32   W = 4
        offset  bytes          what
        0       4 x W          u32 little-endian: length of the part of plane k, for k = 0 .. W-1
        4W      sum of those   the parts, plane 0 first, each for E bytes; plane k is byte k of each element,
                               little-endian, so the last plane holds sign and exponent
        end-T   T              the last T bytes of the plaintext, as they are

A part for M bytes is those M bytes if it is M bytes long, and one zstd frame (RFC 8878) if it is shorter.

A frame is valid iff
  - its codec number is one of the above, and N <= 4 MiB where that is not STORED;
  - STORED: it is N bytes long; ZSTD: it is one valid part for N;
  - PLANE: 4W + sum of the part lengths + T is its length, and each part is valid for E;
and a part is valid for M iff it is M bytes long, or
  - it is shorter, and begins with the zstd magic 28 B5 2F FD (no skippable frame, no legacy format);
  - its frame header states the content size M, no dictionary and no checksum (the AEAD tag stands for it);
  - its last block ends where the part ends, and it decodes, without error, to M bytes.
"""

import struct
import threading
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import FormatError
from .planes import merge, split

if TYPE_CHECKING:  # numpy and zstandard load with the first frame: `arstore ls` must not wait for them.
    import zstandard

CODED_PLAIN_MAX_BYTES = 4 << 20  # of one frame, where its codec is not STORED
GROWTH_MAX_BYTES = 16  # the part lengths of PLANE32; a part itself is stored where zstd does not gain
SAMPLE_MAX_BYTES = 64 << 10  # what `choose` looks at; about 0.1 ms of zstd

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_LEVEL = 1  # 2 and 3 take a third more time for a tenth less text
_SAMPLE_PIECES = 4
_BIG_COPY_BYTES = 256 << 10


class Codec(IntEnum):
    """How a frame is encoded. The numbers are on disk: never change one, never reuse one."""

    STORED = 0
    ZSTD = 1
    PLANE16 = 2
    PLANE32 = 3


_WIDTHS: dict[int, int] = {Codec.PLANE16: 2, Codec.PLANE32: 4}
_PLANE_CODECS = {"BF16": Codec.PLANE16, "F16": Codec.PLANE16, "F32": Codec.PLANE32}


def choose(requested: str, dtype: str | None, sample: memoryview) -> Codec:
    """Return the codec for a blob of `dtype` (None: not a tensor) that begins with or resembles `sample`.

    "stored" and "zstd" are themselves. "plane" is for tiers slower than its decoder: planes for BF16, F16
    and F32, else zstd. "auto" is for the local tier, which must read at memory speed: a frame decrypts at
    10 GB/s straight into its destination, while planes decode at under 3 GB/s (4 for Huffman alone)
    to save a third of the space. So auto stores, unless zstd at least halves the sample (zeros, masks, text,
    JSON): there the saving pays for the decoder. At most 64 KiB of the sample, spread over it, are tried.
    Raises ValueError if `requested` is none of these.
    """
    match requested:
        case "stored":
            return Codec.STORED
        case "zstd":
            return Codec.ZSTD
        case "plane":
            return _PLANE_CODECS.get(dtype or "", Codec.ZSTD)
        case "auto":
            tried = _spread(sample)
            halved = 2 * len(_workbench.matcher.compress(tried)) <= len(tried)
            return Codec.ZSTD if halved else Codec.STORED
        case _:
            raise ValueError(f"codec {requested!r} is not known, want auto, stored, zstd or plane")


def encode(codec: Codec, plain: memoryview) -> bytes:
    """Return the encoded frame of at most 4 MiB of plaintext, at most GROWTH_MAX_BYTES longer than it.

    STORED copies: a caller in a hurry hands its plaintext on instead.
    """
    assert plain.format == "B"
    if codec == Codec.STORED:
        return bytes(plain)
    assert len(plain) <= CODED_PLAIN_MAX_BYTES
    if codec == Codec.ZSTD:
        return bytes(_pack(_workbench.matcher, plain))
    width = _WIDTHS[codec]
    elements, tail = divmod(len(plain), width)
    whole = len(plain) - tail
    planes = _workbench.planes(width, elements)
    split(plain[:whole], planes)
    parts = [_pack(_workbench.coder, plane) for plane in planes]
    lengths = struct.pack(f"<{width}I", *(len(part) for part in parts))
    return b"".join([lengths, *parts, plain[whole:]])


def decode(codec: int, encoded: memoryview, plain: memoryview) -> None:
    """Fill `plain`, whose length is the exact plaintext length, from an encoded frame.

    Raises FormatError if the frame is not valid for that length; `plain` then holds anything.
    """
    assert plain.format == "B"
    assert not plain.readonly
    if codec == Codec.STORED:
        if len(encoded) != len(plain):
            raise FormatError(f"stored frame is {len(encoded)} bytes, want {len(plain)}")
        _copy(encoded, plain)
    elif codec != Codec.ZSTD and codec not in _WIDTHS:
        raise FormatError(f"codec {codec} is not known")
    elif len(plain) > CODED_PLAIN_MAX_BYTES:
        raise FormatError(f"encoded frame of {len(plain)} bytes exceeds the limit of {CODED_PLAIN_MAX_BYTES}")
    elif codec == Codec.ZSTD:
        if _unpack(encoded, plain) is encoded:
            _copy(encoded, plain)
    else:
        _decode_planes(_WIDTHS[codec], encoded, plain)


def _spread(sample: memoryview) -> bytes:
    """Return the sample, or pieces spread over it: a header or a run of zeros says little of the rest."""
    if len(sample) <= SAMPLE_MAX_BYTES:
        return bytes(sample)
    piece = SAMPLE_MAX_BYTES // _SAMPLE_PIECES
    starts = (i * (len(sample) - piece) // (_SAMPLE_PIECES - 1) for i in range(_SAMPLE_PIECES))
    return b"".join(sample[start : start + piece] for start in starts)


def _copy(source: memoryview, target: memoryview) -> None:
    if len(source) < _BIG_COPY_BYTES:
        target[:] = source
        return
    import numpy as np

    # numpy lets go of the GIL while it copies; a memoryview would hold up the other threads.
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))


class _Workbench(threading.local):
    """The zstd contexts and the plane buffer of one thread, made when it first needs them.

    This is module state, and safe: no thread sees another's, and nothing in it outlives one call of
    `encode`, `decode` or `choose` but allocations. Fresh ones cost 5 % of a 4 MiB frame, 15 % of 256 KiB.
    """

    @cached_property
    def matcher(self) -> "zstandard.ZstdCompressor":
        """Ordinary zstd: finds matches, for text, masks and tables."""
        import zstandard

        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL)

    @cached_property
    def coder(self) -> "zstandard.ZstdCompressor":
        """Zstd starved of matches until it is its Huffman coder, which is all that a plane of floats can use.

        Levels 1 to 3 are slower and come out larger; a smaller window or a target length above 0 ruins it.
        """
        import zstandard

        starved = zstandard.ZstdCompressionParameters(
            window_log=17,
            hash_log=6,
            chain_log=6,
            search_log=1,
            min_match=7,
            target_length=0,
            strategy=zstandard.STRATEGY_FAST,
        )
        return zstandard.ZstdCompressor(compression_params=starved)

    @cached_property
    def decompressor(self) -> "zstandard.ZstdDecompressor":
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=CODED_PLAIN_MAX_BYTES)

    @cached_property
    def _plane_buffer(self) -> memoryview:
        return memoryview(bytearray(CODED_PLAIN_MAX_BYTES))  # pages appear only where planes are written

    def planes(self, width: int, elements: int) -> list[memoryview]:
        """Return `width` writable planes of `elements` bytes; the next call gives the same memory again."""
        return [self._plane_buffer[k * elements : (k + 1) * elements] for k in range(width)]


_workbench = _Workbench()


def _pack(compressor: "zstandard.ZstdCompressor", plain: memoryview) -> bytes | memoryview:
    """Return `plain` as a part: a zstd frame if that saves a sixteenth, else itself, free to decode."""
    if not plain:
        return plain
    packed = compressor.compress(plain)
    return packed if 16 * len(packed) <= 15 * len(plain) else plain


def _unpack(part: memoryview, room: memoryview) -> memoryview:
    """Return what a part expands to: the part itself if it is stored, else `room`, filled.

    Raises FormatError unless the part is valid for the length of `room`.
    """
    if len(part) == len(room):
        return part
    if len(part) > len(room):
        raise FormatError(f"codec part is {len(part)} bytes, want at most {len(room)}")
    import zstandard

    try:
        _check_zstd_frame(part, len(room))
        # Whole frame in, whole room out: zstd then decodes in one pass straight into the room and never past
        # it, needs no window of its own, and fails if the content size it was told is not what comes out.
        with _workbench.decompressor.stream_reader(part) as reader:
            filled = reader.readinto(room)
    except zstandard.ZstdError as error:
        raise FormatError(f"codec part does not decode: {error}") from error
    if filled != len(room):
        raise FormatError(f"codec part expands to {filled} bytes, want {len(room)}")
    return room


def _check_zstd_frame(part: memoryview, content_bytes: int) -> None:
    """Raise FormatError (or ZstdError) unless `part` is one zstd frame, to its end, of that content size."""
    import zstandard

    if part[:4] != _ZSTD_MAGIC:
        raise FormatError("codec part is no zstd frame")
    header = zstandard.get_frame_parameters(part)
    if header.content_size != content_bytes:
        raise FormatError(f"zstd frame declares {header.content_size} bytes, want {content_bytes}")
    if header.dict_id or header.has_checksum:
        raise FormatError("zstd frame has a dictionary or a checksum, want neither")
    # Walk the block headers (RFC 8878, 3.1.1.2): the decompressor does not say where its frame ended.
    position, last = zstandard.frame_header_size(part), False
    while not last:
        block = int.from_bytes(part[position : position + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        position += 3 + (1 if kind == 1 else size)  # kind 1 repeats one byte `size` times
        if position > len(part):
            raise FormatError("zstd frame ends inside a block")
    if position != len(part):
        raise FormatError(f"zstd frame is followed by {len(part) - position} bytes, want none")


def _decode_planes(width: int, encoded: memoryview, plain: memoryview) -> None:
    elements, tail = divmod(len(plain), width)
    if len(encoded) < 4 * width + tail:
        raise FormatError(f"plane frame is {len(encoded)} bytes, want at least {4 * width + tail}")
    lengths: tuple[int, ...] = struct.unpack_from(f"<{width}I", encoded)
    if 4 * width + sum(lengths) + tail != len(encoded):
        raise FormatError(f"plane parts are {sum(lengths)} bytes, want {len(encoded) - 4 * width - tail}")
    planes, start = [], 4 * width
    for length, room in zip(lengths, _workbench.planes(width, elements), strict=True):
        planes.append(_unpack(encoded[start : start + length], room))
        start += length
    whole = len(plain) - tail
    merge(planes, plain[:whole])
    plain[whole:] = encoded[start:]
