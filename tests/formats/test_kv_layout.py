"""KV layouts: every layout to the canonical block and back, against a reference that moves one element at a time.

The reference knows no strides: it holds each element by layer, side, head, token and place, and puts it where a table
written out by hand says. Bytes are random, so all the patterns that floats give a meaning to occur.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.kv_layout import (
    LAYOUTS,
    Slot,
    array_shapes,
    gather_block,
    infer_shape,
    parse_slot,
    scatter_block,
    slot_name,
)
from arstore.formats.kv_shape import (
    LAYERS_MAX,
    Heads,
    KvShape,
    LayerShape,
    heads_of,
)

Arrays = dict[Slot, npt.NDArray[Any]]
Model = dict[tuple[int, str, int, int], list[bytes]]  # layer, side, head, token -> the elements of one row

DTYPES = {"F8_E4M3": "u1", "BF16": "<u2", "F32": "<u4", "F64": "<u8"}

# Where token t of head h of side s (0 key, 1 value) lies, pages having P tokens; the dim comes last in all of them.
PLACES: dict[str, Callable[[int, int, int, int], tuple[int, ...]]] = {
    "NHD": lambda s, t, h, P: (t, h),
    "HND": lambda s, t, h, P: (h, t),
    "packed": lambda s, t, h, P: (s, t, h),
    "paged-NHD": lambda s, t, h, P: (t // P, t % P, h),
    "paged-HND": lambda s, t, h, P: (t // P, h, t % P),
    "paged-packed-NHD": lambda s, t, h, P: (t // P, s, t % P, h),
    "paged-packed-HND": lambda s, t, h, P: (t // P, s, h, t % P),
    "packed-paged-NHD": lambda s, t, h, P: (s, t // P, t % P, h),
    "packed-paged-HND": lambda s, t, h, P: (s, t // P, h, t % P),
}


@dataclass(frozen=True)
class Case:
    """Arrays of `capacity` tokens in a layout, and a block of `tokens` that starts at token `first` of them."""

    shape: KvShape
    layout: str
    page: int
    capacity: int
    first: int
    tokens: int
    chance: random.Random

    def sides(self) -> list[tuple[int, str, int, int]]:
        found = []
        for number, layer in self.shape.layers:
            found.append((number, "key", layer.key_heads, layer.key_dim))
            found.append((number, "value", layer.value_heads, layer.value_dim))
        return found

    def model(self, tokens: int) -> Model:
        size = self.shape.element_bytes
        return {
            (number, side, head, token): [self.chance.randbytes(size) for _ in range(dim)]
            for number, side, heads, dim in self.sides()
            for head in range(heads)
            for token in range(tokens)
        }

    def arrays(self) -> Arrays:
        """Return arrays of random bytes, so that a byte written where none belongs is seen."""
        page = self.page if "paged" in self.layout else None
        shapes = array_shapes(self.shape, self.layout, self.capacity, page=page)
        arrays = {}
        for slot, lengths in shapes.items():
            noise = bytearray(self.chance.randbytes(prod(lengths) * self.shape.element_bytes))
            arrays[slot] = np.frombuffer(noise, DTYPES[self.shape.dtype]).reshape(lengths)
        return arrays

    def place(self, arrays: Arrays, model: Model, first: int) -> None:
        """Write the model into the arrays from token `first` on, one element at a time."""
        for (number, side, head, token), row in model.items():
            array = arrays[number, "kv" if "packed" in self.layout else side]
            at = PLACES[self.layout](("key", "value").index(side), first + token, head, self.page)
            for index, element in enumerate(row):
                array[(*at, index)] = np.frombuffer(element, array.dtype)[0]


def block_of(case: Case, model: Model, tokens: range, heads: Heads = range, layers: Any = None) -> bytes:
    """Return the canonical bytes of part of a model: layer, key then value, head, token."""
    return b"".join(
        b"".join(model[number, side, head, token])
        for number, side, count, _ in case.sides()
        if layers is None or number in layers
        for head in (heads(count) if count else ())
        for token in tokens
    )


def same(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all(first[slot].tobytes() == second[slot].tobytes() for slot in first)


HEADS, DIMS = st.integers(1, 4), st.integers(1, 5)


@st.composite
def layer_shapes(draw: st.DrawFn, packed: bool = False, heads: st.SearchStrategy[int] = HEADS) -> LayerShape:
    key = (draw(heads), draw(DIMS))
    value = key if packed else draw(st.just((0, 0)) | st.tuples(heads, DIMS))
    return LayerShape(*key, *value)


@st.composite
def cases(draw: st.DrawFn, heads: st.SearchStrategy[int] = HEADS) -> Case:
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    numbers = sorted(draw(st.sets(st.integers(0, LAYERS_MAX - 1), min_size=1, max_size=3)))
    layers = tuple((number, draw(layer_shapes("packed" in layout, heads))) for number in numbers)
    capacity = draw(st.integers(1, 13))
    first = draw(st.integers(0, capacity - 1))
    tokens = draw(st.integers(1, capacity - first))
    chance = random.Random(draw(st.integers(0, 1 << 32)))
    shape = KvShape(draw(st.sampled_from(sorted(DTYPES))), layers)
    return Case(shape, layout, draw(st.integers(1, 5)), capacity, first, tokens, chance)


# --- conversions


@given(cases())
@settings(max_examples=300, deadline=None)
def test_gather_then_scatter_equal_the_reference(case: Case) -> None:
    model, arrays = case.model(case.tokens), case.arrays()
    untouched = {slot: array.copy() for slot, array in arrays.items()}
    case.place(arrays, model, case.first)
    wanted = block_of(case, model, range(case.tokens))
    out = memoryview(bytearray(len(wanted)))
    gather_block(arrays, case.shape, case.layout, case.first, case.tokens, out)
    assert bytes(out) == wanted
    assert len(wanted) == case.shape.block_bytes(case.tokens)

    scatter_block(wanted, case.shape, case.layout, case.tokens, untouched, case.first)
    assert same(untouched, arrays), "padding and other tokens stay as they were"


@given(cases(), st.data())
@settings(max_examples=200, deadline=None)
def test_part_of_a_block_equals_the_slice(case: Case, draws: st.DataObject) -> None:
    """Some layers, one head range, one token range: the runs are a block of the narrowed shape, and scatter as one."""
    model = case.model(case.tokens)
    whole = block_of(case, model, range(case.tokens))
    layers = draws.draw(st.sets(st.sampled_from([number for number, _ in case.shape.layers]), min_size=1))
    fewest = min(heads for _, _, heads, _ in case.sides() if heads)
    low = draws.draw(st.integers(0, fewest - 1))
    chosen = range(low, draws.draw(st.integers(low + 1, fewest)))

    def heads(_: int) -> range:
        return chosen

    runs = case.shape.runs(case.tokens, layers=layers, heads=heads)
    part = b"".join(whole[start:stop] for start, stop in runs)
    assert part == block_of(case, model, range(case.tokens), heads, layers)
    assert all(before[1] < after[0] for before, after in pairwise(runs)), "neighbours are joined"
    for number, side, count, _ in case.sides():
        if count and number in layers:
            start, stop = case.shape.extent(number, side, case.tokens, chosen)
            rows = [model[number, side, head, token] for head in chosen for token in range(case.tokens)]
            assert whole[start:stop] == b"".join(element for row in rows for element in row)

    take = range(low_token := draws.draw(st.integers(0, case.tokens - 1)), draws.draw(st.integers(low_token + 1, 13)))
    take = range(take.start, min(take.stop, case.tokens))
    small = replace(case, shape=case.shape.narrow(layers=layers, heads=heads))
    arrays = small.arrays()
    wanted = {slot: array.copy() for slot, array in arrays.items()}
    kept = {
        (number, side, head - chosen.start, token - take.start): row
        for (number, side, head, token), row in model.items()
        if number in layers and head in chosen and token in take
    }
    small.place(wanted, kept, case.first)
    scatter_block(part, small.shape, case.layout, case.tokens, arrays, case.first, take=take)
    assert same(arrays, wanted)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_axis_order_of_each_layout(layout: str) -> None:
    """3 tokens of 2 heads of dim 1 in pages of 2; padding is 0. The block is 1 to 12 in order."""
    key_nhd, value_nhd = [[1, 4], [2, 5], [3, 6]], [[7, 10], [8, 11], [9, 12]]
    key_hnd, value_hnd = [[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]
    key_pages_n, value_pages_n = [[[1, 4], [2, 5]], [[3, 6], [0, 0]]], [[[7, 10], [8, 11]], [[9, 12], [0, 0]]]
    key_pages_h, value_pages_h = [[[1, 2], [4, 5]], [[3, 0], [6, 0]]], [[[7, 8], [10, 11]], [[9, 0], [12, 0]]]
    wanted: dict[str, Any] = {
        "NHD": (key_nhd, value_nhd),
        "HND": (key_hnd, value_hnd),
        "packed": ([key_nhd, value_nhd],),
        "paged-NHD": (key_pages_n, value_pages_n),
        "paged-HND": (key_pages_h, value_pages_h),
        "paged-packed-NHD": ([[key_pages_n[0], value_pages_n[0]], [key_pages_n[1], value_pages_n[1]]],),
        "paged-packed-HND": ([[key_pages_h[0], value_pages_h[0]], [key_pages_h[1], value_pages_h[1]]],),
        "packed-paged-NHD": ([key_pages_n, value_pages_n],),
        "packed-paged-HND": ([key_pages_h, value_pages_h],),
    }
    shape = KvShape("U8", ((7, LayerShape(2, 1, 2, 1)),))
    lengths = array_shapes(shape, layout, 3, page=2 if "paged" in layout else None)
    arrays: Arrays = {slot: np.zeros(extents, np.uint8) for slot, extents in lengths.items()}
    scatter_block(bytes(range(1, 13)), shape, layout, 3, arrays, 0)
    assert [arrays[slot][..., 0].tolist() for slot in sorted(arrays)] == list(wanted[layout])
    assert sorted(arrays) == ([(7, "kv")] if "packed" in layout else [(7, "key"), (7, "value")])


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_every_bit_pattern_survives_float_arrays(layout: str, dtype: str) -> None:
    """All 65,536 half patterns, as float arrays; for F32 they are the upper half: NaN payloads, -0.0, subnormals."""
    half = np.arange(1 << 16, dtype=np.uint16)
    patterns = half if dtype == "F16" else half.astype(np.uint32) << 16 | 1
    shape = KvShape(dtype, ((0, LayerShape(2, 64, 2, 64)),))
    block = patterns.tobytes()
    lengths = array_shapes(shape, layout, 256, page=16 if "paged" in layout else None)
    arrays: Arrays = {slot: np.zeros(extents, f"<f{shape.element_bytes}") for slot, extents in lengths.items()}
    scatter_block(block, shape, layout, 256, arrays, 0)
    out = memoryview(bytearray(len(block)))
    gather_block(arrays, shape, layout, 0, 256, out)
    assert bytes(out) == block
    assert np.isnan(np.concatenate([array.ravel() for array in arrays.values()])).any()


# --- tensor parallel


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@given(case=cases(heads=st.sampled_from([1, 2, 4, 8, 16])))
@settings(max_examples=25, deadline=None)
def test_ranks_read_what_direct_sharding_gives(world: int, case: Case) -> None:
    model = case.model(case.tokens)
    whole = block_of(case, model, range(case.tokens))
    rebuilt = bytearray(len(whole))
    for rank in range(world):
        heads = partial(heads_of, rank, world)
        rank_case = replace(case, shape=case.shape.narrow(heads=heads))
        arrays = rank_case.arrays()
        direct = {slot: array.copy() for slot, array in arrays.items()}
        counts = {(number, side): count for number, side, count, _ in case.sides()}
        for (number, side, head, token), row in model.items():
            # As engines write it: a share of the heads, or one head for each group of `world // count` ranks.
            count = counts[number, side]
            mine = (
                [rank // (world // count)]
                if world > count
                else range(count)[rank * (count // world) :][: count // world]
            )
            if head in mine:
                rank_case.place(direct, {(number, side, head - mine[0], token): row}, case.first)
        runs = case.shape.runs(case.tokens, heads=heads)
        part = b"".join(whole[start:stop] for start, stop in runs)
        scatter_block(part, rank_case.shape, case.layout, case.tokens, arrays, case.first)
        assert same(arrays, direct)

        # And back: each rank writes its share into its place of the whole block.
        out = memoryview(bytearray(len(part)))
        gather_block(arrays, rank_case.shape, case.layout, case.first, case.tokens, out)
        done = 0
        for start, stop in runs:
            rebuilt[start:stop] = out[done : done + stop - start]
            done += stop - start
    assert rebuilt == whole


# --- arrays as files and engines give them


@given(cases())
def test_shape_is_known_from_its_arrays(case: Case) -> None:
    valued = tuple((number, replace(layer, value_heads=1, value_dim=2)) for number, layer in case.shape.layers)
    shape = case.shape if "packed" in case.layout else replace(case.shape, layers=valued)
    keys = tuple((number, replace(layer, value_heads=0, value_dim=0)) for number, layer in case.shape.layers)
    page = case.page if "paged" in case.layout else None
    for known in (shape, shape if "packed" in case.layout else replace(shape, layers=keys)):
        lengths = array_shapes(known, case.layout, case.capacity, page=page)
        assert infer_shape(lengths, case.layout, known.dtype, case.capacity) == known
        assert {parse_slot(slot_name(slot)) for slot in lengths} == set(lengths)
        others = (
            {case.capacity + 1, case.capacity - 1} if page is None else {case.capacity + page, case.capacity - page}
        )
        for tokens in others:
            with pytest.raises(FormatError):
                infer_shape(lengths, case.layout, known.dtype, tokens)


NHD = {(0, "key"): (4, 2, 8), (0, "value"): (4, 2, 8), (1, "key"): (4, 1, 8), (1, "value"): (4, 2, 6)}


@pytest.mark.parametrize(
    ("change", "layout", "said"),
    [
        ({}, "nhd", "layout 'nhd' is not known, wanted one of NHD, HND, packed"),
        ({}, "packed", r"layers\.0\.key \[4, 2, 8\] is not of layout packed, \[2, tokens, heads, dim\]"),
        ({}, "paged-HND", r"layers\.0\.key \[4, 2, 8\] is not of layout paged-HND, \[pages, heads, page, dim\]"),
        ({}, "HND", r"layers\.0\.key is \[4, 2, 8\], wanted \[4, 4, 8\] for 4 tokens"),
        ({(1, "value"): None}, "NHD", r"layers\.1\.value is missing"),
        ({(0, "key"): None}, "NHD", r"layers\.0\.key is missing"),
        ({(1, "key"): (5, 1, 8)}, "NHD", r"layers\.1\.key is \[5, 1, 8\], wanted \[4, 1, 8\] for 4 tokens"),
        ({(1, "key"): (4, 0, 8)}, "NHD", r"kv layer \[0, 8, 2, 6\]"),
        ({(1, "kv"): (2, 4, 2, 8)}, "NHD", r"layers\.1\.kv"),
        (dict.fromkeys(NHD), "NHD", "kv layer numbers are none"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[Slot, Any], layout: str, said: str) -> None:
    assert infer_shape(NHD, "NHD", "BF16", 4).block_bytes(4) == 2 * 4 * (2 * 16 + 8 + 12)
    changed = {slot: lengths for slot, lengths in (NHD | change).items() if lengths is not None}
    with pytest.raises(FormatError, match=said):
        infer_shape(changed, layout, "BF16", 4)


def test_arrays_may_hold_more_than_a_block() -> None:
    """A prompt of 131,072 tokens at 128 KiB each."""
    shape = KvShape("BF16", tuple((number, LayerShape(8, 128, 8, 128)) for number in range(32)))
    lengths = array_shapes(shape, "paged-HND", 131_072, page=16)
    assert lengths[31, "value"] == (8192, 8, 16, 128)
    assert infer_shape(lengths, "paged-HND", "BF16", 131_072) == shape
    for tokens in (0, -1):
        with pytest.raises(FormatError, match=f"kv of {tokens} tokens"):
            array_shapes(shape, "NHD", tokens)


def test_packed_refuses_what_is_not_two_equal_sides() -> None:
    for layer in (LayerShape(2, 8, 2, 6), LayerShape(1, 576, 0, 0)):
        with pytest.raises(FormatError, match="no value of its key's shape"):
            array_shapes(KvShape("BF16", ((0, layer),)), "packed", 4)
    with pytest.raises(FormatError, match=r"wanted \[2, 4, 2, 8\]"):
        infer_shape({(0, "kv"): (3, 4, 2, 8)}, "packed", "BF16", 4)
    for layout, page in (("NHD", 16), ("paged-NHD", None), ("paged-NHD", 0)):
        with pytest.raises(FormatError, match="page is"):
            array_shapes(KvShape("BF16", ((0, LayerShape(2, 8, 2, 8)),)), layout, 4, page=page)


@pytest.mark.parametrize(
    "name", ["layers.0.keys", "layers.00.key", "layers.4096.key", "layers.².key", "x.layers.0.key", ""]
)
def test_other_tensor_names_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="is not layers"):
        parse_slot(name)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (None, "is missing"),
        (np.zeros((4, 2, 16), np.uint16)[..., ::2], "not a dense array"),
        (np.zeros((2, 4, 8), np.uint16).transpose(1, 0, 2), "not a dense array"),
        (np.zeros((4, 2, 8), np.uint8), "elements of 2 bytes"),
        (np.zeros((4, 2, 8), object), "elements of 2 bytes"),
        (np.zeros((3, 2, 8), np.uint16), "holds 3 tokens, wanted 4"),
        (np.zeros((4, 3, 8), np.uint16), r"is \[4, 3, 8\], wanted \[tokens, heads, dim\] with 2 heads of dim 8"),
        (np.zeros((4, 16), np.uint16), r"is \[4, 16\]"),
    ],
)
def test_nothing_is_written_beside_a_bad_array(bad: npt.NDArray[Any] | None, said: str) -> None:
    shape = KvShape("BF16", ((0, LayerShape(2, 8, 2, 8)),))
    arrays: Arrays = {(0, "key"): np.zeros((4, 2, 8), np.uint16)}
    arrays |= {} if bad is None else {(0, "value"): bad}
    block = b"\1" * shape.block_bytes(4)
    with pytest.raises(FormatError, match=rf"^layers\.0\.value.*{said}"):
        scatter_block(block, shape, "NHD", 4, arrays, 0)
    assert not arrays[0, "key"].any()
    out = memoryview(bytearray(block))
    with pytest.raises(FormatError, match=said):
        gather_block(arrays, shape, "NHD", 0, 4, out)
    assert bytes(out) == block


@pytest.mark.parametrize(
    ("short", "first", "take"),
    [
        (1, 0, None),
        (0, -1, None),
        (0, 1, None),
        (0, 0, range(0)),
        (0, 0, range(1, 5)),
        (0, 0, range(0, 4, 2)),
        (0, 3, range(2)),
    ],
)
def test_tokens_out_of_range_are_refused(short: int, first: int, take: range | None) -> None:
    shape = KvShape("BF16", ((0, LayerShape(2, 8, 0, 0)),))
    arrays: Arrays = {(0, "key"): np.zeros((4, 2, 8), np.uint16)}
    with pytest.raises(FormatError, match="token"):
        scatter_block(b"\1" * (shape.block_bytes(4) - short), shape, "NHD", 4, arrays, first, take=take)
    assert not arrays[0, "key"].any()


def test_dense_arrays_of_odd_strides_are_dense() -> None:
    """A stride says nothing on an axis of length 1, yet numpy keeps whatever it was."""
    shape = KvShape("BF16", ((0, LayerShape(1, 1, 0, 0)),))
    array = np.zeros((3, 1, 40), np.uint16)[:1, :, ::7][..., :1]
    assert array.flags.c_contiguous
    assert array.strides == (80, 80, 14)
    scatter_block(b"\1\2", shape, "NHD", 1, {(0, "key"): array}, 0)
    assert array.tobytes() == b"\1\2"
