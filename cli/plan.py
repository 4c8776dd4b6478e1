"""`arstore plan`: plan what to stage when for a JOB."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.disk import Disk
from ..store.errors import BadInput
from .render import size
from .session import session_of

if TYPE_CHECKING:
    from ..store.plan.planfile import Plan


def register(app: typer.Typer) -> None:
    app.command()(plan)


def plan(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A TOML file that names weights, requests and budgets.")],
    order: Annotated[str, typer.Option(help="given, or prefix: run requests with a common prefix together.")] = "given",
    to: Annotated[str | None, typer.Option(metavar="TIER", help="Plan for host or device, whatever JOB says.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PLAN", help="Write the plan to this file, for `prefetch`.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the plan to this file, .svg or .png.")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="TIMELINE", help="Draw over the plan what a run took. Needs --plot.")
    ] = None,
) -> None:
    """Plan a JOB: what to move when, how much memory it takes, and how long.

    Nothing is staged. Tiers that were never measured are measured first. TIMELINE is what `prefetch --timeline` wrote.
    """
    # The planner is loaded where it is used, so that other commands start faster.
    from ..store.plan.planner import ORDERS
    from .plot import check_same_job, check_suffix, draw_plan, read_measured

    session = session_of(context)
    if order not in ORDERS:
        raise BadInput(f"--order {order}", f"wanted one of {', '.join(ORDERS)}")
    if measured is not None and plot is None:
        raise BadInput("--measured", "is drawn over a plan, wanted --plot FILE too")
    if plot is not None:
        check_suffix(plot)
    run = read_measured(measured) if measured is not None else None
    for report in (out, plot):
        if report is not None:
            session.check_report(report)
    with session.open() as store:
        made = store.tiers.plan(job, order=order, to=to)
    if run is not None:
        check_same_job(made, run, str(measured))
    fields = made.fields()
    if out is not None:
        Disk().write_output(out, json.dumps(fields).encode())
    if plot is not None:
        draw_plan(made, run, plot)
    values = {name: fields[name] for name in ("order", "moves", *made.sums())}
    session.emit(values, lambda: _text(made))


def _text(made: "Plan") -> str:
    computed = [made.job.objects[move.object] for move in made.lanes[0] if move.made]
    tokens = f", {sum(object_.tokens for object_ in computed)} tokens" if computed else ""
    lines = [
        f"requests   {len(made.order)}",
        f"moves      {sum(map(len, made.lanes))}, {made.refetches} of them of what was evicted before",
        f"computed   {len(computed)} prefix blocks{tokens}",
        *(
            f"peak       {size(peak)} in {tier.name}"
            for tier, peak in zip(made.job.tiers, made.peak_bytes, strict=True)
        ),
        f"live peak  {size(made.live_peak_bytes)}",
        f"predicted  {made.predicted_s:.3f} s",
    ]
    return "\n".join(lines)
