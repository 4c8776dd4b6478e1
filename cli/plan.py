"""`arstore plan`: what moves when, so that a run finds everything in place."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.disk import Disk
from ..store.errors import BadInput
from .render import size
from .session import session_of

if TYPE_CHECKING:
    from ..store.planfile import Plan


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A TOML file; see the README.")],
    order: Annotated[str, typer.Option(help="given, or prefix: requests that share prefixes run together.")] = "given",
    to: Annotated[str | None, typer.Option(metavar="TIER", help="The tier to plan for, before what JOB says.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="PLAN", help="Write the plan there, as JSON.")] = None,
) -> None:
    """Say what would move when, what it takes at most, and how long; nothing moves."""
    from ..store.plan import ORDERS  # the planner is loaded where it is used, so that other commands start faster

    session = session_of(context)
    if order not in ORDERS:
        raise BadInput(f"--order {order}", f"wanted one of {', '.join(ORDERS)}")
    with session.open() as store:
        made = store.tiers.plan(job, order=order, to=to)
    fields = made.fields()
    if out is not None:
        Disk().replace_file(out.absolute(), json.dumps(fields).encode(), 0o644)
    values = {name: fields[name] for name in ("order", "moves", *made.sums())}
    session.emit(values, lambda: _text(made))


def _text(made: "Plan") -> str:
    lines = [
        f"requests   {len(made.order)}",
        f"moves      {sum(map(len, made.lanes))}, {made.refetches} of them of what was there before",
        *(
            f"peak       {size(peak)} in {tier.name}"
            for tier, peak in zip(made.job.tiers, made.peak_bytes, strict=True)
        ),
        f"live peak  {size(made.live_peak_bytes)}",
        f"predicted  {made.predicted_s:.3f} s",
    ]
    return "\n".join(lines)
