"""Collect: what nothing needs any more is condemned, and deleted once it has been so for long enough.

lease -> abandoned loans -> retention -> mark -> delete, re-checked -> keys destroyed -> space given back. Every step is
safe to be killed in and finished by the next collection; puts and gets go on beside it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...formats.catalog import BlobRow
from ..artifacts.drop import drop, released
from ..artifacts.names import Found
from ..errors import Conflict
from ..parts import Parts
from .reclaim import reclaim
from .retention import KEEP_ALL, Retention, choose
from .shred import foreclose_abandoned, shred

SCOPE = b"gc"


@dataclass(frozen=True, slots=True)
class Margins:
    """How long garbage is kept: that many collections must have seen it, and that many seconds must have passed.

    The grace lets the next run of a killed put reuse what it had stored. It is not what keeps running puts and gets
    safe: deletions are re-checked in their transaction, and a reader whose blob went looks it up again.
    """

    cycles: int
    grace_s: int


CAREFUL = Margins(cycles=2, grace_s=24 * 3600)
AT_ONCE = Margins(cycles=1, grace_s=0)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or with `dry_run` would do."""

    freed_bytes: int
    deleted_blobs: int
    kept_blobs: int
    condemned_blobs: int
    segments: int
    dropped: tuple[str, ...]
    keys_destroyed: int


def collect(
    parts: Parts, margins: Margins, retention: Retention, now_s: int, *, dry_run: bool, lock_wait_s: float
) -> Collected:
    """Collect garbage; raise Fenced if another collection runs for longer than `lock_wait_s`."""
    with parts.leases.hold(SCOPE, "gc", lock_wait_s):
        if not dry_run:
            parts.recover()
        outdated = _outdated(parts, retention, now_s)
        for found in outdated if not dry_run else ():
            with contextlib.suppress(Conflict):  # removed by somebody else meanwhile
                drop(parts.names, found)
        dropped = tuple(found.text for found in outdated)
        if dry_run:
            return _foretell(parts, margins, outdated, dropped, now_s)
        survey = foreclose_abandoned(parts)
        due, waiting = _sort(survey.unneeded, margins, now_s)
        cycle = parts.garbage.next_cycle()
        parts.garbage.condemn([key for key, row in waiting if not _stamped(row, now_s)], cycle, now_s)
        deleted = parts.garbage.delete(key for key, _ in due)
        keys = shred(parts)
        # What was committed since the survey lies past the lengths that it saw.
        survey.forget(deleted)
        freed = reclaim(parts.directory, survey, parts.garbage, parts.disk, dry_run=False)
        kept = survey.blobs - len(deleted)
        return Collected(freed.freed_bytes, len(deleted), kept, len(waiting), freed.segments, dropped, keys)


def _outdated(parts: Parts, retention: Retention, now_s: int) -> list[Found]:
    if retention == KEEP_ALL:  # then no version has to be readable
        return []
    return choose(list(parts.names.all()), retention, now_s, lambda found: parts.names.manifest(found).blobs)


def _foretell(
    parts: Parts, margins: Margins, outdated: Sequence[Found], dropped: tuple[str, ...], now_s: int
) -> Collected:
    """Return what a collection would do."""
    survey = parts.garbage.survey()
    survey.forget(found.row.place for found in outdated)
    survey.unneeded += [(b"", row) for row in released(parts.names, outdated)]
    due, waiting = _sort(survey.unneeded, margins, now_s)
    survey.forget(row.place for _, row in due)
    seen = reclaim(parts.directory, survey, parts.garbage, parts.disk, dry_run=True)
    return Collected(seen.freed_bytes, len(due), survey.blobs - len(due), len(waiting), seen.segments, dropped, 0)


def _sort(
    unneeded: Sequence[tuple[bytes, BlobRow]], margins: Margins, now_s: int
) -> tuple[list[tuple[bytes, BlobRow]], list[tuple[bytes, BlobRow]]]:
    """Return what is due for deletion, and what has to wait."""
    due: list[tuple[bytes, BlobRow]] = []
    waiting: list[tuple[bytes, BlobRow]] = []
    for key, row in unneeded:
        old = _stamped(row, now_s) and now_s - row.condemned_s >= margins.grace_s
        (due if margins.cycles < 2 or old else waiting).append((key, row))
    return due, waiting


def _stamped(row: BlobRow, now_s: int) -> bool:
    """Say whether an earlier collection condemned a blob. A stamp from the future is of a clock that was set back
    since: it says nothing, and is set anew.
    """
    return row.condemned_cycle > 0 and row.condemned_s <= now_s
