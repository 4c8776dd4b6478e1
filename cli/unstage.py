"""`arstore unstage`: wipe staged copies."""

from typing import Annotated

import typer

from ..store.errors import BadInput
from .session import PARTIAL, degraded_values, session_of


def register(app: typer.Typer) -> None:
    app.command()(unstage)


def unstage(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="Names or ids of what to wipe.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Wipe everything that is staged.")] = False,
) -> None:
    """Wipe staged copies and give their memory back.

    A copy that a process uses stays. The exit code is then 4, and also if a tier is gone.
    """
    session = session_of(context)
    if bool(names) == all_:
        raise BadInput("names", "wanted some, or --all")
    with session.open() as store:
        done = store.tiers.unstage(names or ())
    values: dict[str, object] = {
        "unstaged": [
            {"name": o.resident.name, "tier": o.arena.tier, "bytes": o.resident.length_bytes} for o in done.gone
        ],
        "in_use": [copy.resident.name for copy in done.in_use],
        "degraded": degraded_values(done.degraded),
        "bytes": sum(copy.resident.length_bytes for copy in done.gone),
    }
    lines = [f"released {o.resident.name} from {o.arena.tier}" for o in done.gone]
    lines += [f"in use: {o.resident.name}" for o in done.in_use]
    session.warn_degraded(done.degraded)
    session.emit(values, lambda: "\n".join(lines or ["nothing of that was staged"]))
    if done.in_use or done.degraded:
        raise typer.Exit(PARTIAL)
