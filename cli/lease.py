"""`arstore lease`: who owns what."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from ..store.catalog.leases import HeldLease
from .render import table
from .session import session_of


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Who owns what, and how to recover from an owner that is stuck.", no_args_is_help=True)
    group.command("ls")(ls)
    group.command("break")(break_)
    app.add_typer(group, name="lease")


def ls(context: typer.Context) -> None:
    """List leases. Those of dead or overdue owners are taken over by whoever comes next."""
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
    lease_id: Annotated[str, typer.Argument(metavar="ID", help="As `lease ls` prints it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whose lease would be broken.")] = False,
) -> None:
    """Take a lease from its owner: what it does from then on under this lease is refused, exit 11."""
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
