"""`arstore pin` and `arstore unpin`: keep a version from collection, or let it be collected again."""

from typing import Annotated

import typer

from .ls import summary_values
from .session import session_of

_Name = Annotated[str, typer.Argument(metavar="NAME", help="NAME means the newest version. Or NAME@VERSION, or an id.")]


def register(app: typer.Typer) -> None:
    app.command()(pin)
    app.command()(unpin)


def pin(context: typer.Context, name: _Name) -> None:
    """Pin a version, so that `gc` never drops it. `rm` and `erase` still do."""
    _set(context, name, pinned=True)


def unpin(context: typer.Context, name: _Name) -> None:
    """Unpin a version, so that `gc` may drop it again."""
    _set(context, name, pinned=False)


def _set(context: typer.Context, name: str, *, pinned: bool) -> None:
    session = session_of(context)
    with session.open() as store:
        version = store.pin(name) if pinned else store.unpin(name)
    session.emit(summary_values(version), lambda: f"{'pinned' if pinned else 'unpinned'} {version.text}")
