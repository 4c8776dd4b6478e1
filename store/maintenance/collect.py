"""Collect: blobs that nothing needs are condemned, and deleted when they have been condemned for long enough.

The steps: take the lease, drop versions that retention lets go, doom keys of abandoned loans, survey all rows,
condemn, delete with a check in the same transaction, destroy keys, give space back. A collection may be killed in any
step, and the next one finishes it. Puts and gets go on beside it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...formats.catalog import BlobRow
from ..artifacts.drop import drop, released
from ..artifacts.names import StoredVersion
from ..config import KEYS_DIR
from ..errors import Conflict
from ..keys.rotate import sweep_unfinished
from ..locks import locked
from ..parts import Parts
from .reclaim import reclaim
from .retention import KEEP_ALL, Retention, choose
from .shred import foreclose_abandoned, shred

SCOPE = b"gc"


@dataclass(frozen=True, slots=True)
class Margins:
    """How long garbage is kept: so many collections must have seen it, and so many seconds must have passed.

    The grace lets the next run of a killed put reuse the blobs that it had stored. Running puts and gets do not need
    it: a deletion checks in its transaction that the blob is still unneeded, and a reader whose blob has gone looks it
    up again.
    """

    cycles: int
    grace_s: int


CAREFUL = Margins(cycles=2, grace_s=24 * 3600)
AT_ONCE = Margins(cycles=1, grace_s=0)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or with `dry_run` would do.

    `freeable_bytes` is what becomes free in the end: now, and once the garbage that waits is old enough.
    """

    freed_bytes: int
    freeable_bytes: int
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
    only_looks = dry_run and parts.keyring.read_only  # it can't take a lease, and needs none
    with (
        parts.spending_reserve(),
        contextlib.nullcontext() if only_looks else parts.leases.hold(SCOPE, "gc", lock_wait_s),
    ):
        if not dry_run:
            parts.recover()
            with locked(parts.root / KEYS_DIR):
                sweep_unfinished(parts.root, parts.disk)
        outdated = _outdated(parts, retention, now_s)
        for version in outdated if not dry_run else ():
            with contextlib.suppress(Conflict):  # somebody else removed it meanwhile
                drop(parts.names, version)
        dropped = tuple(version.text for version in outdated)
        if dry_run:
            return _foretell(parts, margins, outdated, dropped, now_s)
        survey = foreclose_abandoned(parts)
        due, waiting = _sort(survey.unneeded, margins, now_s)
        cycle = parts.garbage.next_cycle()
        parts.garbage.condemn([key for key, row in waiting if not _stamped(row, now_s)], cycle, now_s)
        deleted = parts.garbage.delete(key for key, _ in due)
        keys = shred(parts)
        # Records that were committed since the survey lie past the lengths that it saw, so they are safe.
        survey.forget(deleted)
        freed = reclaim(parts.directory, survey, parts.garbage, parts.disk, dry_run=False)
        kept = survey.blobs - len(deleted)
        waits = sum(row.place.record_bytes for _, row in waiting)
        total = freed.freed_bytes + waits
        return Collected(freed.freed_bytes, total, len(deleted), kept, len(waiting), freed.segments, dropped, keys)


def _outdated(parts: Parts, retention: Retention, now_s: int) -> list[StoredVersion]:
    if retention == KEEP_ALL:  # no version has to be readable for this, so none is read
        return []
    return choose(list(parts.names.all()), retention, now_s, lambda version: parts.names.manifest(version).blobs)


def _foretell(
    parts: Parts, margins: Margins, outdated: Sequence[StoredVersion], dropped: tuple[str, ...], now_s: int
) -> Collected:
    """Return what a collection would do."""
    survey = parts.garbage.survey()
    survey.forget(version.row.place for version in outdated)
    survey.unneeded += [(b"", row) for row in released(parts.names, outdated)]
    due, waiting = _sort(survey.unneeded, margins, now_s)
    survey.forget(row.place for _, row in due)
    seen = reclaim(parts.directory, survey, parts.garbage, parts.disk, dry_run=True)
    total = seen.freed_bytes + sum(row.place.record_bytes for _, row in waiting)
    keys = len({(key, row.place.slot) for key, row in due}) + len(outdated)
    kept = survey.blobs - len(due)
    return Collected(seen.freed_bytes, total, len(due), kept, len(waiting), seen.segments, dropped, keys)


def _sort(
    unneeded: Sequence[tuple[bytes, BlobRow]], margins: Margins, now_s: int
) -> tuple[list[tuple[bytes, BlobRow]], list[tuple[bytes, BlobRow]]]:
    """Return the unneeded rows that are due for deletion, and those that have to wait."""
    due: list[tuple[bytes, BlobRow]] = []
    waiting: list[tuple[bytes, BlobRow]] = []
    for key, row in unneeded:
        old = _stamped(row, now_s) and now_s - row.condemned_s >= margins.grace_s
        (due if margins.cycles < 2 or old else waiting).append((key, row))
    return due, waiting


def _stamped(row: BlobRow, now_s: int) -> bool:
    """Say whether an earlier collection condemned a blob.

    A stamp from the future means that the clock was set back since. It says nothing, and the blob is stamped anew.
    """
    return row.condemned_cycle > 0 and row.condemned_s <= now_s
