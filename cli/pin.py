"""`arstore pin` and `arstore unpin`: keep from collection, or no longer."""

from typing import Annotated

import typer

from .ls import summary_values
from .session import session_of

_Name = Annotated[str, typer.Argument(metavar="NAME", help="NAME, NAME@VERSION or an id.")]


def register(app: typer.Typer) -> None:
    app.command()(pin)
    app.command()(unpin)


def pin(context: typer.Context, name: _Name) -> None:
    """Keep a version from collection."""
    _set(context, name, pinned=True)


def unpin(context: typer.Context, name: _Name) -> None:
    """Let a version be collected again."""
    _set(context, name, pinned=False)


def _set(context: typer.Context, name: str, *, pinned: bool) -> None:
    session = session_of(context)
    with session.open() as store:
        found = store.pin(name) if pinned else store.unpin(name)
    session.emit(summary_values(found), lambda: f"{'pinned' if pinned else 'unpinned'} {found.text}")
