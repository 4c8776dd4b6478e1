"""`arstore tenant`: add, remove and list the tenants of a store."""

from typing import Annotated

import typer

from ..store.errors import BadInput
from ..store.quantities import parse_size
from .render import size, table
from .session import session_of


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Add, remove and list tenants of the store.", no_args_is_help=True)
    group.command("add")(add)
    group.command("ls")(ls)
    group.command("rm")(rm)
    app.add_typer(group, name="tenant")


def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new tenant.")],
    quota: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The most bytes it may store, as 500GiB. [default: no quota]")
    ] = None,
) -> None:
    """Add a tenant. It has keys, names, ids and a quota of its own."""
    session = session_of(context)
    quota_bytes = parse_size(quota) if quota is not None else 0
    if quota is not None and not quota_bytes:
        raise BadInput(f"--quota {quota}", "would store nothing; leave it out for no quota")
    with session.open() as store:
        store.tenants.add(name, quota_bytes)
    session.emit({"tenant": name, "quota_bytes": quota_bytes}, lambda: f"added {name}")


def rm(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant to remove.")],
    erase: Annotated[bool, typer.Option("--erase", help="Also destroy the keys of all its artifacts.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and change nothing.")
    ] = False,
) -> None:
    """Remove a tenant. If it has artifacts and --erase is not given, the exit code is 15."""
    session = session_of(context)
    with session.open() as store:
        gone = store.tenants.remove(name, erase=erase, dry_run=dry_run)
    values = {
        "tenant": name,
        "erased": erase,
        "artifacts": gone.artifacts,
        "bytes": gone.stored_bytes,
        "keys_destroyed": gone.keys,
        "still_staged": list(gone.still_staged),
        "dry_run": dry_run,
    }
    session.warn_staged(gone.still_staged)
    verb = "would remove" if dry_run else "removed"
    session.emit(values, lambda: f"{verb} {name}, artifacts: {gone.artifacts}, {size(gone.stored_bytes)}")


def ls(context: typer.Context) -> None:
    """List the tenants and their quotas."""
    session = session_of(context)
    with session.open() as store:
        tenants = store.tenants.all()
    rows = [(tenant.name, size(tenant.quota_bytes) if tenant.quota_bytes else "none") for tenant in tenants]
    values = [{"name": tenant.name, "quota_bytes": tenant.quota_bytes} for tenant in tenants]
    session.emit({"tenants": values}, lambda: table(("TENANT", "QUOTA"), rows))
