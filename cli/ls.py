"""`arstore ls`: list what is stored."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..store.errors import BadInput
from .render import size, table
from .session import session_of

if TYPE_CHECKING:
    from ..store.artifacts.names import StoredVersion


def register(app: typer.Typer) -> None:
    app.command()(ls)


def ls(
    context: typer.Context,
    glob: Annotated[
        str | None, typer.Argument(metavar="GLOB", help="List only the names that match this pattern.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="List only this kind: weights, kv, intermediate or file.")] = None,
) -> None:
    """List names and versions, with id, kind, size and time."""
    session = session_of(context)
    if kind is not None:
        from ..formats.manifest import KINDS

        if kind not in KINDS:
            raise BadInput(f"--kind {kind}", f"wanted one of {', '.join(KINDS)}")
    with session.open() as store:
        found = store.ls(glob, kind)
    if session.json:
        session.emit({"artifacts": [summary_values(one) for one in found]}, str)
    else:
        session.emit({}, lambda: _table(found) if found else "")
    if not found and not session.json:
        session.say("nothing here yet" if glob is None and kind is None else "nothing matches")


def summary_values(found: "StoredVersion") -> dict[str, object]:
    """Return what JSON says of one version."""
    one = found.summary
    return {
        "name": one.name,
        "version": one.version,
        "label": one.label,
        "id": one.id,
        "kind": one.kind,
        "model": one.model,
        "bytes": one.plain_bytes,
        "created": one.created,
        "pinned": one.pinned,
    }


def _marks(found: "StoredVersion") -> str:
    marks = [f"@{found.summary.label}"] if found.summary.label else []
    return " ".join(marks + ["pinned"] * found.summary.pinned)


def _table(found: "list[StoredVersion]") -> str:
    rows = [
        (
            one.text,
            one.summary.id[:16],
            one.summary.kind,
            size(one.summary.plain_bytes),
            one.summary.created,
            _marks(one),
        )
        for one in found
    ]
    return table(("NAME", "ID", "KIND", "SIZE", "CREATED", ""), rows)
