"""Prefix: the KV of a sequence's first tokens, read back as verified tensors, in any part and any layout.

A block holds whole layers, and a layer holds its heads one after the other. So a layer, a range of heads or a range of
tokens reads only the frames that it lies in. `bytes_read` counts them. What to read is worked out in `prefix_part`.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

from ...formats.catalog import Named
from ...formats.errors import FormatError
from ...formats.kv_layout import Slot, array_shapes, has_pages, parse_slot, scatter_block, slot_name
from ...formats.kv_shape import Heads, KvShape
from ...formats.manifest import BlobName
from ...formats.tensor import TensorSpan, data_bytes
from ..artifacts.artifact import Artifact
from ..artifacts.tensors import aligned, tensor_from
from ..disk import Out, make_buffer
from ..errors import BadInput, Corrupt, NotFound
from ..segments.blobs import BlobReader, Piece, ReadParts
from ..workers import ThreadBuffers, run_all
from .arrays import BlockPart, parts_of, word_of
from .prefix_part import BlockRead, PrefixPart, TokenRun, block_reads, runs_of

if TYPE_CHECKING:
    import torch

    from ...formats.kv_layout import Array


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """The blocks of a prefix: how many tokens each has, and what all have in common.

    `find` returns the blocks. It is called once, at the first read. Messages of errors begin with `where`.
    """

    where: str
    id: str
    shape: KvShape | None
    tokens: Sequence[int]
    find: Callable[[], Sequence[Named | None]]
    layout: str = "NHD"
    page_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Arrays side by side in one buffer, and the span of each."""

    buffer: memoryview
    spans: tuple[TensorSpan, ...]

    def tensors(self) -> "dict[str, torch.Tensor]":
        return {span.name: tensor_from(self.buffer[span.place], span) for span in self.spans}


def layout_of(identity: Mapping[str, str]) -> tuple[str, int | None]:
    """Return the layout in which KV of an identity was put, and the tokens of a page, or None without pages."""
    return identity.get("layout", "NHD"), int(identity["page_tokens"]) if "page_tokens" in identity else None


class Prefix:
    """The longest stored prefix of a sequence, or a whole stored one. Nothing is read until asked for."""

    def __init__(self, parts: ReadParts, stored: StoredBlocks) -> None:
        self.id, self.shape, self.layout = stored.id, stored.shape, stored.layout
        self.blocks_count = len(stored.tokens)
        self._stored = stored
        self._starts = list(accumulate(stored.tokens, initial=0))
        self.tokens_count = self._starts[-1]
        self.bytes_read = 0  # sealed bytes read through this object so far
        hint = "put the KV again, or compute it anew: that heals it"
        self._reader = BlobReader(parts, stored.where, lambda: True, hint)

    def __bool__(self) -> bool:
        return self.tokens_count > 0

    @cached_property
    def _blocks(self) -> list[Named]:
        blocks = [block for block in self._stored.find() if block is not None]
        if len(blocks) < self.blocks_count:
            raise NotFound(self._stored.where, "was removed while it was read")
        if any(len(block.blobs) != len(self._parts_of(block.tokens)) for block in blocks):
            raise Corrupt("prefix", "a block has another number of blobs than its shape calls for")
        return blocks

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(number for number, _ in self.shape.layers) if self.shape else ()

    @property
    def page_tokens(self) -> int | None:
        """Tokens of a page, in the layout that was put."""
        return self.page_of(self.layout)

    def page_of(self, layout: str) -> int | None:
        """Return the tokens of a page as the identity says, or None for a layout without pages."""
        try:
            return self._stored.page_tokens if has_pages(layout) else None
        except FormatError as error:
            raise BadInput("layout", str(error)) from None

    def tensors(
        self,
        *,
        layers: Collection[int] | None = None,
        heads: Heads = range,
        positions: tuple[int, int] | None = None,
        layout: str | None = None,
        page_tokens: int | None = None,
    ) -> "dict[str, torch.Tensor]":
        """Return verified tensors `layers.{i}.key` and `.value` in host memory, in the layout that was put or another.

        `heads` takes the count of heads and returns the range that is wanted. For the heads of one rank, give
        `functools.partial(heads_of, rank, world)`. Raises BadInput for what the prefix doesn't have, Corrupt if a blob
        is bad, NotFound if the prefix was removed meanwhile.
        """
        first, end = positions or (0, self.tokens_count)
        if not 0 <= first < end <= self.tokens_count:
            raise BadInput(f"positions {first}:{end}", f"the prefix has {self.tokens_count} tokens")
        return self.load(PrefixPart([TokenRun(first, end, 0)], layers, heads, layout, page_tokens)).tensors()

    def select(
        self,
        positions: Sequence[int],
        *,
        layers: Collection[int] | None = None,
        heads: Heads = range,
        layout: str | None = None,
    ) -> "dict[str, torch.Tensor]":
        """Return the KV of chosen token positions alone, in ascending order. Only the blocks they lie in are read."""
        chosen = sorted(set(positions))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < self.tokens_count:
            raise BadInput("positions", f"are none or not all of 0 to {self.tokens_count - 1}")
        return self.load(PrefixPart(runs_of(chosen), layers, heads, layout)).tensors()

    def stream(
        self, *, layers: Sequence[int] | None = None, heads: Heads = range, layout: str | None = None, ahead: int = 2
    ) -> "Generator[tuple[int, dict[str, torch.Tensor]], None, None]":
        """Yield layers in order, each as soon as it is read, while the next `ahead` are being read.

        If the caller leaves early, reading stops after the layer that is being read.
        """
        for number, loaded in self.stream_loaded(layers, heads, (0, self.tokens_count), layout, ahead=ahead):
            yield number, loaded.tensors()

    def stream_loaded(
        self, layers: Sequence[int] | None, heads: Heads, positions: tuple[int, int], layout: str | None, *, ahead: int
    ) -> Iterator[tuple[int, Loaded]]:
        """Yield layers as `stream` does, as bytes."""
        from concurrent.futures import ThreadPoolExecutor

        run = TokenRun(*positions, 0)
        numbers = self.layers if layers is None else layers
        parts = [PrefixPart([run], [number], heads, layout) for number in numbers]
        pool = ThreadPoolExecutor(1)
        try:
            running = [pool.submit(self.load, part) for part in parts[: ahead + 1]]
            for number, following in zip(numbers, [*parts[ahead + 1 :], *[None] * len(running)], strict=True):
                yield number, running.pop(0).result()
                if following is not None:
                    running.append(pool.submit(self.load, following))
        finally:  # a caller that leaves early waits for the layer that is being read, and for no other
            pool.shutdown(cancel_futures=True)

    def load(self, part: PrefixPart, into: memoryview | None = None) -> Loaded:
        """Read a part of the prefix into one buffer, a new one or `into`, on every core."""
        shape, layout = self._narrowed(part.layers, part.heads), part.layout or self.layout
        spans = self.spans(shape, part.tokens_count, layout, part.page_tokens or self.page_of(layout))
        loaded = Loaded(memoryview(make_buffer(data_bytes(spans))) if into is None else into, spans)
        arrays, blocks = _arrays_in(loaded, shape), self._blocks
        buffers = ThreadBuffers()

        @cache  # every block has the same answer
        def chosen_of(stored: BlockPart, layers: tuple[int, ...]) -> tuple[KvShape, list[tuple[int, int]]]:
            narrow = stored.shape.narrow(layers=layers, heads=part.heads)
            return narrow, stored.shape.runs(stored.tokens, layers=layers, heads=part.heads)

        def perform(read: BlockRead) -> int:
            tokens, start = read.part.tokens, self._starts[read.block]
            narrow, extents = chosen_of(read.part, read.layers)
            scratch = buffers.take(narrow.block_bytes(tokens))
            blob = BlobName(blocks[read.block].blobs[read.index], read.part.length)
            read_bytes = self._reader.read_here(_side_by_side(blob, extents, scratch))
            for run in part.runs:
                take, to = run.within(start, tokens)
                if take:
                    scatter_block(scratch, narrow, layout, tokens, arrays, to, take=take)
            return read_bytes

        assert self.shape is not None
        self.bytes_read += sum(run_all(perform, block_reads(self.shape, self._starts, part)))
        return loaded

    def fill(self, at: int, out: Out) -> None:
        """Fill `out` with the bytes of the blocks as they are stored, from byte `at` on, past the page cache."""
        pieces, start = [], 0
        for block in self._blocks:
            for digest, part in zip(block.blobs, self._parts_of(block.tokens), strict=True):
                first, last = max(at - start, 0), min(at + len(out) - start, part.length)
                if first < last:
                    to = start + first - at
                    pieces.append(Piece(BlobName(digest, part.length), first, last, out[to : to + last - first]))
                start += part.length
        self.bytes_read += self._reader.read(pieces, cold=True)

    def spans(self, shape: KvShape, tokens: int, layout: str, page: int | None) -> tuple[TensorSpan, ...]:
        """Return where the arrays of so many tokens go in a buffer."""
        try:
            wanted = array_shapes(shape, layout, tokens, page=page)
        except FormatError as error:
            raise BadInput("layout", str(error)) from None
        spans, at = [], 0
        for slot, lengths in wanted.items():
            length = prod(lengths) * shape.element_bytes
            spans.append(TensorSpan(slot_name(slot), shape.dtype, lengths, at, length))
            at += aligned(length)
        return tuple(spans)

    def _narrowed(self, layers: Collection[int] | None, heads: Heads) -> KvShape:
        if self.shape is None:
            raise BadInput("prefix", "nothing of it is stored")
        try:
            return self.shape.narrow(layers=layers, heads=heads)
        except FormatError as error:
            raise BadInput("prefix", str(error)) from None

    def _parts_of(self, tokens: int) -> tuple[BlockPart, ...]:
        assert self.shape is not None
        return parts_of(self.shape, 0, tokens)


def _arrays_in(loaded: Loaded, shape: KvShape) -> "dict[Slot, Array]":
    """Return views of a buffer as arrays, by layer and side."""
    import numpy as np

    word = word_of(8 * shape.element_bytes)
    return {
        parse_slot(span.name): np.frombuffer(loaded.buffer[span.place], word).reshape(span.shape)
        for span in loaded.spans
    }


def _side_by_side(blob: BlobName, extents: Sequence[tuple[int, int]], out: memoryview) -> list[Piece]:
    """Return the pieces of a blob from start to stop of each extent, one after the other in `out`."""
    pieces, at = [], 0
    for start, stop in extents:
        pieces.append(Piece(blob, start, stop, out[at : at + stop - start]))
        at += stop - start
    return pieces


def prefix_of(artifact: Artifact) -> Prefix:
    """Return the whole KV of a stored version; raise BadInput if the version is not KV."""
    manifest, summary = artifact.manifest, artifact.summary
    where = f"{summary.name}@{summary.version}"
    if manifest.shape is None:
        raise BadInput(where, f"is {manifest.kind}, not kv")
    blocks = [named for _, named in manifest.needs().claims if named.tokens]
    tokens = [block.tokens for block in blocks]
    layout = layout_of(dict(manifest.identity))
    return Prefix(artifact.parts, StoredBlocks(where, summary.id, manifest.shape, tokens, lambda: blocks, *layout))
