"""`arstore gc`: collect garbage. It is made for cron."""

from typing import Annotated

import typer

from ..store.maintenance.collect import AT_ONCE, CAREFUL, Collected, Margins
from ..store.maintenance.retention import Retention
from ..store.quantities import parse_duration, parse_size
from .render import size
from .session import session_of

_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what a collection would do, and change nothing.")]
_Grace = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="How long to keep garbage after a gc first saw it. 0s deletes it at once. [default: 24h]",
    ),
]
_KeepLast = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Keep the N newest versions of each name, and drop the others first."),
]
_KeepWithin = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Keep versions at most this much older than the newest of their name, as 30d. Drop the others first.",
    ),
]
_DropLast = Annotated[
    bool,
    typer.Option(
        "--drop-last", help="Let --keep-last and --keep-within drop the newest version of a name, too: see below."
    ),
]
_MaxBytes = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Drop what is worth least, until the rest takes at most SIZE."),
]
_LockWait = Annotated[
    str, typer.Option(metavar="TIME", help="How long to wait for another gc that runs. Then exit 11.")
]


def register(app: typer.Typer) -> None:
    app.command()(gc)


def gc(
    context: typer.Context,
    dry_run: _DryRun = False,
    grace: _Grace = None,
    keep_last: _KeepLast = None,
    keep_within: _KeepWithin = None,
    drop_last: _DropLast = False,
    max_bytes: _MaxBytes = None,
    lock_wait: _LockWait = "0s",
) -> None:
    """Collect garbage and give its space back.

    Garbage is what no version needs. Two runs must have seen it, and it must be as old as --grace says. Puts and gets
    may run at the same time. Run again after a kill, gc finishes the work. The garbage of all tenants goes. Versions go
    only from the chosen tenant. A version stays if --keep-last or --keep-within keeps it. The newest version of a name
    stays, unless --drop-last is given; then ages count from now. --max-bytes may drop any version. Versions that are
    pinned or have a label (NAME@LABEL) always stay.
    """
    session = session_of(context)
    margins = CAREFUL
    if grace is not None:
        margins = Margins(CAREFUL.cycles, parse_duration(grace)) if parse_duration(grace) else AT_ONCE
    retention = Retention(
        keep_last,
        parse_duration(keep_within) if keep_within is not None else None,
        parse_size(max_bytes) if max_bytes is not None else None,
        drop_last,
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
        "freeable_bytes": done.freeable_bytes,
        "deleted_blobs": done.deleted_blobs,
        "kept_blobs": done.kept_blobs,
        "condemned_blobs": done.condemned_blobs,
        "dropped": list(done.dropped),
        "segments_compacted": done.segments,
        "dry_run": dry_run,
        "seconds": seconds,
    }


def _text(done: Collected, dry_run: bool, seconds: float) -> str:
    waits = done.freeable_bytes - done.freed_bytes
    later = f", {size(done.freeable_bytes)} in the end" if waits else ""
    head = (
        f"{'would free' if dry_run else 'freed'} {size(done.freed_bytes)}{later}: {done.deleted_blobs} blobs deleted, "
        f"{done.kept_blobs} kept, {done.condemned_blobs} of them garbage in its grace, in {seconds:.2f} s"
    )
    return "\n".join([head, *(f"{'would drop' if dry_run else 'dropped'} {text}" for text in done.dropped)])
