"""Selection: which tensors, and which part of each, as ranges of first-axis rows and a range of one inner axis."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from ...formats.manifest import Manifest, Tensor
from ...formats.tensor import DTYPE_BITS
from ..errors import BadInput, NotFound
from .tensor_names import TensorNames

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
    allow_unmatched: bool = False  # a glob, a layer or a rule of the plan may pick nothing
    skip_unreadable: bool = False  # tensors that can't be read are left out

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


def layer_of(name: str) -> int | None:
    """Return the layer in a tensor's own name: its first part that is a number (`model.layers.7.mlp…` is 7)."""
    number = re.search(r"(?:^|\.)(\d{1,9})(?:\.|$)", name)
    return int(number[1]) if number else None


def select(manifest: Manifest, wanted: Selection) -> list[TensorPart]:
    """Return the parts of tensors that a selection picks, in the artifact's order.

    Raises NotFound if a glob, layer or rule picks nothing, unless that is allowed, or if the whole selection does.
    Raises BadInput if a name means tensors in which files differ, or if a range or shard does not fit.
    """
    named = TensorNames(manifest)
    slices = {named.find(f"--slice {name}", name): (start, stop) for name, start, stop in wanted.slices}
    held = dict(manifest.identity).get("positions", "")
    if wanted.positions and slices:
        raise BadInput("--slice", "and --positions both cut the first axis; give one of them")
    picked = _picked(named, wanted) | slices.keys()
    if not (wanted.globs or wanted.layers or wanted.slices):
        picked = set(named)
        if not wanted.skip_unreadable:
            named.check_read("tensors", named.unread.keys())
    parts = []
    for name, tensor in named.items():
        if name not in picked:
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
        raise NotFound("selection", "picks no tensor" if named else "the artifact has no tensors")
    return parts


def _picked(named: TensorNames, wanted: Selection) -> set[str]:
    """Return the names that globs and layers pick; raise NotFound if one of them, or a rule of the plan, has none."""
    picked: set[str] = set()
    for glob in wanted.globs:
        picked |= (names := named.matching(f"--tensor {glob}", glob))
        left = {name for name in named.unread if fnmatch.fnmatchcase(name, glob)}
        if not wanted.skip_unreadable:
            named.check_read(f"--tensor {glob}", left)
        if not names:
            _unmatched(wanted, f"--tensor {glob}", "matches no tensor")
    layers = {name: layer_of(tensor.span.name) for name, tensor in named.items()}
    for layer in wanted.layers:
        if not wanted.skip_unreadable:
            named.check_read(f"--layer {layer}", {name for name in named.unread if layer_of(name) == layer})
        if layer not in layers.values():
            _unmatched(wanted, f"--layer {layer}", "no tensor belongs to this layer")
    for pattern, _ in wanted.plan:
        if not any(_covers(pattern, tensor.span.name) for tensor in named.values()):
            _unmatched(wanted, f"--tp-plan {pattern}", "names no tensor of the artifact")
    return picked | {name for name, layer in layers.items() if layer in wanted.layers}


def _unmatched(wanted: Selection, where: str, why: str) -> None:
    if not wanted.allow_unmatched:
        hint = "'arstore show NAME' lists the tensors; --allow-unmatched goes on without it"
        raise NotFound(where, why, hint=hint)


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
        style = next((style for pattern, style in plan if _covers(pattern, part.tensor.span.name)), None)
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
