"""Scrub: reads back all blobs that versions need, checks every byte, and puts bad blobs into quarantine.

Blobs that were checked longest ago come first, and each good one is noted. So if a scrub is killed or runs out of time,
the next one goes on where it ended.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...formats.catalog import BlobRow, Place
from ...formats.digest import Digest
from ...formats.errors import FormatError
from ...formats.record import KIND_BLOB
from ..artifacts.names import Names, StoredVersion
from ..errors import Corrupt, NotFound
from ..progress import Progress
from ..segments.blobs import ReadParts
from ..segments.records import OpenRecord, corrupt
from ..workers import run_all

# Bytes between two notes of good blobs. A killed scrub repeats at most this much. If the rate is lower, a second's
# worth is noted at a time, so that the end of the time is seen.
_NOTE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How deep, how fast and how long to scrub. `deep` hashes plaintexts as well. None is no limit."""

    deep: bool = False
    bytes_per_second: int | None = None
    duration_s: int | None = None


@dataclass(frozen=True, slots=True)
class Bad:
    """A blob or record that is not as it was stored: what it is, why it is bad, and which versions need it."""

    what: str
    why: str
    artifacts: tuple[str, ...]
    digest: Digest | None = None  # of a bad blob; None for a record


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub found. `checked` counts blobs and version records; `left` counts blobs that it had no time for."""

    checked: int
    checked_bytes: int
    left: int
    corrupt: tuple[Bad, ...]
    healed: tuple[str, ...] = ()


def scrub(
    parts: ReadParts, names: Names, wanted: Sequence[StoredVersion] | None, pace: Pace, now_s: int, progress: Progress
) -> Scrubbed:
    """Check versions (None is all) from their records to their last blob; return what was found.

    The tag of every frame is checked, and every header, footer and padding. Bad blobs go into quarantine: reads refuse
    them, and the next put of the same bytes heals them.
    """
    versions = list(names.all()) if wanted is None else wanted
    unopened = names.unopened() if wanted is None else []
    bad, needed = _needed(names, versions)
    bad += [Bad(f"version {version.version} of a name that can't be read", version.why, ()) for version in unopened]
    rows = parts.catalog.find_blobs(needed)
    if missing := needed.keys() - rows.keys():  # perhaps their versions were removed meanwhile
        present = {row.place for _, row in parts.catalog.versions()}
        _, still = _needed(names, [version for version in versions if version.row.place in present])
        bad += [
            Bad(f"blob {digest.hex()[:16]}", "is not in the catalog", tuple(still[digest]))
            for digest in missing & still.keys()
        ]
    total_bytes = sum(row.place.plain_bytes for row in rows.values())
    limit = _Limit(pace)

    def check(digest: Digest) -> Corrupt | None:
        place = rows[digest].place
        limit.wait(place.record_bytes)
        error = _check(parts, digest, place, deep=pace.deep)
        if error:
            row = parts.catalog.find_blobs([digest]).get(digest)
            if row is None or row.place != place:
                error = None  # it was removed or stored anew meanwhile, so nobody needs these bytes
            parts.catalog.quarantine(digest, place)
        progress(place.plain_bytes, total_bytes)
        return error

    checked = checked_bytes = 0
    for batch in _batches(rows, min(_NOTE_BYTES, pace.bytes_per_second or _NOTE_BYTES)):
        if limit.over():
            break
        errors = dict(zip(batch, run_all(check, batch), strict=True))
        parts.catalog.passed({digest: rows[digest].place for digest, error in errors.items() if not error}, now_s)
        bad += [Bad(e.where, e.why, tuple(needed[digest]), digest) for digest, e in errors.items() if e]
        checked += len(batch)
        checked_bytes += sum(rows[digest].place.plain_bytes for digest in batch)
    return Scrubbed(checked + len(versions) + len(unopened), checked_bytes, len(rows) - checked, tuple(bad))


def _needed(names: Names, versions: Sequence[StoredVersion]) -> tuple[list[Bad], dict[Digest, list[str]]]:
    """Return the versions whose own record is bad, and which versions need each blob."""
    bad: list[Bad] = []
    needed: dict[Digest, list[str]] = {}
    for version in versions:
        try:
            for digest in names.needs(version).blobs:
                needed.setdefault(digest, []).append(version.text)
        except NotFound:
            continue  # it was removed meanwhile
        except Corrupt as error:
            bad.append(Bad(error.where, error.why, (version.text,)))
    return bad, needed


def _batches(rows: dict[Digest, BlobRow], batch_bytes: int) -> Iterator[list[Digest]]:
    """Yield digests in batches of about so many bytes, those that were checked longest ago first."""
    batch, size = list[Digest](), 0

    def order(digest: Digest) -> tuple[int, int, int]:
        row = rows[digest]
        return row.checked_s, row.place.segment, row.place.offset

    for digest in sorted(rows, key=order):
        batch.append(digest)
        size += rows[digest].place.plain_bytes
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(parts: ReadParts, digest: Digest, place: Place, *, deep: bool) -> Corrupt | None:
    try:
        record = OpenRecord(parts.segments, parts.keys, place, KIND_BLOB)
        record.check(digest, parts.keys.tenant.digest_key if deep else None)
    except FormatError as error:
        return corrupt(place, digest, error)
    except Corrupt as error:
        return corrupt(place, digest, error.why)
    return None


class _Limit:
    """Limits the rate and the time of reading, both counted from when this is made. Threads share it."""

    def __init__(self, pace: Pace) -> None:
        self._rate, self._duration_s = pace.bytes_per_second, pace.duration_s
        self._started, self._bytes, self._guard = time.monotonic(), 0, threading.Lock()

    def wait(self, length_bytes: int) -> None:
        """Sleep until so many more bytes are within the rate."""
        if self._rate:
            with self._guard:
                due = self._started + self._bytes / self._rate
                self._bytes += length_bytes
            if self._duration_s is not None:
                due = min(due, self._started + self._duration_s)
            time.sleep(max(due - time.monotonic(), 0))

    def over(self) -> bool:
        return self._duration_s is not None and time.monotonic() - self._started >= self._duration_s
