"""`arstore rm`: drop versions of a name."""

from typing import Annotated

import typer

from .render import size
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(rm)


def rm(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="NAME means the newest version. Or NAME@VERSION, or an id.")
    ],
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Drop every version of the name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be dropped, and drop nothing.")] = False,
) -> None:
    """Drop a version of a name. A later `gc` frees what nothing else needs. `erase` destroys keys, too."""
    session = session_of(context)
    with session.open() as store:
        dropped = store.rm(name, all_versions=all_versions, dry_run=dry_run)
    removed = [
        {"name": version.summary.name, "version": version.summary.version, "id": version.summary.id}
        for version in dropped
    ]
    verb = "would drop" if dry_run else "dropped"
    values: dict[str, object] = {
        "removed": removed,
        "keys_destroyed": dropped.keys_destroyed,
        "freed_bytes": dropped.freed_bytes,
        "dry_run": dry_run,
    }
    session.emit(
        values,
        lambda: "\n".join(
            [*(f"{verb} {version.text}" for version in dropped), f"gc can free {size(dropped.freed_bytes)}"]
        ),
    )
