"""`arstore key`: change what opens a store."""

from pathlib import Path
from typing import Annotated

import typer

from ..store.keys.rotate import Rotated
from .init import new_passphrase
from .session import session_of


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Change what opens the store: key file or passphrase.", no_args_is_help=True)
    group.command("rotate")(rotate)
    group.command("add-passphrase")(add_passphrase)
    app.add_typer(group, name="key")


def rotate(
    context: typer.Context,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="F", help="The new key file. It must not exist yet. [default: beside the old one]"),
    ] = None,
    drop_others: Annotated[
        bool,
        typer.Option(
            "--drop-others", help="Go on although a passphrase or command is not at hand. It opens the store no more."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would open the store, and change nothing.")
    ] = False,
) -> None:
    """Give the store a new master key and a new key file.

    The old key file opens nothing afterwards. Artifacts are not rewritten. Run again after a kill, it finishes.
    """
    session = session_of(context)
    with session.open() as store:
        done = store.keys.rotate(key_file, drop_others=drop_others, dry_run=dry_run)
    values = {"key_file": str(done.key_file), "dropped": list(done.dropped), "dry_run": dry_run}
    session.emit(values, lambda: _text(done, dry_run))


def _text(done: Rotated, dry_run: bool) -> str:
    gone = f"\nno longer with: {', '.join(done.dropped)}" if done.dropped else ""
    if dry_run:
        return f"the store would open with {done.key_file}, to be made{gone}"
    return f"the store opens with {done.key_file} from now on; back it up{gone}"


def add_passphrase(context: typer.Context) -> None:
    """Let a passphrase open the store as well. It is asked for, or read from ARSTORE_PASSPHRASE_FILE."""
    session = session_of(context)
    with session.open() as store:
        store.keys.add_passphrase(new_passphrase("add-passphrase"))
    session.emit({"added": "passphrase"}, lambda: "a passphrase opens the store from now on")
