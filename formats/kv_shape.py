"""KV shape: what a model keeps of each token, and where each layer, side and head lies in a block of the store.

Invariant: a block depends on its KV and shape alone, not on the layout or parallelism it came from.

Block of T tokens, no header, no padding:
    for each layer, ascending
        key, then value     [heads, T, dim] row-major; no value where the layer keeps only a latent, as MLA does
so one layer is one run of bytes, and so is one head range of one side. What a rank holds is a block of its own: the
bytes of `KvShape.runs`, one run after the other, are a block of `KvShape.narrow` for the same layers and heads.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

from .errors import FormatError
from .tensor import DTYPE_BITS

LAYERS_MAX = 4096
EXTENT_MAX = 65536
BLOCK_MAX_BYTES = 4 << 30

Heads = Callable[[int], range]  # the count of heads of a side -> the wanted heads; `range` itself wants all


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps of a token. If it keeps no value, value_heads and value_dim are both 0."""

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int

    def __post_init__(self) -> None:
        extents = list(astuple(self))
        if any(not 0 <= extent <= EXTENT_MAX for extent in extents):
            raise FormatError(f"kv layer {extents} has an extent outside 0 to {EXTENT_MAX}")
        if not self.key_heads or not self.key_dim or bool(self.value_heads) != bool(self.value_dim):
            raise FormatError(
                f"kv layer {extents} has an extent of 0, wanted some for the key and both or none for value"
            )


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a model keeps of a token. The dtype has its name in safetensors; layer numbers ascend."""

    dtype: str
    layers: tuple[tuple[int, LayerShape], ...]

    def __post_init__(self) -> None:
        if DTYPE_BITS.get(self.dtype, 1) % 8:
            raise FormatError(f"kv dtype {self.dtype[:80]!r} is not known or does not fill whole bytes")
        numbers = [-1, *(number for number, _ in self.layers), LAYERS_MAX]
        if len(numbers) == 2 or any(first >= second for first, second in pairwise(numbers)):
            raise FormatError(f"kv layer numbers are none or do not ascend from 0 to {LAYERS_MAX - 1}")
        self.block_bytes(1)

    @property
    def element_bytes(self) -> int:
        return DTYPE_BITS[self.dtype] // 8

    @property
    def token_bytes(self) -> int:
        elements = sum(x.key_heads * x.key_dim + x.value_heads * x.value_dim for _, x in self.layers)
        return elements * self.element_bytes

    def block_bytes(self, tokens: int) -> int:
        """Return the bytes of a block; raise FormatError if it has no tokens or exceeds BLOCK_MAX_BYTES."""
        token_bytes = self.token_bytes
        if not 1 <= tokens <= BLOCK_MAX_BYTES // token_bytes:
            raise FormatError(f"kv block of {tokens} tokens of {token_bytes} bytes is empty or over {BLOCK_MAX_BYTES}")
        return tokens * token_bytes

    def places(self, tokens: int) -> Iterator[tuple[int, str, int, int, int]]:
        """Yield layer number, side, heads, dim and the first byte of each side, in the order of a block."""
        self.block_bytes(tokens)
        at = 0
        for number, layer in self.layers:
            yield number, "key", layer.key_heads, layer.key_dim, at
            at += layer.key_heads * layer.key_dim * tokens * self.element_bytes
            if layer.value_heads:
                yield number, "value", layer.value_heads, layer.value_dim, at
                at += layer.value_heads * layer.value_dim * tokens * self.element_bytes

    def extent(self, layer: int, side: str, tokens: int, heads: range | None = None) -> tuple[int, int]:
        """Return where one side of one layer, or some heads of it, lies in a block: start and stop in bytes."""
        for number, its_side, count, dim, at in self.places(tokens):
            if (number, its_side) == (layer, side):
                head_bytes = dim * tokens * self.element_bytes
                chosen = range(count) if heads is None else _check_heads(heads, count)
                return at + chosen.start * head_bytes, at + chosen.stop * head_bytes
        raise FormatError(f"kv layer {layer} has no {side} in this shape")

    def runs(
        self, tokens: int, *, layers: Collection[int] | None = None, heads: Heads = range
    ) -> list[tuple[int, int]]:
        """Return start and stop of the runs of bytes with these layers and heads of a block. Neighbours are joined."""
        wanted = self._check_layers(layers)
        extents: list[tuple[int, int]] = []
        for number, _, count, dim, at in self.places(tokens):
            if number in wanted:
                chosen, head_bytes = _check_heads(heads(count), count), dim * tokens * self.element_bytes
                start, stop = at + chosen.start * head_bytes, at + chosen.stop * head_bytes
                if extents and extents[-1][1] == start:
                    start = extents.pop()[0]
                extents.append((start, stop))
        return extents

    def narrow(self, *, layers: Collection[int] | None = None, heads: Heads = range) -> "KvShape":
        """Return the shape of only these layers and heads, as a pipeline stage or a tensor-parallel rank holds them."""
        wanted = self._check_layers(layers)
        kept = []
        for number, layer in self.layers:
            if number in wanted:
                keys, values = (
                    len(_check_heads(heads(count), count)) if count else 0
                    for count in (layer.key_heads, layer.value_heads)
                )
                kept.append((number, LayerShape(keys, layer.key_dim, values, layer.value_dim)))
        return KvShape(self.dtype, tuple(kept))

    def fields(self) -> dict[str, Any]:
        """Return the canonical JSON form. Equal neighbours are one [first, count, key heads, dim, value heads, dim]."""
        packed: list[list[int]] = []
        for number, layer in self.layers:
            extents = list(astuple(layer))
            if packed and number == packed[-1][0] + packed[-1][1] and extents == packed[-1][2:]:
                packed[-1][1] += 1
            else:
                packed.append([number, 1, *extents])
        return {"dtype": self.dtype, "layers": packed}

    def _check_layers(self, wanted: Collection[int] | None) -> Collection[int]:
        numbers = {number for number, _ in self.layers}
        if wanted is not None and not numbers.issuperset(wanted):
            raise FormatError(f"kv layers {sorted(set(wanted) - numbers)[:8]} are not in this shape")
        return numbers if wanted is None else wanted


def parse_shape(fields: object) -> KvShape:
    """Return the shape that `KvShape.fields` wrote; raise FormatError for anything that it would not write."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "layers"}:
        raise FormatError("kv shape is not an object of exactly dtype and layers")
    if not isinstance(fields["dtype"], str) or not isinstance(fields["layers"], list):
        raise FormatError("kv shape is not a dtype as text and a list of layers")
    layers: list[tuple[int, LayerShape]] = []
    for run in fields["layers"]:
        if not isinstance(run, list) or len(run) != 6 or any(type(number) is not int for number in run):
            raise FormatError("kv shape has layers that are not lists of 6 whole numbers")
        first, count = run[:2]
        # This bounds the layers before they are made: LAYERS_MAX in all runs together.
        if count < 1 or not len(layers) <= first <= LAYERS_MAX - count:
            raise FormatError(f"kv shape has {count} layers from {first} on, wanted them below {LAYERS_MAX}, ascending")
        layer = LayerShape(run[2], run[3], run[4], run[5])
        layers += [(number, layer) for number in range(first, first + count)]
    shape = KvShape(fields["dtype"], tuple(layers))
    if shape.fields() != fields:
        raise FormatError("kv shape has equal neighbouring layers that are not packed together")
    return shape


def heads_of(rank: int, world: int, kv_heads: int) -> range:
    """Return the heads that one rank of tensor parallelism holds. If ranks outnumber heads, neighbours hold the same.

    Raises FormatError if neither number divides the other. Engines refuse that too.
    """
    if not 0 <= rank < world:
        raise FormatError(f"rank {rank} is not one of {world}")
    if kv_heads % world == 0:
        share = kv_heads // world
        return range(rank * share, (rank + 1) * share)
    if world % kv_heads:
        raise FormatError(f"{kv_heads} kv heads and {world} ranks do not divide each other")
    head = rank * kv_heads // world
    return range(head, head + 1)


def _check_heads(chosen: range, count: int) -> range:
    if chosen.step != 1 or not 0 <= chosen.start < chosen.stop <= count:
        raise FormatError(f"heads {chosen.start}:{chosen.stop} are not a range of {count} heads")
    return chosen
