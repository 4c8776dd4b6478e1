"""`arstore repair`: recover a torn store."""

from typing import Annotated

import typer

from ..store.access import rebuild_catalog
from ..store.errors import BadInput
from .session import ask_passphrase, session_of


def register(app: typer.Typer) -> None:
    app.command()(repair)


def repair(
    context: typer.Context,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild-catalog", help="Make the catalog anew from segments; no one else may use the store."),
    ] = False,
    forget_lost: Annotated[
        bool, typer.Option("--forget-lost", help="With it: destroy the keys of what was not found, for good.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is wrong.")] = False,
) -> None:
    """Take in what killed writers left, or make a lost or damaged catalog anew. Lists what can't be had back."""
    session = session_of(context)
    if forget_lost and not rebuild:
        raise BadInput("--forget-lost", "goes with --rebuild-catalog")
    if rebuild and dry_run:
        raise BadInput("flags", "--rebuild-catalog reads everything anyway; run 'verify' to only look")
    if rebuild:
        with session.progress("repair") as progress:
            done = rebuild_catalog(session.root, ask=ask_passphrase, forget_lost=forget_lost, progress=progress)
        recovered, lost = done.recovered, list(done.lost)
    else:
        with session.open() as store:
            recovered, lost = (0 if dry_run else store.recover()), []
    values: dict[str, object] = {"recovered": recovered, "lost": lost, "dry_run": dry_run, "seconds": session.seconds}
    session.emit(values, lambda: "\n".join([*(f"lost: {one}" for one in lost), f"recovered {recovered} records"]))
