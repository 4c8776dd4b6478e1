"""`arstore repair`: recover a torn store."""

from typing import Annotated

import typer

from ..store.access import rebuild_catalog
from ..store.errors import BadInput, ReadOnly
from .session import ask_passphrase, session_of


def register(app: typer.Typer) -> None:
    app.command()(repair)


def repair(
    context: typer.Context,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild-catalog", help="Make the catalog anew from the segments. No other process may use the store."
        ),
    ] = False,
    forget_lost: Annotated[
        bool,
        typer.Option(
            "--forget-lost", help="Drop versions that can't be read. A rebuild also destroys keys it finds no use for."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is wrong, and change nothing.")] = False,
) -> None:
    """Take in what killed writers left, and correct the counts in the catalog.

    Prints what is lost. With --rebuild-catalog, pins and times of use are lost too.
    """
    session = session_of(context)
    if rebuild and dry_run:
        raise BadInput("flags", "--rebuild-catalog reads everything anyway; run 'verify' to only look")
    if rebuild and session.read_only:
        raise ReadOnly(str(session.root), "the store is read-only")
    if rebuild:
        with session.progress("repair") as progress:
            done = rebuild_catalog(session.root, ask=ask_passphrase, forget_lost=forget_lost, progress=progress)
    else:
        with session.open() as store:
            done = store.repair(forget_lost=forget_lost, dry_run=dry_run)
    values: dict[str, object] = {
        "recovered": done.recovered,
        "corrected": done.corrected,
        "lost": list(done.lost),
        "dry_run": dry_run,
        "seconds": session.seconds,
    }
    verb = "would recover" if dry_run else "recovered"
    counts = f"{verb} {done.recovered} records, corrected {done.corrected} counts"
    session.emit(values, lambda: "\n".join([*(f"lost: {why}" for why in done.lost), counts]))
