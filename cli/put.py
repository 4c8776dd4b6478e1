"""`arstore put`: store a file or directory."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..store.errors import BadInput
from ..store.put import Stored
from .quantities import parse_duration
from .render import rate, size
from .session import session_of

_IDENTITY_MAX_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    app.command()(put)


def put(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or a directory.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or NAME@LABEL.")],
    kind: Annotated[str | None, typer.Option(help="weights, intermediate or file (bytes, unread).")] = None,
    model: Annotated[str | None, typer.Option(help="Model the artifact belongs to.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer.")] = None,
    layout: Annotated[str | None, typer.Option(help="Axis order.")] = None,
    precision: Annotated[str | None, typer.Option(help="Effective dtype.")] = None,
    quantisation: Annotated[str | None, typer.Option(help="Quantisation scheme.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter (LoRA) digest.")] = None,
    sequence: Annotated[str | None, typer.Option(help="Sequence the artifact was computed from.")] = None,
    positions: Annotated[str | None, typer.Option(metavar="A:B", help="Token positions, B not included.")] = None,
    identity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Identity fields as JSON; flags go before it.")
    ] = None,
    codec: Annotated[
        str, typer.Option(help="auto, stored, zstd, or plane (byte planes: a third smaller, slower).")
    ] = "auto",
    opaque: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Store matching files as bytes, unread. Repeatable."),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep from collection.")] = False,
    multi_writer: Annotated[bool, typer.Option("--multi-writer", help="Let others put under NAME meanwhile.")] = False,
    lock_wait: Annotated[str, typer.Option(metavar="TIME", help="Wait so long for another writer of NAME.")] = "0s",
) -> None:
    """Store PATH as the newest version of NAME. A directory (a checkpoint, say) is one artifact."""
    session = session_of(context)
    flags: dict[str, object] = {
        "model": model, "revision": revision, "layer": layer, "layout": layout, "precision": precision,
        "quantisation": quantisation, "adapter": adapter, "sequence": sequence, "positions": positions,
    }  # fmt: skip
    fields = _read_identity(identity) | {name: value for name, value in flags.items() if value is not None}
    with session.open() as store, session.progress("put") as progress:
        stored = store.put(
            path,
            name=name,
            kind=kind,
            identity=fields,
            codec=codec,
            pin=pin,
            opaque=opaque or (),
            multi_writer=multi_writer,
            lock_wait_s=parse_duration(lock_wait),
            progress=progress,
        )
    seconds = session.seconds
    session.emit(_values(stored, seconds), lambda: _text(stored, seconds))


def _values(stored: Stored, seconds: float) -> dict[str, object]:
    one = stored.summary
    return {
        "name": one.name,
        "version": one.version,
        "label": one.label,
        "id": one.id,
        "kind": one.kind,
        "bytes_in": stored.bytes_in,
        "bytes_stored": stored.bytes_stored,
        "blobs_new": stored.blobs_new,
        "blobs_reused": stored.blobs_reused,
        "seconds": seconds,
    }


def _text(stored: Stored, seconds: float) -> str:
    one = stored.summary
    return (
        f"{one.name}@{one.version}  {one.id[:16]}  {size(stored.bytes_in)} in, {size(stored.bytes_stored)} stored "
        f"({stored.blobs_new} new blobs, {stored.blobs_reused} reused) "
        f"in {seconds:.2f} s{rate(stored.bytes_in, seconds)}"
    )


def _read_identity(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_IDENTITY_MAX_BYTES))
    except OSError as error:
        raise BadInput(str(path), (error.strerror or str(error)).lower()) from None
    except (ValueError, RecursionError) as error:
        raise BadInput(str(path), f"not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadInput(str(path), "wanted one JSON object of identity fields")
    return fields
