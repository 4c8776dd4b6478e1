"""Selection: which tensors, and which part of each, as ranges of first-axis rows and a range of one inner axis."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ...formats.manifest import Manifest, Tensor
from ...formats.tensor import DTYPE_BITS
from ..errors import BadInput, NotFound

COLWISE, ROWWISE, REPLICATE = "colwise", "rowwise", "replicate"
# How each style of a transformers tensor-parallel plan cuts a stored tensor. The rest of a style is about the output of
# a layer. Styles that interleave parts of a tensor (packed_…) are left out, because a range of rows can't follow them.
TP_STYLES = {
    "colwise": COLWISE,
    "colwise_rep": COLWISE,
    "local_colwise": COLWISE,
    "rowwise": ROWWISE,
    "rowwise_rep": ROWWISE,
    "local_rowwise": ROWWISE,
    "replicate": REPLICATE,
    "gather": REPLICATE,
    "sequence_parallel": REPLICATE,
}


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of `world` equal parts along `axis`."""

    rank: int
    world: int
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """What a caller asks for. `plan` maps name patterns to `colwise` or `rowwise`, as transformers' tp plans do."""

    globs: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    slices: tuple[tuple[str, int, int], ...] = ()
    shard: Shard | None = None
    plan: tuple[tuple[str, str], ...] = ()
    positions: tuple[int, int] | None = None  # of tokens; the artifact's identity must say which it holds

    def __bool__(self) -> bool:
        return bool(self.globs or self.layers or self.slices or self.shard or self.positions)


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Rows [start, stop) of a tensor's first axis. If axis > 0, only [inner_start, inner_stop) along that axis."""

    name: str
    tensor: Tensor
    start: int
    stop: int
    axis: int = 0
    inner_start: int = 0
    inner_stop: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is selected."""
        shape = list(self.tensor.span.shape)
        if shape:
            shape[0] = self.stop - self.start
        if self.axis:
            shape[self.axis] = self.inner_stop - self.inner_start
        return tuple(shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one first-axis row as stored, or of the whole tensor if it has no axes."""
        span = self.tensor.span
        return span.length // span.shape[0] if span.shape and span.shape[0] else span.length


def tensor_names(manifest: Manifest) -> dict[str, Tensor]:
    """Return every tensor by a name that is unique in the artifact: PATH:NAME if two files have a tensor NAME."""
    counts: dict[str, int] = {}
    for tensor in manifest.tensors:
        counts[tensor.span.name] = counts.get(tensor.span.name, 0) + 1
    return {
        t.span.name if counts[t.span.name] == 1 else f"{manifest.files[t.file].path}:{t.span.name}": t
        for t in manifest.tensors
    }


def layer_of(name: str) -> int | None:
    """Return the layer in a tensor's name: its first part that is a number (`model.layers.7.mlp…` is 7)."""
    number = re.search(r"(?:^|\.)(\d{1,9})(?:\.|$)", name)
    return int(number[1]) if number else None


def select(manifest: Manifest, wanted: Selection) -> list[TensorPart]:
    """Return the parts of tensors that a selection picks, in the artifact's order.

    Raises NotFound if a glob, layer or slice picks nothing, BadInput if a range or shard does not fit.
    """
    named = tensor_names(manifest)
    slices = {name: (start, stop) for name, start, stop in wanted.slices}
    held = dict(manifest.identity).get("positions", "")
    _check_hits(named, wanted)
    if wanted.positions and slices:
        raise BadInput("--slice", "and --positions both cut the first axis; give one of them")
    parts = []
    for name, tensor in named.items():
        picked = (
            any(fnmatch.fnmatchcase(name, glob) for glob in wanted.globs)
            or layer_of(name) in wanted.layers
            or name in slices
            or not (wanted.globs or wanted.layers or wanted.slices)
        )
        if not picked:
            continue
        part = _whole(name, tensor)
        if wanted.positions:
            part = _positioned(part, wanted.positions, held)
        if name in slices:
            part = _sliced(part, *slices[name])
        if wanted.shard:
            part = _sharded(part, wanted.shard, wanted.plan)
        parts.append(part)
    if not parts:
        raise NotFound("selection", "the artifact has no tensors")
    return parts


def _check_hits(named: Mapping[str, Tensor], wanted: Selection) -> None:
    for glob in wanted.globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in named):
            raise NotFound(f"--tensor {glob}", "matches no tensor", hint="'arstore show NAME' lists the tensors")
    layers = {layer_of(name) for name in named}
    for layer in wanted.layers:
        if layer not in layers:
            raise NotFound(f"--layer {layer}", "no tensor belongs to this layer")
    for name, _, _ in wanted.slices:
        if name not in named:
            raise NotFound(f"--slice {name}", "no such tensor", hint="'arstore show NAME' lists the tensors")


def _whole(name: str, tensor: Tensor) -> TensorPart:
    shape = tensor.span.shape
    return TensorPart(name, tensor, 0, shape[0] if shape else 1)


def _sliced(part: TensorPart, start: int, stop: int) -> TensorPart:
    _check_sliceable(part)
    if not 0 <= start <= stop <= part.stop:
        raise BadInput(f"--slice {part.name}={start}:{stop}", f"the first axis has {part.stop} rows")
    return replace(part, start=start, stop=stop)


def _positioned(part: TensorPart, positions: tuple[int, int], held: str) -> TensorPart:
    """Return the rows of some token positions. The tensor's first axis must be the positions of the identity."""
    (first, end), where = positions, f"--positions {positions[0]}:{positions[1]}"
    if not held:
        raise BadInput(where, "the artifact's identity does not say which positions it holds")
    start, stop = map(int, held.split(":"))
    if not start <= first <= end <= stop:
        raise BadInput(where, f"the artifact holds {held}")
    if part.tensor.span.shape[:1] != (stop - start,):
        why = f"its first axis is not the {stop - start} positions {held}"
        raise BadInput(part.name, why, hint="choose those that are with --tensor")
    _check_sliceable(part)
    return replace(part, start=first - start, stop=end - start)


def _sharded(part: TensorPart, shard: Shard, plan: Sequence[tuple[str, str]]) -> TensorPart:
    axis = shard.axis
    if plan:
        style = next((style for pattern, style in plan if _covers(pattern, part.name)), None)
        shape = part.tensor.span.shape
        # The bias of a row-wise layer is added once, after the sum over ranks. So it stays whole. So do
        # tensors that no pattern names.
        if style in (None, REPLICATE) or not shape or (style == ROWWISE and len(shape) == 1):
            return part
        axis = 0 if style == COLWISE else 1
    _check_sliceable(part)
    shape = part.shape
    if axis >= len(shape):
        raise BadInput(f"--shard: {part.name}", f"has {len(shape)} axes, wanted axis {axis}")
    if shape[axis] % shard.world:
        raise BadInput(f"--shard: {part.name}", f"axis {axis} of {shape[axis]} does not split evenly in {shard.world}")
    size = shape[axis] // shard.world
    if axis == 0:
        start = part.start + shard.rank * size
        return replace(part, start=start, stop=start + size)
    return replace(part, axis=axis, inner_start=shard.rank * size, inner_stop=(shard.rank + 1) * size)


def _covers(pattern: str, name: str) -> bool:
    """Say whether a tp-plan pattern (`layers.*.self_attn.q_proj`) names the module of a tensor."""
    module = name.rpartition(".")[0]
    return any(
        fnmatch.fnmatchcase(candidate, pattern) or fnmatch.fnmatchcase(candidate, f"*.{pattern}")
        for candidate in (module, name)
    )


def _check_sliceable(part: TensorPart) -> None:
    span = part.tensor.span
    if span.dtype not in DTYPE_BITS or DTYPE_BITS[span.dtype] % 8:
        raise BadInput(part.name, f"{span.dtype} can't be cut by rows")
    if span.stride is not None:
        raise BadInput(part.name, "is stored in another order than row by row and can't be cut")
    if not span.shape:
        raise BadInput(part.name, "has no axes to cut")
    if span.length != prod(span.shape) * DTYPE_BITS[span.dtype] // 8:
        raise BadInput(part.name, "is not dense and can't be cut")
