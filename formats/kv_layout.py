"""KV layouts: the arrays that engines keep, and exact conversions to and from the blocks of the store (kv_shape.py).

Invariant: elements are copied as rows of bytes and never read as numbers, so every bit pattern survives both ways.

Layouts, axes from the outside in; arrays are dense:
    NHD                 key, value  [tokens, heads, dim]            SGLang's pools, FlashInfer's ragged tensors
    HND                 key, value  [heads, tokens, dim]            transformers' cache of one sequence
    packed              kv          [2, tokens, heads, dim]
    paged-NHD           key, value  [pages, page, heads, dim]       FlashInfer's pair of tensors
    paged-HND           key, value  [pages, heads, page, dim]
    paged-packed-NHD    kv          [pages, 2, page, heads, dim]    FlashInfer's one tensor, vLLM
    paged-packed-HND    kv          [pages, 2, heads, page, dim]
    packed-paged-NHD    kv          [2, pages, page, heads, dim]    vLLM's FlashAttention before pages came first
    packed-paged-HND    kv          [2, pages, heads, page, dim]
`page` is tokens a page. Pages stand in token order. Room that is left in the last page is padding: neither read nor
written.
Where 2 is key and value, both have the same heads and dim. MLA's one latent is a key of 1 head, with no value.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import FormatError
from .kv_shape import LAYERS_MAX, KvShape, LayerShape

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

Slot = tuple[int, str]  # which array: layer number, then key, value or kv

# One letter an axis: h heads, d dim, p pages, t tokens (those of a page, if there are pages), 2 key and value.
LAYOUTS = {
    "NHD": "thd", "HND": "htd", "packed": "2thd", "paged-NHD": "pthd", "paged-HND": "phtd",
    "paged-packed-NHD": "p2thd", "paged-packed-HND": "p2htd", "packed-paged-NHD": "2pthd", "packed-paged-HND": "2phtd",
}  # fmt: skip
_SIDES = ("key", "value")
_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,3})\.(key|value|kv)")


def parse_slot(name: str) -> Slot:
    """Return the layer number and side in the name of a tensor; raise FormatError for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) >= LAYERS_MAX:
        raise FormatError(f"tensor {name[:80]!r} is not layers.N.key, layers.N.value or layers.N.kv")
    return int(match[1]), match[2]


def slot_name(slot: Slot) -> str:
    """Return the name that the array of a slot has in a file."""
    return f"layers.{slot[0]}.{slot[1]}"


def has_pages(layout: str) -> bool:
    """Say whether a layout has pages; raise FormatError if it is not known."""
    return "p" in _axes_of(layout)


def page_of(shapes: Mapping[Slot, tuple[int, ...]], layout: str) -> int | None:
    """Return how many tokens a page of these arrays has, or None for a layout without pages."""
    return next(iter(shapes.values()))[_axes_of(layout).index("t")] if has_pages(layout) else None


def array_shapes(shape: KvShape, layout: str, tokens: int, *, page: int | None = None) -> dict[Slot, tuple[int, ...]]:
    """Return the shapes of the arrays that hold `tokens`, in pages of `page` tokens if the layout has pages."""
    axes = _axes_of(layout)
    if ("p" in axes) != (page is not None) or (page is not None and page < 1):
        raise FormatError(f"page is {page} tokens, layout {layout} {'needs 1 or more' if 'p' in axes else 'has none'}")
    if tokens < 1:
        raise FormatError(f"kv of {tokens} tokens, wanted 1 or more")
    for number, layer in shape.layers if "2" in axes else ():
        if (layer.key_heads, layer.key_dim) != (layer.value_heads, layer.value_dim):
            raise FormatError(f"layer {number} has no value of its key's shape, which layout {layout} needs")
    lengths = {"2": 2, "t": page or tokens, "p": -(-tokens // page) if page else 1}
    return {
        _slot(axes, number, side): tuple((lengths | {"h": heads, "d": dim})[axis] for axis in axes)
        for number, side, heads, dim, _ in shape.places(1)  # arrays may hold more than a block may
    }


def infer_shape(shapes: Mapping[Slot, tuple[int, ...]], layout: str, dtype: str, tokens: int) -> KvShape:
    """Return the KV shape of arrays of these shapes.

    Raises FormatError for arrays that do not fit the layout or each other, do not hold exactly `tokens` tokens (padded
    to whole pages), or lack a side that others have. Whether the model has more layers is not known here.
    """
    axes = _axes_of(layout)
    sides = ("kv",) if "2" in axes else _SIDES
    for slot, lengths in shapes.items():
        if slot[1] not in sides or len(lengths) != len(axes):
            raise FormatError(f"{slot_name(slot)} {list(lengths)} is not of layout {layout}, {_spell(axes)}")
    valued = any(side != "key" for _, side in shapes)
    layers = []
    for number in sorted({number for number, _ in shapes}):
        extents = [0, 0, 0, 0]
        for index, side in enumerate(_SIDES if valued else _SIDES[:1]):
            slot = _slot(axes, number, side)
            if slot not in shapes:
                raise FormatError(f"{slot_name(slot)} is missing, wanted {' and '.join(sides)} of every layer")
            extents[2 * index : 2 * index + 2] = (shapes[slot][axes.index(axis)] for axis in "hd")
        layers.append((number, LayerShape(*extents)))
    shape = KvShape(dtype, tuple(layers))
    page = page_of(shapes, layout)
    for slot, wanted in array_shapes(shape, layout, tokens, page=page).items():
        if tuple(shapes[slot]) != wanted:
            raise FormatError(f"{slot_name(slot)} is {list(shapes[slot])}, wanted {list(wanted)} for {tokens} tokens")
    return shape


def gather_block(
    arrays: "Mapping[Slot, Array]", shape: KvShape, layout: str, first_token: int, tokens: int, out: memoryview
) -> None:
    """Write `tokens` tokens of the arrays, from `first_token` on, into `out` as one block.

    Raises FormatError, before a byte is written, for arrays that are missing, too short, not dense or of another shape.
    """
    import numpy as np

    for rows, part in _pair_rows(out, tokens, range(tokens), shape, layout, arrays, first_token):
        np.copyto(rows, part)


def scatter_block(
    block: "memoryview | bytes",
    shape: KvShape,
    layout: str,
    tokens: int,
    arrays: "Mapping[Slot, Array]",
    first_token: int,
    *,
    take: range | None = None,
) -> None:
    """Write a block of `tokens` tokens, or only its tokens `take`, into the arrays from `first_token` on.

    Raises FormatError, before a byte is written, as `gather_block` does.
    """
    import numpy as np

    chosen = range(tokens) if take is None else take
    for rows, part in _pair_rows(block, tokens, chosen, shape, layout, arrays, first_token):
        np.copyto(part, rows)


def _pair_rows(
    block: "memoryview | bytes",
    tokens: int,
    take: range,
    shape: KvShape,
    layout: str,
    arrays: "Mapping[Slot, Array]",
    first_token: int,
) -> "list[tuple[Array, Array]]":
    """Return pairs of views that cover the tokens `take`: the same rows once in the block, once in an array."""
    import numpy as np

    axes = _axes_of(layout)
    if (length := memoryview(block).nbytes) != shape.block_bytes(tokens):
        raise FormatError(f"kv block has {length} bytes, wanted {shape.block_bytes(tokens)} for {tokens} tokens")
    if take.step != 1 or not 0 <= take.start < take.stop <= tokens or first_token < 0:
        raise FormatError(f"tokens {take.start}:{take.stop} of {tokens}, at {first_token}, are not a range of tokens")
    flat = np.frombuffer(block, np.uint8)
    pairs: list[tuple[Array, Array]] = []
    for number, side, heads, dim, at in shape.places(tokens):
        slot, row_bytes = _slot(axes, number, side), dim * shape.element_bytes
        if slot not in arrays:
            raise FormatError(f"{slot_name(slot)} is missing")
        grid = _view_grid(arrays[slot], axes, side, (heads, dim, shape.element_bytes), slot_name(slot))
        if (held := grid.shape[1] * grid.shape[2]) < first_token + len(take):
            raise FormatError(f"{slot_name(slot)} holds {held} tokens, wanted {first_token + len(take)}")
        rows = flat[at : at + heads * tokens * row_bytes].reshape(heads, tokens, row_bytes)
        pairs += _cut_at_pages(rows[:, take.start : take.stop], grid, first_token)
    return pairs


def _view_grid(array: "Array", axes: str, side: str, extents: tuple[int, int, int], name: str) -> "Array":
    """Return one side of an array as a view [heads, pages, tokens a page, bytes a row]. Without pages there is one."""
    import numpy as np

    heads, dim, element_bytes = extents
    lengths = dict(zip(axes, array.shape, strict=False))
    if array.ndim != len(axes) or (lengths["h"], lengths["d"], lengths.get("2", 2)) != (heads, dim, 2):
        raise FormatError(f"{name} is {list(array.shape)}, wanted {_spell(axes)} with {heads} heads of dim {dim}")
    if array.itemsize != element_bytes or array.dtype.hasobject or not array.flags.c_contiguous:
        raise FormatError(f"{name} is not a dense array of elements of {element_bytes} bytes")
    grid = array.view(np.uint8)
    if "2" in axes:
        grid, axes = np.moveaxis(grid, axes.index("2"), 0)[_SIDES.index(side)], axes.replace("2", "")
    if "p" not in axes:
        grid, axes = grid[None], "p" + axes
    return grid.transpose([axes.index(axis) for axis in "hptd"])


def _cut_at_pages(rows: "Array", grid: "Array", first_token: int) -> "Iterator[tuple[Array, Array]]":
    """Yield pairs of views of the same rows: the rest of a page, then whole pages at once, then the start of a page."""
    heads, tokens, row_bytes = rows.shape
    page = grid.shape[2]
    done = 0
    while done < tokens:
        number, skipped = divmod(first_token + done, page)
        whole = 0 if skipped else (tokens - done) // page
        count = whole * page or min(page - skipped, tokens - done)
        part = rows[:, done : done + count]
        if whole:  # splitting an axis makes a view, so what is written reaches the block
            yield part.reshape(heads, whole, page, row_bytes), grid[:, number : number + whole]
        else:
            yield part, grid[:, number, skipped : skipped + count]
        done += count


def _axes_of(layout: str) -> str:
    if layout not in LAYOUTS:
        raise FormatError(f"layout {layout[:80]!r} is not known, wanted one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def _slot(axes: str, number: int, side: str) -> Slot:
    return number, "kv" if "2" in axes else side


def _spell(axes: str) -> str:
    """Return the axes of a layout in words."""
    names = {"2": "2", "h": "heads", "d": "dim", "p": "pages", "t": "page" if "p" in axes else "tokens"}
    return f"[{', '.join(names[axis] for axis in axes)}]"
