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
        states = store.tiers.arenas.states(stats.disk_bytes, stats.free_bytes)
    titles = ("TIER", "STATE", "USED", "SPEED", "LATENCY", "PATH")
    session.emit(
        {"tiers": [_values(state) for state in states]}, lambda: table(titles, [_row(state) for state in states])
    )


def _values(state: TierState) -> dict[str, object]:
    return {
        "tier": state.tier,
        "path": state.path,
        "capacity_bytes": state.capacity_bytes,
        "used_bytes": state.used_bytes,
        "bytes_per_second": round(state.speed.bytes_per_s) if state.speed else None,
        "latency_seconds": state.speed.latency_s if state.speed else None,
        "measured": state.speed.measured if state.speed else None,
        "state": state.state,
    }


def _row(state: TierState) -> tuple[str, ...]:
    used = "" if state.capacity_bytes is None else f"{size(state.used_bytes)} of {size(state.capacity_bytes)}"
    speed = f"{size(state.speed.bytes_per_s)}/s" if state.speed else "not measured: --probe"
    latency = f"{state.speed.latency_s * 1e3:.3f} ms" if state.speed else ""
    return state.tier, state.state, used, speed, latency, state.path
