"""`arstore tenant`: who shares the store."""

import re
from typing import Annotated

import typer

from ..store.errors import BadInput
from .render import size, table
from .session import session_of

_UNITS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Tenants: separate keys, ids and quotas in one store.", no_args_is_help=True)
    group.command("add")(add)
    group.command("ls")(ls)
    app.add_typer(group, name="tenant")


def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    quota: Annotated[str | None, typer.Option(metavar="SIZE", help="Most bytes it may store, as 500GiB.")] = None,
) -> None:
    """Make a tenant with keys of its own."""
    session = session_of(context)
    quota_bytes = parse_size(quota) if quota is not None else 0
    if quota is not None and not quota_bytes:
        raise BadInput(f"--quota {quota}", "would store nothing; leave it out for no quota")
    with session.open() as store:
        store.add_tenant(name, quota_bytes)
    session.emit({"tenant": name, "quota_bytes": quota_bytes}, lambda: f"added {name}")


def ls(context: typer.Context) -> None:
    """List tenants."""
    session = session_of(context)
    with session.open() as store:
        found = store.tenants()
    rows = [(tenant.name, size(tenant.quota_bytes) if tenant.quota_bytes else "none") for tenant in found]
    values = [{"name": tenant.name, "quota_bytes": tenant.quota_bytes} for tenant in found]
    session.emit({"tenants": values}, lambda: table(("TENANT", "QUOTA"), rows))


def parse_size(text: str) -> int:
    """Return the bytes of `500GiB`, `10GB`, `1e6` is refused: digits, a point, a unit."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]i?)?b?", text.strip().lower())
    if not found:
        raise BadInput(f"size {text!r}", "wanted a number and a unit, as 500GiB or 10GB")
    return int(float(found[1]) * _UNITS[found[2] or ""])
