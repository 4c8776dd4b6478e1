"""`arstore lease`: list leases, and break one."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ..store.catalog.leases import HeldLease
from .render import table
from .session import session_of


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List the leases on names, or break one.", no_args_is_help=True)
    group.command("ls")(ls)
    group.command("break")(break_)
    app.add_typer(group, name="lease")


def ls(context: typer.Context) -> None:
    """List the leases that processes hold.

    A lease lets one process at a time put under a name, or collect. The next process takes over a dead or expired one.
    """
    session = session_of(context)
    with session.open() as store:
        held = store.leases()
    rows = [
        (one.id[:16], one.purpose, str(one.pid), one.state, _since(one), f"{one.expires_in_s:.0f} s") for one in held
    ]
    session.emit(
        {"leases": [_values(one) for one in held]},
        lambda: table(("LEASE", "FOR", "PROCESS", "STATE", "SINCE", "EXPIRES IN"), rows) if held else "",
    )


def break_(
    context: typer.Context,
    lease_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `lease ls` prints, or its start.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print whose lease would be broken, and change nothing.")
    ] = False,
) -> None:
    """Take a lease away from the process that holds it.

    What that process then tries to publish is refused with exit code 11. Use it for a process that hangs.
    """
    session = session_of(context)
    with session.open() as store:
        broken = store.break_lease(lease_id, dry_run=dry_run)
    verb = "would break" if dry_run else "broke"
    session.emit(
        {"broken": _values(broken), "dry_run": dry_run},
        lambda: f"{verb} {broken.id[:16]}, held by process {broken.pid}",
    )


def _values(one: HeldLease) -> dict[str, object]:
    return {
        "id": one.id,
        "purpose": one.purpose,
        "epoch": one.epoch,
        "pid": one.pid,
        "since": _since(one),
        "expires_in_s": round(one.expires_in_s, 3),
        "state": one.state,
    }


def _since(one: HeldLease) -> str:
    return datetime.fromtimestamp(one.acquired_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
