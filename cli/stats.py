"""`arstore stats`: show sizes."""

import dataclasses
from typing import Annotated

import typer

from ..store.maintenance.stats import Stats
from .render import pairs, size
from .session import put_out, session_of


def register(app: typer.Typer) -> None:
    app.command()(stats)


def stats(
    context: typer.Context,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print gauges for Prometheus' text-file collector.")
    ] = False,
) -> None:
    """Show how much the tenant stores, how much deduplication saves, and how much disk is left."""
    session = session_of(context)
    with session.open() as store:
        found, tenant = store.stats(), store.tenant
    values: dict[str, object] = {
        **dataclasses.asdict(found),
        "dedup_ratio": round(found.dedup_ratio, 4),
        "tenant": tenant,
    }
    if prometheus and not session.json:
        put_out(_prometheus(values, tenant))
    else:
        session.emit(values, lambda: _text(found))


def _text(found: Stats) -> str:
    return pairs(
        [
            ("artifacts", f"{found.artifacts} under {found.names} names, {size(found.logical_bytes)}"),
            ("blobs", f"{found.blobs}, {size(found.unique_bytes)} once (dedup {found.dedup_ratio:.2f} x)"),
            ("stored", f"{size(found.stored_bytes)} in {found.segments} segments"),
            ("unreferenced", size(found.unreferenced_bytes)),
            ("quarantined", f"{found.quarantined_blobs} blobs"),
            ("quota", size(found.quota_bytes) if found.quota_bytes else "none"),
            ("disk", f"{size(found.disk_bytes)} used, {size(found.free_bytes)} free"),
        ]
    )


def _prometheus(values: dict[str, object], tenant: str) -> str:
    """Return gauges; see prometheus.io/docs/instrumenting/exposition_formats."""
    lines = []
    for name, value in values.items():
        if name != "tenant":
            lines += [
                f"# TYPE arstore_{name} gauge",
                f'arstore_{name}{{tenant="{tenant}",tier="local"}} {value}',
            ]
    return "\n".join(lines)
