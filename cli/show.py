"""`arstore show`: one artifact in full."""

from collections.abc import Sequence
from typing import Annotated

import typer

from ..formats.manifest import Manifest
from ..store.artifacts.names import StoredVersion
from ..store.artifacts.tensor_names import TensorNames
from ..store.staging.unstage import StagedCopy
from .ls import summary_values
from .render import pairs, size, table
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(show)


def show(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="NAME means the newest version. Or NAME@VERSION, or an id.")
    ],
) -> None:
    """Show one artifact: its identity, files, tensors and blobs, and the tiers that hold it."""
    session = session_of(context)
    with session.open() as store:
        found, manifest = store.show(name)
        staged = store.tiers.arenas.copies(found.summary.id)
    session.emit(_values(found, manifest, staged), lambda: _text(found, manifest, staged))


def _values(found: StoredVersion, manifest: Manifest, staged: Sequence[StagedCopy]) -> dict[str, object]:
    return {
        **summary_values(found),
        "identity": dict(manifest.identity),
        "files": [
            {"path": file.path, "bytes": file.size, "mode": f"{file.mode:04o}", "format": file.format}
            for file in manifest.files
        ],
        "tensors": [
            {
                "name": name,
                "dtype": tensor.span.dtype,
                "shape": list(tensor.span.shape),
                "bytes": tensor.span.length,
                "file": manifest.files[tensor.file].path,
            }
            for name, tensor in zip(TensorNames(manifest).of_each, manifest.tensors, strict=True)
        ],
        "unreadable": [
            {"name": unread.name, "file": manifest.files[unread.file].path, "why": unread.why}
            for unread in manifest.unread
        ],
        "kv": _kv_values(manifest),
        "blobs": [{"digest": blob.digest.hex(), "bytes": blob.length} for blob in manifest.blobs],
        "tiers": {
            "local": {"blobs": len(manifest.blobs), "bytes": sum(blob.length for blob in manifest.blobs)},
            **{one.arena.tier: {"bytes": one.resident.length_bytes} for one in staged},
        },
    }


def _kv_values(manifest: Manifest) -> dict[str, object] | None:
    if manifest.shape is None:
        return None
    blocks = [claim for claim in manifest.claims if claim.tokens]
    return {"tokens": sum(claim.tokens for claim in blocks), "blocks": len(blocks), **manifest.shape.fields()}


def _text(found: StoredVersion, manifest: Manifest, staged: Sequence[StagedCopy]) -> str:
    one = found.summary
    head = [
        ("name", f"{one.name}@{one.version}" + (f" ({one.label})" if one.label else "")),
        ("id", one.id),
        ("kind", one.kind),
        ("size", f"{size(one.plain_bytes)} in {len(manifest.blobs)} blobs"),
        ("created", one.created + (", pinned" if one.pinned else "")),
        *manifest.identity,
    ]
    if staged:
        head.append(("staged", ", ".join(one.arena.tier for one in staged)))
    if kv := _kv_values(manifest):
        head.append(("tokens", f"{kv['tokens']} in {kv['blocks']} prefix blocks"))
    files = [(file.path, size(file.size), f"{file.mode:04o}", file.format) for file in manifest.files]
    parts = [pairs(head), table(("FILE", "SIZE", "MODE", "FORMAT"), files)]
    if manifest.tensors:
        rows = [
            (name, tensor.span.dtype, str(list(tensor.span.shape)), size(tensor.span.length))
            for name, tensor in TensorNames(manifest).items()
        ]
        parts.append(table(("TENSOR", "DTYPE", "SHAPE", "SIZE"), rows))
    if manifest.unread:
        parts.append(table(("UNREADABLE TENSOR", "WHY"), [(unread.name, unread.why) for unread in manifest.unread]))
    return "\n\n".join(parts)
