"""What to read of a prefix: runs of tokens, layers and heads, as reads of some layers of one block each.

Nothing is read here: `prefix` does that.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...formats.kv_shape import Heads, KvShape
from .arrays import BlockPart, parts_of

_READ_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Tokens [start, stop) of a prefix, which go to token `to` of what is read."""

    start: int
    stop: int
    to: int

    def within(self, first_token: int, tokens_count: int) -> tuple[range, int]:
        """Return which tokens of a block are in this run, counted in the block, and where the first of them goes."""
        first = max(self.start - first_token, 0)
        stop = min(self.stop - first_token, tokens_count)
        return range(first, stop), self.to + first_token + first - self.start


@dataclass(frozen=True, slots=True)
class PrefixPart:
    """What is read of a prefix, and the layout in which it is returned; None is that in which it was put."""

    runs: Sequence[TokenRun]
    layers: Collection[int] | None = None  # None: all
    heads: Heads = range
    layout: str | None = None
    page_tokens: int | None = None

    @property
    def tokens_count(self) -> int:
        last = self.runs[-1]
        return last.to + last.stop - last.start


@dataclass(frozen=True, slots=True)
class BlockRead:
    """What one thread reads at a time: some layers of part `index` of block `block`."""

    block: int
    index: int
    part: BlockPart
    layers: tuple[int, ...]


def runs_of(positions: Sequence[int]) -> list[TokenRun]:
    """Return ascending token positions as runs, whose tokens follow each other in what is read."""
    cuts = [0, *(n for n, (a, b) in enumerate(pairwise(positions), 1) if b != a + 1), len(positions)]
    return [TokenRun(positions[a], positions[b - 1] + 1, a) for a, b in pairwise(cuts)]


def block_reads(shape: KvShape, starts: Sequence[int], part: PrefixPart) -> Iterator[BlockRead]:
    """Yield the reads that bring a part of a prefix; `starts` are the first tokens of its blocks, then its end."""
    wanted = None if part.layers is None else frozenset(part.layers)
    for block, (start, stop) in enumerate(pairwise(starts)):
        if not any(run.start < stop and run.stop > start for run in part.runs):
            continue
        for index, stored in enumerate(parts_of(shape, 0, stop - start)):
            layers = [number for number, _ in stored.shape.layers if wanted is None or number in wanted]
            count = max(_READ_BYTES * len(stored.shape.layers) // stored.length, 1)
            for at in range(0, len(layers), count):
                yield BlockRead(block, index, stored, tuple(layers[at : at + count]))
