"""Tensors as byte ranges of files: names, dtypes, shapes, and the rule that cuts them into blobs.

Invariant: the cut depends on dtype and shape alone, so equal tensors give equal blobs
whatever file, shard or offset they came from.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Protocol

from .errors import FormatError

BLOB_MAX_BYTES = 64 << 20
TENSORS_MAX_COUNT = 4_000_000
NAME_MAX_BYTES = 4096
RANK_MAX = 64

# Bits per element, by the names that safetensors uses (github.com/huggingface/safetensors, Dtype).
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "C128": 128,
}  # fmt: skip


class Source(Protocol):
    """Random access to the bytes of one file; the seam through which readers see what they parse."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise FormatError if the file is shorter."""
        ...


@dataclass(frozen=True, slots=True)
class UnreadTensor:
    """A tensor whose bytes in its file are not its values, and why not."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor as `length` bytes from `start` of a file, row-major unless `stride` (elements) says otherwise."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int
    stride: tuple[int, ...] | None = None

    @property
    def place(self) -> slice:
        """Where it lies: its bytes are `data[span.place]` of what holds it."""
        return slice(self.start, self.start + self.length)


def data_bytes(spans: Iterable[TensorSpan]) -> int:
    """Return how many bytes hold all of these tensors."""
    return max((span.place.stop for span in spans), default=0)


def dense_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a dense tensor; raise FormatError for a dtype or shape that has none."""
    if dtype not in DTYPE_BITS:
        raise FormatError(f"dtype {dtype!r} is not known")
    if any(extent < 0 for extent in shape):
        raise FormatError(f"shape {list(shape)} has a negative extent")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise FormatError(f"{dtype} {list(shape)} does not fill whole bytes")
    return bits // 8


def cut_span(span: TensorSpan) -> Iterator[int]:
    """Yield the lengths in bytes of the blobs that one tensor is stored as.

    Up to 64 MiB a tensor is one blob; a larger one is cut at first-axis boundaries, as many whole rows
    a blob as fit, so that a range of rows reads only the blobs it touches. A row above 64 MiB is cut plainly.
    """
    left = span.length
    rows = span.shape[0] if span.shape and span.stride is None else 1
    row_bytes = left // rows if rows and left % rows == 0 else left
    step = BLOB_MAX_BYTES // row_bytes * row_bytes if 0 < row_bytes <= BLOB_MAX_BYTES else BLOB_MAX_BYTES
    while left > 0:
        yield min(step, left)
        left -= step
