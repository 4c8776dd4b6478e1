"""`arstore gc`: collect garbage; made for cron."""

from typing import Annotated

import typer

from ..store.maintenance.collect import AT_ONCE, CAREFUL, Collected, Margins
from ..store.maintenance.retention import Retention
from ..store.quantities import parse_duration, parse_size
from .render import size
from .session import session_of


def register(app: typer.Typer) -> None:
    app.command()(gc)


def gc(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what a run would do.")] = False,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Keep garbage for so long after a run first saw it; 0s deletes at once. [24h]"
        ),
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Drop all but the N newest of a name.")
    ] = None,
    keep_within: Annotated[
        str | None, typer.Option(metavar="TIME", help="Drop versions older than this, as 30d.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Drop the least valuable versions until the rest fits.")
    ] = None,
    lock_wait: Annotated[str, typer.Option(metavar="TIME", help="Wait so long for another collection.")] = "0s",
) -> None:
    """Collect garbage and give its space back. Safe beside puts and gets; run again after a kill, it finishes.

    Neither --keep-last nor --keep-within nor --max-bytes drops a version that is pinned or has a label (NAME@LABEL).
    """
    session = session_of(context)
    margins = CAREFUL
    if grace is not None:
        margins = Margins(CAREFUL.cycles, parse_duration(grace)) if parse_duration(grace) else AT_ONCE
    retention = Retention(
        keep_last,
        parse_duration(keep_within) if keep_within is not None else None,
        parse_size(max_bytes) if max_bytes is not None else None,
    )
    with session.open() as store:
        done = store.gc(margins, retention, dry_run=dry_run, lock_wait_s=parse_duration(lock_wait))
        if not dry_run:
            store.tiers.arenas.sweep()
    seconds = session.seconds
    session.emit(_values(done, dry_run, seconds), lambda: _text(done, dry_run, seconds))


def _values(done: Collected, dry_run: bool, seconds: float) -> dict[str, object]:
    return {
        "freed_bytes": done.freed_bytes,
        "deleted_blobs": done.deleted_blobs,
        "kept_blobs": done.kept_blobs,
        "condemned_blobs": done.condemned_blobs,
        "dropped": list(done.dropped),
        "segments_compacted": done.segments,
        "dry_run": dry_run,
        "seconds": seconds,
    }


def _text(done: Collected, dry_run: bool, seconds: float) -> str:
    lines = [f"{'would drop' if dry_run else 'dropped'} {text}" for text in done.dropped]
    lines.append(
        f"{'would free' if dry_run else 'freed'} {size(done.freed_bytes)}: {done.deleted_blobs} blobs deleted, "
        f"{done.kept_blobs} kept, {done.condemned_blobs} of them garbage in its grace, in {seconds:.2f} s"
    )
    return "\n".join(lines)
