"""`arstore tag`: give a version a further name."""

from typing import Annotated

import typer

from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(tag)


def tag(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="NAME means the newest version. Or NAME@VERSION, or an id.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The further name, or NAME@LABEL to label its version.")],
) -> None:
    """Give a version a further name. No blob is stored again."""
    session = session_of(context)
    with session.open() as store:
        stored = store.tag(name, new)
    summary = stored.summary
    values: dict[str, object] = {
        "name": summary.name,
        "version": summary.version,
        "label": summary.label,
        "id": summary.id,
    }
    session.emit(values, lambda: f"{summary.name}@{summary.label or summary.version}  {summary.id[:16]}")
