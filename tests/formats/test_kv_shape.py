"""KV shapes: fields come back as the shape they were, malformed ones are refused, and parts lie inside the block.

That the parts hold the right bytes is shown in test_kv_layout.py.
"""

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.kv_shape import (
    BLOCK_MAX_BYTES,
    EXTENT_MAX,
    LAYERS_MAX,
    Heads,
    KvShape,
    LayerShape,
    heads_of,
    parse_shape,
)


@st.composite
def layer_shapes(draw: st.DrawFn) -> LayerShape:
    extents = st.tuples(st.integers(1, 300), st.integers(1, 300))
    return LayerShape(*draw(extents), *draw(st.just((0, 0)) | extents))


@st.composite
def shapes(draw: st.DrawFn) -> KvShape:
    """Shapes with runs of equal layers, with gaps and without."""
    layers: list[tuple[int, LayerShape]] = []
    first = draw(st.integers(0, 3))
    for _ in range(draw(st.integers(1, 4))):
        layer, count = draw(layer_shapes()), draw(st.integers(1, 40))
        layers += [(first + index, layer) for index in range(count)]
        first += count + draw(st.integers(0, 2))
    return KvShape(draw(st.sampled_from(["F8_E4M3", "BF16", "F32", "C128"])), tuple(layers))


@given(shapes())
def test_shape_survives_its_fields(shape: KvShape) -> None:
    assert parse_shape(shape.fields()) == shape


def test_fields_are_compact() -> None:
    layer, latent = LayerShape(8, 128, 8, 128), LayerShape(1, 576, 0, 0)
    shape = KvShape("BF16", (*((number, layer) for number in range(32)), (32, latent), (40, latent)))
    wanted = [[0, 32, 8, 128, 8, 128], [32, 1, 1, 576, 0, 0], [40, 1, 1, 576, 0, 0]]
    assert shape.fields() == {"dtype": "BF16", "layers": wanted}
    assert shape.token_bytes == 2 * (32 * 2 * 1024 + 2 * 576)
    assert shape.extent(1, "value", 256, range(2, 4)) == ((3 * 8 + 2) * 256 * 256, (3 * 8 + 4) * 256 * 256)


RUN = [0, 2, 8, 128, 8, 128]
LIMIT = [0, 1, EXTENT_MAX, BLOCK_MAX_BYTES // 2 // EXTENT_MAX, 0, 0]


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        {"dtype": "BF16"},
        {"dtype": "BF16", "layers": [RUN], "more": 1},
        {"dtype": "BF17", "layers": [RUN]},
        {"dtype": "F4", "layers": [RUN]},
        {"dtype": ["BF16"], "layers": [RUN]},
        {"dtype": "BF16", "layers": []},
        {"dtype": "BF16", "layers": (RUN,)},
        {"dtype": "BF16", "layers": "RUN"},
        {"dtype": "BF16", "layers": [RUN[:5]]},
        {"dtype": "BF16", "layers": [[*RUN, 1]]},
        {"dtype": "BF16", "layers": [[0, 2, 8, 128, 8, 128.0]]},
        {"dtype": "BF16", "layers": [[False, 2, 8, 128, 8, 128]]},
        {"dtype": "BF16", "layers": [[0, 0, 8, 128, 8, 128]]},
        {"dtype": "BF16", "layers": [[0, -1, 8, 128, 8, 128]]},
        {"dtype": "BF16", "layers": [[-1, 2, 8, 128, 8, 128]]},
        {"dtype": "BF16", "layers": [[0, 2, 0, 128, 8, 128]]},
        {"dtype": "BF16", "layers": [[0, 2, 8, 128, 8, 0]]},
        {"dtype": "BF16", "layers": [[0, 2, 8, 128, 0, 128]]},
        {"dtype": "BF16", "layers": [[0, 2, 8, EXTENT_MAX + 1, 8, 128]]},
        {"dtype": "BF16", "layers": [[0, LAYERS_MAX + 1, 1, 1, 1, 1]]},
        {"dtype": "BF16", "layers": [[LAYERS_MAX, 1, 1, 1, 1, 1]]},
        {"dtype": "BF16", "layers": [[0, 1 << 60, 1, 1, 1, 1]]},
        {"dtype": "BF16", "layers": [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]},
        {"dtype": "BF16", "layers": [RUN, [1, 1, 1, 1, 1, 1]]},
        {"dtype": "BF16", "layers": [[5, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1]]},
        {"dtype": "BF16", "layers": [LIMIT, [1, 1, 1, 1, 0, 0]]},
    ],
)
def test_malformed_fields_are_refused(fields: object) -> None:
    with pytest.raises(FormatError, match=r"^kv "):
        parse_shape(fields)


def test_limits_themselves_are_accepted() -> None:
    assert parse_shape({"dtype": "BF16", "layers": [LIMIT]}).block_bytes(1) == BLOCK_MAX_BYTES
    assert len(parse_shape({"dtype": "U8", "layers": [[0, LAYERS_MAX, 1, 1, 1, 1]]}).layers) == LAYERS_MAX


def test_many_runs_are_refused_before_their_layers_are_made() -> None:
    with pytest.raises(FormatError, match=f"has {LAYERS_MAX} layers from 0 on"):
        parse_shape({"dtype": "U8", "layers": [[0, LAYERS_MAX, 1, 1, 1, 1]] * 100})


NUMBERS = st.integers(-1, 9) | st.booleans() | st.floats(allow_nan=False)


@given(st.fixed_dictionaries({"dtype": st.just("U8"), "layers": st.lists(st.lists(NUMBERS, min_size=6, max_size=6))}))
def test_parse_gives_the_shape_of_just_these_fields_or_refuses(fields: dict[str, Any]) -> None:
    try:
        shape = parse_shape(fields)
    except FormatError:
        return
    assert repr(sorted(shape.fields().items())) == repr(sorted(fields.items()))


@pytest.mark.parametrize("tokens", [0, -1, 1 << 62])
def test_blocks_without_bounds_are_refused(tokens: int) -> None:
    shape = KvShape("BF16", ((0, LayerShape(1, 1, 1, 1)),))
    for ask in (shape.block_bytes, shape.runs, partial(shape.extent, 0, "key")):
        with pytest.raises(FormatError, match="kv block"):
            ask(tokens)


def test_parts_that_are_not_there_are_refused() -> None:
    shape = KvShape("BF16", ((0, LayerShape(4, 2, 4, 2)), (1, LayerShape(1, 2, 0, 0))))
    for layer, side, heads in [(2, "key", None), (1, "value", None), (0, "kv", None), (0, "key", range(3, 5))]:
        with pytest.raises(FormatError, match=r"^(kv layer|heads)"):
            shape.extent(layer, side, 4, heads)
    for layers, heads in [
        ([2], None),
        (None, range(0)),
        (None, range(2, 4)),
        (None, range(-1, 1)),
        ([0], range(0, 4, 2)),
    ]:
        chosen: Heads = range if heads is None else lambda _, heads=heads: heads  # type: ignore[misc]
        with pytest.raises(FormatError, match=r"^(kv layers|heads)"):
            shape.runs(4, layers=layers, heads=chosen)
        with pytest.raises(FormatError, match=r"^(kv layers|heads)"):
            shape.narrow(layers=layers, heads=chosen)


@pytest.mark.parametrize(("rank", "world", "kv_heads"), [(0, 3, 8), (0, 8, 3), (4, 4, 8), (-1, 4, 8), (0, 0, 8)])
def test_uneven_ranks_are_refused(rank: int, world: int, kv_heads: int) -> None:
    with pytest.raises(FormatError, match=r"^(rank|\d+ kv heads)"):
        heads_of(rank, world, kv_heads)
