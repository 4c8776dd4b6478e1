"""Arrays: the KV that a user hands to `kv put`, from a file or from memory, and how it is cut into prefix blocks."""

import contextlib
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...formats.errors import FormatError
from ...formats.kv_layout import Slot, gather_block, infer_shape, page_of, parse_slot
from ...formats.kv_shape import KvShape
from ...formats.readers.safetensors import read_table
from ...formats.tensor import BLOB_MAX_BYTES, DTYPE_BITS
from ..artifacts.cuts import Cut
from ..artifacts.sources import FileSource
from ..errors import BadInput
from ..workers import ThreadBuffers

if TYPE_CHECKING:
    from ...formats.kv_layout import Array

# Frames are about so long. Shorter frames cost a third of the speed; longer ones read bytes that nobody asked for.
GRAIN_BYTES = 256 << 10
_FRAME_MAX_BYTES = 4 << 20
_PART_BYTES = 32 << 20
# A sequence has thousands of blocks, but they have one shape and at most two lengths.
_of_alike = lru_cache(maxsize=256)


@dataclass(frozen=True, slots=True)
class KvArrays:
    """The KV of one sequence: dense arrays by layer and side, their layout, and the shape that follows from them."""

    arrays: "Mapping[Slot, Array]"
    shape: KvShape
    layout: str
    source: FileSource | None = None  # the file they lie in, which must not change while it is stored

    @property
    def page(self) -> int | None:
        """Tokens of a page, or None for a layout without pages."""
        return page_of({slot: array.shape for slot, array in self.arrays.items()}, self.layout)


@dataclass(frozen=True, slots=True)
class BlockPart:
    """Some layers of one block, which become one blob."""

    first_token: int
    tokens: int
    shape: KvShape

    @property
    def length(self) -> int:
        return self.shape.block_bytes(self.tokens)


def arrays_from_path(path: Path, layout: str, tokens_count: int) -> KvArrays:
    """Return the KV in a safetensors file, mapped.

    Raises BadInput if the file holds no KV, or not the KV of so many tokens.
    """
    import numpy as np

    source = FileSource(path)
    try:
        spans = read_table(source)
        if not spans:
            raise FormatError("holds no tensors")
        with source.opened() as fd:
            whole = np.frombuffer(mmap.mmap(fd, source.size, prot=mmap.PROT_READ), np.uint8)
        arrays = {}
        for span in spans:
            word = word_of(DTYPE_BITS[span.dtype])
            arrays[parse_slot(span.name)] = whole[span.place].view(word).reshape(span.shape)
        dtypes = {span.dtype for span in spans}
        if len(dtypes) > 1:
            raise FormatError(f"holds {' and '.join(sorted(dtypes))}, wanted one dtype")
        shape = infer_shape({slot: array.shape for slot, array in arrays.items()}, layout, dtypes.pop(), tokens_count)
    except (FormatError, ValueError) as error:
        raise BadInput(str(path), str(error)) from None
    return KvArrays(arrays, shape, layout, source)


def arrays_from_tensors(tensors: Mapping[str, Any], layout: str, tokens_count: int) -> KvArrays:
    """Return KV in memory, from torch tensors or numpy arrays by name.

    Raises BadInput if they are no KV, not dense, or not of so many tokens.
    """
    import numpy as np

    from ..artifacts.tensors import dtype_name

    arrays: dict[Slot, Array] = {}
    dtypes = set()
    try:
        for name, tensor in tensors.items():
            if isinstance(tensor, np.ndarray):
                if not tensor.flags.c_contiguous:
                    raise FormatError(f"tensor {name} is not contiguous")
                dtypes.add(_numpy_name(tensor))
                arrays[parse_slot(name)] = tensor
                continue
            import torch

            if not isinstance(tensor, torch.Tensor):
                raise FormatError(f"tensor {name} is a {type(tensor).__name__}, wanted a tensor or a numpy array")
            if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.is_contiguous():
                raise FormatError(f"tensor {name} is not contiguous in host memory")
            dtypes.add(dtype_name(tensor))
            word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
            if word is None:
                raise FormatError(f"tensor {name} is {tensor.dtype}, wanted elements of at most 8 bytes")
            arrays[parse_slot(name)] = tensor.detach().view(word).numpy()
        if len(dtypes) != 1:
            raise FormatError(f"holds {' and '.join(sorted(dtypes)) or 'nothing'}, wanted one dtype")
        shape = infer_shape({slot: array.shape for slot, array in arrays.items()}, layout, dtypes.pop(), tokens_count)
    except FormatError as error:
        raise BadInput("kv", str(error)) from None
    return KvArrays(arrays, shape, layout)


@_of_alike
def parts_of(shape: KvShape, first_token: int, tokens: int) -> tuple[BlockPart, ...]:
    """Return a block as runs of whole layers of about 32 MiB; raise BadInput if one layer is too long for a blob."""
    parts: list[BlockPart] = []
    waiting: list[int] = []
    size = 0
    for number, _ in shape.layers:
        length = shape.narrow(layers=[number]).block_bytes(tokens)
        if length > BLOB_MAX_BYTES:
            why = f"a layer of {tokens} tokens takes {length} bytes, at most {BLOB_MAX_BYTES} are allowed"
            raise BadInput("kv", why, hint="use blocks of fewer tokens")
        if waiting and size + length > _PART_BYTES:
            parts.append(BlockPart(first_token, tokens, shape.narrow(layers=waiting)))
            waiting, size = [], 0
        waiting.append(number)
        size += length
    return *parts, BlockPart(first_token, tokens, shape.narrow(layers=waiting))


@_of_alike
def cut_of(part: BlockPart) -> Cut:
    """Return how a part is cut into frames: each has the fewest whole heads or layers that reach GRAIN_BYTES."""
    number, layer = part.shape.layers[0]
    head_bytes = layer.key_dim * part.tokens * part.shape.element_bytes
    side_bytes = layer.key_heads * head_bytes
    layer_bytes = part.shape.narrow(layers=[number]).block_bytes(part.tokens)
    if side_bytes >= GRAIN_BYTES:
        heads = next(
            n for n in range(1, layer.key_heads + 1) if not layer.key_heads % n and n * head_bytes >= GRAIN_BYTES
        )
        frame = heads * head_bytes
    else:
        frame = layer_bytes * -(-GRAIN_BYTES // layer_bytes)
    return Cut(part.length, None, frame if frame <= _FRAME_MAX_BYTES else 1 << 20)


class KvSource:
    """Parts of blocks one after the other, read like a file. The bytes of a part are gathered when it is read."""

    def __init__(self, kv: KvArrays, parts: list[BlockPart]) -> None:
        self._kv, self._parts = kv, parts
        self._ends = list(accumulate(part.length for part in parts))
        self.size = self._ends[-1] if parts else 0
        self._buffers = ThreadBuffers()

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Gather whole parts into `out`. A part must begin at `offset`."""
        number = bisect_right(self._ends, offset)
        while out:
            part = self._parts[number]
            arrays, layout = self._kv.arrays, self._kv.layout
            gather_block(arrays, part.shape, layout, part.first_token, part.tokens, out[: part.length])
            out, number = out[part.length :], number + 1

    @contextlib.contextmanager
    def mapped(self, offset: int, length: int) -> Iterator[memoryview]:
        plain = self._buffers.take(length)
        self.read_into(offset, plain)
        yield plain

    def check_unchanged(self) -> None:
        """Raise StorageFailed if the arrays lie in a file that has changed."""
        if self._kv.source:
            self._kv.source.check_unchanged()


def word_of(bits: int) -> str:
    """Return numpy's name of an element of so many bits, as bytes or an unsigned number: it is only copied."""
    if bits % 8:
        raise FormatError("holds elements that do not fill whole bytes")
    return f"u{bits // 8}" if bits <= 64 else f"V{bits // 8}"


def _numpy_name(array: "Array") -> str:
    """Return safetensors' name of an array's dtype; raise FormatError for one that it doesn't have."""
    word = array.dtype.str.lstrip("<|")
    if word not in ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"):
        raise FormatError(f"dtype {array.dtype} is not known, wanted one that safetensors has")
    return f"{word[0].upper()}{8 * int(word[1])}"
