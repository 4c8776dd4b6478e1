"""`arstore put`: store a file or directory."""

from pathlib import Path
from typing import Annotated

import typer

from ..store.artifacts.commit import PutResult
from ..store.quantities import parse_duration
from .identity import IdentityFlags, with_identity
from .render import rate, size
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(with_identity(put))


def put(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or a directory. A directory is one artifact.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or NAME@LABEL to label the version.")],
    identity: IdentityFlags,
    kind: Annotated[
        str | None,
        typer.Option(help="weights, intermediate or file. [default: weights if tensors are found, else file]"),
    ] = None,
    codec: Annotated[
        str, typer.Option(help="auto, stored, zstd or plane. plane takes a third less space and is slower.")
    ] = "auto",
    opaque: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Store files that match as bytes, without reading their tensors. Repeatable."
        ),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Pin the version: gc keeps it.")] = False,
    multi_writer: Annotated[
        bool, typer.Option("--multi-writer", help="Let other processes put under NAME meanwhile.")
    ] = False,
    lock_wait: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for another put of NAME.")] = "0s",
) -> None:
    """Store a file or directory as the newest version of NAME.

    Tensors and files that the store has already are not stored again. The version is durable and visible when the
    command ends. After a kill, the next put reuses what was stored. The kind `file` stores bytes and reads no tensors.
    """
    session = session_of(context)
    with session.open() as store, session.progress("put") as progress:
        stored = store.put(
            path,
            name=name,
            kind=kind,
            identity=identity.fields(store),
            codec=codec,
            pin=pin,
            opaque=opaque or (),
            multi_writer=multi_writer,
            lock_wait_s=parse_duration(lock_wait),
            progress=progress,
        )
    seconds = session.seconds
    session.emit(stored_values(stored, seconds), lambda: stored_text(stored, seconds))


def stored_values(stored: PutResult, seconds: float) -> dict[str, object]:
    """Return what JSON says of a put."""
    summary = stored.summary
    return {
        "name": summary.name,
        "version": summary.version,
        "label": summary.label,
        "id": summary.id,
        "kind": summary.kind,
        "bytes_in": stored.bytes_in,
        "bytes_stored": stored.bytes_stored,
        "blobs_new": stored.blobs_new,
        "blobs_reused": stored.blobs_reused,
        "seconds": seconds,
    }


def stored_text(stored: PutResult, seconds: float) -> str:
    """Return the line that a person sees after a put."""
    summary = stored.summary
    return (
        f"{summary.name}@{summary.version}  {summary.id[:16]}  "
        f"{size(stored.bytes_in)} in, {size(stored.bytes_stored)} stored "
        f"({stored.blobs_new} new blobs, {stored.blobs_reused} reused) "
        f"in {seconds:.2f} s{rate(stored.bytes_in, seconds)}"
    )
