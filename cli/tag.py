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
    one = stored.summary
    values: dict[str, object] = {"name": one.name, "version": one.version, "label": one.label, "id": one.id}
    session.emit(values, lambda: f"{one.name}@{one.label or one.version}  {one.id[:16]}")
