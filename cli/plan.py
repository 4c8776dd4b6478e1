"""`arstore plan` and `arstore tiers`: what moves when, and how fast it can."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.disk import Disk
from ..store.errors import BadInput
from .render import size, table
from .session import session_of

if TYPE_CHECKING:
    from ..store.planfile import Plan


def register(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(tiers)


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


def tiers(
    context: typer.Context,
    probe: Annotated[bool, typer.Option("--probe", help="Measure them, and keep that for plans.")] = False,
) -> None:
    """Show every tier: where it lies, what it may hold and holds, and how fast it is."""
    session = session_of(context)
    with session.open() as store:
        speeds = store.tiers.probe() if probe else store.tiers.speeds()
        store.tiers.sweep()
        host, stats = store.tiers.host(), store.stats()
        staged = sum(one.length_bytes for one in host.residents())
    found: list[dict[str, object]] = []
    for name, path, capacity, used in (
        ("host", host.directory, host.capacity_bytes, staged),
        ("local", session.root, stats.disk_bytes + stats.free_bytes, stats.disk_bytes),
    ):
        speed = speeds.get(name)
        found.append(
            {
                "tier": name,
                "path": str(path),
                "capacity_bytes": capacity,
                "used_bytes": used,
                "bytes_per_second": round(speed.bytes_per_s) if speed else None,
                "latency_seconds": speed.latency_s if speed else None,
                "measured": speed.measured if speed else None,
                "state": "ready",
            }
        )
    rows = [
        (
            str(one["tier"]),
            str(one["path"]),
            f"{size(int(str(one['used_bytes'])))} of {size(int(str(one['capacity_bytes'])))}",
            f"{size(int(str(one['bytes_per_second'])))}/s" if one["bytes_per_second"] else "not measured: --probe",
        )
        for one in found
    ]
    session.emit({"tiers": found}, lambda: table(("TIER", "PATH", "USED", "SPEED"), rows))


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
