"""GGUF, versions 2 and 3, little-endian: where each tensor lies in the file.

Invariant: every span lies inside the file, on the alignment that the file sets, and overlaps no other.
Metadata is walked and checked for length, never kept, so a vocabulary costs no memory.

    0    4    "GGUF"
    4    4    version
    8    8    count of tensors
    16   8    count of metadata pairs
    .    .    pairs: key string, type (4), value
    .    .    tensors: name string, rank (4), extents (8 each, fastest first), ggml type (4), offset (8)
    .    .    padding to `general.alignment` (32 unless set); the offsets count from here
A string is its length (8) and that many bytes; an array its element type (4), count (8) and elements.
"""

from dataclasses import dataclass
from math import prod

from ..errors import FormatError
from ..tensor import DTYPE_BITS, NAME_MAX_BYTES, TENSORS_MAX_COUNT, Source, TensorSpan, dense_bytes

MAGIC = b"GGUF"
HEADER_MAX_BYTES = 1 << 30
VALUES_MAX_COUNT = 1 << 24
ALIGNMENT_MAX_BYTES = 1 << 20
KEY_MAX_BYTES = 0xFFFF
_RANK_MAX = 4
_DEPTH_MAX = 4
_READ_BYTES = 256 << 10

_STRING, _ARRAY, _UINT32 = 8, 9, 4
# Metadata types of fixed size, in bytes.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# By ggml's number: name, elements a block, bytes a block. Numbers that are missing were withdrawn from files,
# and 9 (Q8_1) never was in one: ggml itself and its python package do not agree on its size.
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Info:
    """One line of the tensor table; `offset` counts from the start of the data, which is not yet known."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_table(source: Source) -> tuple[TensorSpan, ...]:
    """Return the tensors of a GGUF file by place in the file, shapes row-major (slowest extent first).

    Plain types take safetensors' names, quantised ones keep ggml's. Raises FormatError for another version
    or byte order, an unknown type, anything cut short, misplaced, overlapping, or over the limits.
    """
    cursor = _Cursor(source)
    if cursor.take(4) != MAGIC:
        raise FormatError("file does not start with 'GGUF'")
    version = cursor.number(4)
    if version not in (2, 3):
        if version and not version & 0xFFFF:
            raise FormatError("gguf file is big-endian, only little-endian is supported")
        raise FormatError(f"gguf version {version} is not supported, wanted 2 or 3")
    tensors_count, pairs_count = cursor.number(8), cursor.number(8)
    if tensors_count > TENSORS_MAX_COUNT:
        raise FormatError(f"gguf file has {tensors_count} tensors, at most {TENSORS_MAX_COUNT} are allowed")
    alignment = _read_metadata(cursor, pairs_count)
    infos = [_read_info(cursor) for _ in range(tensors_count)]
    data_start = cursor.position + -cursor.position % alignment
    return _place(infos, data_start, alignment, source.size)


def _place(infos: list[_Info], data_start: int, alignment: int, size: int) -> tuple[TensorSpan, ...]:
    """Return the table as spans of a file of `size` bytes, each checked against its bounds and neighbours."""
    if len({info.name for info in infos}) != len(infos):
        raise FormatError("gguf file tells a tensor's name twice")
    end = data_start
    spans = []
    for info in sorted(infos, key=lambda info: (info.offset, info.length, info.name)):
        where = f"tensor {info.name[:80]!r}"
        start = data_start + info.offset
        if info.offset % alignment:
            raise FormatError(f"{where} is not aligned to {alignment} bytes")
        if start < end:
            raise FormatError(f"{where} overlaps the one before it")
        end = start + info.length
        if end > size:
            raise FormatError(f"{where} ends at byte {end}, the file at {size}")
        spans.append(TensorSpan(info.name, info.dtype, info.shape, start, info.length))
    return tuple(spans)


def _read_metadata(cursor: "_Cursor", pairs_count: int) -> int:
    """Walk the metadata; return the alignment of the tensors in bytes."""
    alignment = None
    for _ in range(pairs_count):
        cursor.count_value()
        key_length = cursor.number(8)
        if key_length > KEY_MAX_BYTES:
            raise FormatError(f"gguf key of {key_length} bytes, at most {KEY_MAX_BYTES} are allowed")
        key = cursor.take(key_length)
        kind = cursor.number(4)
        if key != b"general.alignment":
            _skip_value(cursor, kind, depth=0)
            continue
        if alignment is not None or kind != _UINT32:
            raise FormatError("gguf general.alignment is told twice or is not a uint32")
        alignment = cursor.number(4)
        if alignment.bit_count() != 1 or alignment > ALIGNMENT_MAX_BYTES:
            raise FormatError(f"gguf general.alignment {alignment} is not a power of two up to 1 MiB")
    return 32 if alignment is None else alignment


def _skip_value(cursor: "_Cursor", kind: int, *, depth: int) -> None:
    """Move past one metadata value; every length in it is checked against the bytes there are."""
    if kind in _VALUE_BYTES:
        cursor.skip(_VALUE_BYTES[kind])
    elif kind == _STRING:
        cursor.skip(cursor.number(8))
    elif kind == _ARRAY:
        if depth == _DEPTH_MAX:
            raise FormatError(f"gguf metadata nests arrays deeper than {_DEPTH_MAX}")
        element, count = cursor.number(4), cursor.number(8)
        if element in _VALUE_BYTES:
            cursor.skip(count * _VALUE_BYTES[element])
            return
        for _ in range(count):
            cursor.count_value()
            _skip_value(cursor, element, depth=depth + 1)
    else:
        raise FormatError(f"gguf metadata has the unknown value type {kind}")


def _read_info(cursor: "_Cursor") -> _Info:
    """Read one line of the tensor table."""
    name_length = cursor.number(8)
    if name_length > NAME_MAX_BYTES:
        raise FormatError(f"tensor name of {name_length} bytes, at most {NAME_MAX_BYTES} are allowed")
    try:
        name = cursor.take(name_length).decode()
    except UnicodeDecodeError:
        raise FormatError("tensor name is not utf-8") from None
    where = f"tensor {name[:80]!r}"
    rank = cursor.number(4)
    if rank > _RANK_MAX:
        raise FormatError(f"{where} has {rank} extents, at most {_RANK_MAX} are allowed")
    shape = tuple(cursor.number(8) for _ in range(rank))[::-1]
    number, offset = cursor.number(4), cursor.number(8)
    if any(extent >= 1 << 63 for extent in shape) or offset >= 1 << 63:
        raise FormatError(f"{where} has an extent or offset of 2**63 or more")
    if number not in _TYPES:
        raise FormatError(f"{where} has the unknown ggml type {number}")
    dtype, block_elements, block_bytes = _TYPES[number]
    if dtype in DTYPE_BITS:
        return _Info(name, dtype, shape, offset, dense_bytes(dtype, shape))
    if not shape or shape[-1] % block_elements:
        raise FormatError(f"{where} has rows that are not whole {dtype} blocks of {block_elements}")
    return _Info(name, dtype, shape, offset, prod(shape) // block_elements * block_bytes)


class _Cursor:
    """Reads the header front to back in pieces of 256 KiB, and counts the metadata values walked over."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._end = min(source.size, HEADER_MAX_BYTES)
        self._piece = b""
        self._piece_start = 0
        self._values_left = VALUES_MAX_COUNT
        self.position = 0

    def take(self, length: int) -> bytes:
        """Return the next `length` bytes, bounded by the caller; raise FormatError if there are fewer."""
        begin = self.position - self._piece_start
        if begin + length > len(self._piece):
            self._check_left(length)
            self._piece = self._source.read(self.position, min(max(length, _READ_BYTES), self._end - self.position))
            self._piece_start, begin = self.position, 0
        self.position += length
        return self._piece[begin : begin + length]

    def number(self, width: int) -> int:
        """Return the next unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def skip(self, length: int) -> None:
        """Move past `length` bytes without reading them; raise FormatError if there are fewer."""
        self._check_left(length)
        self.position += length

    def count_value(self) -> None:
        """Count one metadata value; raise FormatError past the limit, which bounds the time of a walk."""
        self._values_left -= 1
        if self._values_left < 0:
            raise FormatError(f"gguf metadata has more than {VALUES_MAX_COUNT} values")

    def _check_left(self, length: int) -> None:
        if length > self._end - self.position:
            raise FormatError(f"gguf header is cut short at byte {self.position}, or longer than 1 GiB")
