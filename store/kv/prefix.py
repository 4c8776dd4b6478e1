"""Prefix: the KV of a sequence's first tokens, read back as verified tensors in whatever part and layout is asked for.

Blocks hold whole layers, layers hold heads one after the other: a layer, a range of heads or a range of tokens reads
only the frames that it lies in (`bytes_read`).
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise
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

if TYPE_CHECKING:
    import torch

    from ...formats.kv_layout import Array

_TASK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Tokens [start, stop) of a prefix, which go to token `to` of what is read."""

    start: int
    stop: int
    to: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Arrays side by side in one buffer, and the span of each."""

    buffer: memoryview
    spans: tuple[TensorSpan, ...]

    def tensors(self) -> "dict[str, torch.Tensor]":
        return {span.name: tensor_from(self.buffer[span.place], span) for span in self.spans}


def layout_of(identity: Mapping[str, str]) -> tuple[str, int | None]:
    """Return the layout that an identity says KV was put in, and the tokens of a page, where it has some."""
    return identity.get("layout", "NHD"), int(identity["page_tokens"]) if "page_tokens" in identity else None


class Prefix:
    """The longest stored prefix of a sequence, or a whole stored one. Nothing is read until asked for."""

    def __init__(
        self, parts: ReadParts, what: str, id_: str, shape: KvShape | None, tokens: Sequence[int],
        find: Callable[[], Sequence[Named | None]], *, layout: str = "NHD", page_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Stand for blocks of so many `tokens` each; `find` says what they are, and is asked at the first reading."""
        self.id, self.shape, self.layout = id_, shape, layout
        self._page_tokens = page_tokens
        self.blocks_count = len(tokens)
        self._starts = list(accumulate(tokens, initial=0))
        self.tokens_count = self._starts[-1]
        self.bytes_read = 0  # sealed bytes read through this object so far
        self._what, self._find = what, find
        self._reader = BlobReader(parts, what, lambda: True, "put the KV again, or compute it anew: that heals it")

    def __bool__(self) -> bool:
        return self.tokens_count > 0

    @cached_property
    def _blocks(self) -> list[Named]:
        found = [block for block in self._find() if block is not None]
        if len(found) < self.blocks_count:
            raise NotFound(self._what, "was removed while it was read")
        return found

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(number for number, _ in self.shape.layers) if self.shape else ()

    @property
    def page_tokens(self) -> int | None:
        """Tokens of a page, in the layout that was put."""
        return self.page_of(self.layout)

    def page_of(self, layout: str) -> int | None:
        """Return the tokens of a page that the identity says, None where a layout has no pages."""
        try:
            return self._page_tokens if has_pages(layout) else None
        except FormatError as error:
            raise BadInput("layout", str(error)) from None

    def tensors(
        self, *, layers: Collection[int] | None = None, heads: Heads = range, positions: tuple[int, int] | None = None,
        layout: str | None = None, page_tokens: int | None = None,
    ) -> "dict[str, torch.Tensor]":  # fmt: skip
        """Return verified tensors `layers.{i}.key` and `.value` in host memory, in the layout that was put or another.

        `heads` gives the wanted range of a count of heads (`functools.partial(heads_of, rank, world)` a rank's).
        Raises BadInput for what the prefix has not, Corrupt if a blob is bad, NotFound if it was removed meanwhile.
        """
        first, end = positions or (0, self.tokens_count)
        if not 0 <= first < end <= self.tokens_count:
            raise BadInput(f"positions {first}:{end}", f"the prefix has {self.tokens_count} tokens")
        return self.load([TokenRun(first, end, 0)], layers, heads, layout, page_tokens).tensors()

    def select(
        self, positions: Sequence[int], *, layers: Collection[int] | None = None, heads: Heads = range,
        layout: str | None = None,
    ) -> "dict[str, torch.Tensor]":  # fmt: skip
        """Return the KV of chosen token positions alone, in ascending order, reading only the blocks they lie in."""
        chosen = sorted(set(positions))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < self.tokens_count:
            raise BadInput("positions", f"are none or not all of 0 to {self.tokens_count - 1}")
        cuts = [0, *(n for n, (a, b) in enumerate(pairwise(chosen), 1) if b != a + 1), len(chosen)]
        runs = [TokenRun(chosen[a], chosen[b - 1] + 1, a) for a, b in pairwise(cuts)]
        return self.load(runs, layers, heads, layout, None).tensors()

    def stream(
        self, *, layers: Sequence[int] | None = None, heads: Heads = range, layout: str | None = None, ahead: int = 2
    ) -> "Generator[tuple[int, dict[str, torch.Tensor]], None, None]":
        """Yield layers in order, each as soon as it is there, while the next `ahead` are being read.

        Left early, it reads no further than the layer it is at.
        """
        for number, loaded in self.stream_loaded(layers, heads, (0, self.tokens_count), layout, ahead=ahead):
            yield number, loaded.tensors()

    def stream_loaded(
        self, layers: Sequence[int] | None, heads: Heads, positions: tuple[int, int], layout: str | None, *, ahead: int
    ) -> Iterator[tuple[int, Loaded]]:
        """Yield layers as `stream` does, as bytes."""
        wanted = self.layers if layers is None else tuple(layers)
        run = TokenRun(*positions, 0)
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(1)
        try:
            waiting = [(n, pool.submit(self.load, [run], [n], heads, layout, None)) for n in wanted[: ahead + 1]]
            for next_ in (*wanted[ahead + 1 :], *[None] * len(waiting)):
                number, future = waiting.pop(0)
                yield number, future.result()
                if next_ is not None:
                    waiting.append((next_, pool.submit(self.load, [run], [next_], heads, layout, None)))
        finally:  # whoever leaves early waits for the layer that is being read, and for no other
            pool.shutdown(cancel_futures=True)

    def load(
        self, runs: Sequence[TokenRun], layers: Collection[int] | None, heads: Heads, layout: str | None,
        page_tokens: int | None, into: memoryview | None = None,
    ) -> Loaded:  # fmt: skip
        """Read runs of tokens into one buffer, of its own or `into`, on every core."""
        layout, shape = layout or self.layout, self._narrowed(layers, heads)
        loaded, arrays = self._prepare(shape, runs, layout, page_tokens or self.page_of(layout), into)
        wanted = None if layers is None else frozenset(layers)
        buffers = ThreadBuffers()

        @cache  # what to read of a part, which is the same of every block
        def cut(tokens: int, index: int, chosen: tuple[int, ...]) -> tuple[KvShape, list[tuple[int, int]]]:
            whole = self._parts_of(tokens)[index].shape
            return whole.narrow(layers=chosen, heads=heads), whole.runs(tokens, layers=chosen, heads=heads)

        def perform(task: tuple[int, int, BlockPart, tuple[int, ...]]) -> int:
            number, index, part, chosen = task
            blob = BlobName(self._blocks[number].blobs[index], part.length)
            narrow, extents = cut(part.tokens, index, chosen)
            length = narrow.block_bytes(part.tokens)
            scratch = buffers.take(length)
            pieces, at = [], 0
            for start, stop in extents:
                pieces.append(Piece(blob, start, stop, scratch[at : at + stop - start]))
                at += stop - start
            read = self._reader.read_here(pieces)
            for run in runs:
                first, end = max(run.start - self._starts[number], 0), min(run.stop - self._starts[number], part.tokens)
                if first < end:
                    to = run.to + self._starts[number] + first - run.start
                    scatter_block(scratch, narrow, layout, part.tokens, arrays, to, take=range(first, end))
            return read

        self.bytes_read += sum(run_all(perform, self._tasks(runs, wanted)))
        return loaded

    def fill(self, at: int, out: Out) -> None:
        """Fill `out` with the bytes of its blocks as they are stored, from byte `at` on, past the page cache."""
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

    def _prepare(
        self, shape: KvShape, runs: Sequence[TokenRun], layout: str, page: int | None, into: memoryview | None
    ) -> "tuple[Loaded, dict[Slot, Array]]":
        """Return the buffer that is to be filled, and its arrays."""
        import numpy as np

        spans = self.spans(shape, runs[-1].to + runs[-1].stop - runs[-1].start, layout, page)
        loaded = Loaded(memoryview(make_buffer(data_bytes(spans))) if into is None else into, spans)
        word = word_of(8 * shape.element_bytes)
        arrays = {
            parse_slot(span.name): np.frombuffer(loaded.buffer[span.place], word).reshape(span.shape) for span in spans
        }
        return loaded, arrays

    def _tasks(
        self, runs: Sequence[TokenRun], wanted: frozenset[int] | None
    ) -> Iterator[tuple[int, int, BlockPart, tuple[int, ...]]]:
        """Yield block, number of the part in it, the part, and some layers of it: what one thread reads at a time."""
        for number, block in enumerate(self._blocks):
            start, stop = self._starts[number], self._starts[number + 1]
            if not any(run.start < stop and run.stop > start for run in runs):
                continue
            parts = self._parts_of(block.tokens)
            if len(parts) != len(block.blobs):
                raise Corrupt("prefix", "a block has another number of blobs than its shape calls for")
            for index, part in enumerate(parts):
                layers = [n for n, _ in part.shape.layers if wanted is None or n in wanted]
                step = max(_TASK_BYTES * len(part.shape.layers) // part.length, 1)
                for at in range(0, len(layers), step):
                    yield number, index, part, tuple(layers[at : at + step])

    def _parts_of(self, tokens: int) -> tuple[BlockPart, ...]:
        assert self.shape is not None
        return parts_of(self.shape, 0, tokens)


def prefix_of(artifact: Artifact) -> Prefix:
    """Return the whole KV that a stored version is; raise BadInput if it is none."""
    manifest, summary = artifact.manifest, artifact.summary
    if manifest.shape is None:
        raise BadInput(f"{summary.name}@{summary.version}", f"is {manifest.kind}, not kv")
    blocks = [named for _, named in manifest.needs().claims if named.tokens]
    layout, page_tokens = layout_of(dict(manifest.identity))
    return Prefix(
        artifact.parts, f"{summary.name}@{summary.version}", summary.id, manifest.shape,
        [block.tokens for block in blocks], lambda: blocks, layout=layout, page_tokens=page_tokens,
    )  # fmt: skip
