"""`arstore get`: read an artifact back."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from ..store.artifacts.select import TP_STYLES, Selection, Shard
from ..store.errors import BadInput
from ..store.quantities import parse_range
from ..store.user_file import open_user_file
from .render import rate, size
from .session import session_of

_PLAN_MAX_BYTES = 1 << 20

_Name = Annotated[str, typer.Argument(metavar="NAME", help="NAME means the newest version. Or NAME@VERSION, or an id.")]
_Dest = Annotated[
    str,
    typer.Argument(
        metavar="DEST",
        help="The path to write. A slash at its end means a directory. Other files in a directory stay.",
    ),
]
_Tensor = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Select the tensors whose name matches. Repeatable.")
]
_Layer = Annotated[list[int] | None, typer.Option(metavar="L", help="Select the tensors of this layer. Repeatable.")]
_Slice = Annotated[
    list[str] | None,
    typer.Option("--slice", metavar="TENSOR=A:B", help="Select rows of a tensor, from A up to but not B. Repeatable."),
]
_Shard = Annotated[
    str | None,
    typer.Option(metavar="RANK/WORLD[:AXIS]", help="Split each tensor evenly on AXIS (default 0), select part RANK."),
]
_Positions = Annotated[
    str | None,
    typer.Option(metavar="A:B", help="Select token positions of an artifact that was put with --positions."),
]
_TpPlan = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Split as this JSON says: {pattern: colwise or rowwise}. Needs --shard."),
]
_SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out tensors that can't be read, which 'show' lists.")
]
_AllowUnmatched = Annotated[
    bool, typer.Option("--allow-unmatched", help="Go on if a glob, a layer or a rule of the plan matches nothing.")
]


def register(app: typer.Typer) -> None:
    app.command()(get)


def get(
    context: typer.Context,
    name: _Name,
    dest: _Dest,
    tensor: _Tensor = None,
    layer: _Layer = None,
    slice_: _Slice = None,
    shard: _Shard = None,
    positions: _Positions = None,
    tp_plan: _TpPlan = None,
    allow_unmatched: _AllowUnmatched = False,
    skip_unreadable: _SkipUnreadable = False,
) -> None:
    """Write the files of an artifact to DEST, byte for byte.

    With a selector, DEST is one safetensors file of the selected tensors, and little else is read. DEST appears when
    all of its bytes are verified. If one is bad, the exit code is 13 and nothing is written.
    """
    session = session_of(context)
    selection = Selection(
        globs=tuple(tensor or ()),
        layers=tuple(layer or ()),
        slices=tuple(map(parse_slice, slice_ or ())),
        shard=parse_shard(shard) if shard is not None else None,
        plan=_read_plan(tp_plan),
        positions=parse_range("--positions", positions) if positions is not None else None,
        allow_unmatched=allow_unmatched,
        skip_unreadable=skip_unreadable,
    )
    if tp_plan and shard is None:
        raise BadInput("--tp-plan", "says how to split, not which part; add --shard RANK/WORLD")
    with session.open() as store, session.progress("get") as progress:
        artifact, written = store.get_to(name, dest, selection, progress)
    summary, seconds = artifact.summary, session.seconds
    values: dict[str, object] = {
        "name": summary.name,
        "version": summary.version,
        "id": summary.id,
        "files": written.files,
        "bytes_out": written.bytes_out,
        "bytes_read": written.bytes_read,
        "seconds": seconds,
    }
    session.emit(
        values,
        lambda: (
            f"{summary.name}@{summary.version}  {written.files} file{'s' * (written.files != 1)}, "
            f"{size(written.bytes_out)} to {dest} in {seconds:.2f} s{rate(written.bytes_out, seconds)}"
        ),
    )


def parse_slice(text: str) -> tuple[str, int, int]:
    """Return (tensor, first row, end row) of `TENSOR=A:B`."""
    match = re.fullmatch(r"(.+)=([0-9]{1,18}):([0-9]{1,18})", text, re.DOTALL)
    if not match:
        raise BadInput(f"--slice {text[:200]}", "wanted TENSOR=A:B")
    return match[1], int(match[2]), int(match[3])


def parse_shard(text: str) -> Shard:
    """Return the shard of `RANK/WORLD` or `RANK/WORLD:AXIS`."""
    match = re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})(?::([0-9]{1,18}))?", text)
    if not match:
        raise BadInput(f"--shard {text[:200]}", "wanted RANK/WORLD or RANK/WORLD:AXIS")
    if not int(match[1]) < int(match[2]):
        raise BadInput(f"--shard {text}", "ranks run from 0 to WORLD - 1")
    return Shard(int(match[1]), int(match[2]), int(match[3] or "0"))


def _read_plan(path: Path | None) -> tuple[tuple[str, str], ...]:
    if path is None:
        return ()
    try:
        with open_user_file(path) as file:
            plan = json.loads(file.read(_PLAN_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"--tp-plan {path}", f"can't be read as JSON ({error})") from None
    if not isinstance(plan, dict) or not all(isinstance(s, str) and s in TP_STYLES for s in plan.values()):
        raise BadInput(f"--tp-plan {path}", f"wanted an object of name patterns to one of {', '.join(TP_STYLES)}")
    return tuple((pattern, TP_STYLES[style]) for pattern, style in plan.items())
