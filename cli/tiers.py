"""`arstore tiers`: show the tiers, and measure them."""

from typing import Annotated

import typer

from ..store.staging.arenas import TierState
from .render import size, table
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(tiers)


def tiers(
    context: typer.Context,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure the speed of each tier, and keep it for plans.")
    ] = False,
) -> None:
    """Show each tier: its path, capacity, bytes used, speed and state."""
    session = session_of(context)
    with session.open() as store:
        if probe:
            store.tiers.arenas.probe()
        stats = store.stats()
        found = store.tiers.arenas.states(stats.disk_bytes, stats.free_bytes)
    titles = ("TIER", "STATE", "USED", "SPEED", "LATENCY", "PATH")
    session.emit({"tiers": [_values(one) for one in found]}, lambda: table(titles, [_row(one) for one in found]))


def _values(one: TierState) -> dict[str, object]:
    return {
        "tier": one.tier,
        "path": one.path,
        "capacity_bytes": one.capacity_bytes,
        "used_bytes": one.used_bytes,
        "bytes_per_second": round(one.speed.bytes_per_s) if one.speed else None,
        "latency_seconds": one.speed.latency_s if one.speed else None,
        "measured": one.speed.measured if one.speed else None,
        "state": one.state,
    }


def _row(one: TierState) -> tuple[str, ...]:
    used = "" if one.capacity_bytes is None else f"{size(one.used_bytes)} of {size(one.capacity_bytes)}"
    speed = f"{size(one.speed.bytes_per_s)}/s" if one.speed else "not measured: --probe"
    latency = f"{one.speed.latency_s * 1e3:.3f} ms" if one.speed else ""
    return one.tier, one.state, used, speed, latency, one.path
