"""Scrub: read back everything a set of versions needs, check every byte, put what is bad into quarantine."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..formats.catalog import QUARANTINED, Place
from ..formats.digest import Digest
from ..formats.errors import FormatError
from ..formats.record import KIND_BLOB
from .artifact import ReadParts
from .errors import Corrupt
from .fetch import workers_count
from .names import Found, Names
from .progress import Progress
from .records import OpenRecord, corrupt


@dataclass(frozen=True, slots=True)
class Bad:
    """Something that is not as it was stored: what and where, why, and which versions need it."""

    what: str
    why: str
    artifacts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub found. `checked` counts blobs and version records, `checked_bytes` their plaintext."""

    checked: int
    checked_bytes: int
    corrupt: tuple[Bad, ...]
    healed: tuple[str, ...] = ()


def scrub(parts: ReadParts, names: Names, versions: Sequence[Found], *, deep: bool, progress: Progress) -> Scrubbed:
    """Check versions from their records to their last blob; return what was found.

    Every frame's tag, header, footer and padding is checked; `deep` hashes the plaintext as well.
    Bad blobs are quarantined: reads refuse them, and the next put of the same bytes heals them.
    """
    bad: list[Bad] = []
    needed: dict[Digest, list[str]] = {}
    for found in versions:
        try:
            for blob in names.manifest(found).blobs:
                needed.setdefault(blob.digest, []).append(found.text)
        except Corrupt as error:
            bad.append(Bad(error.where, error.why, (found.text,)))
    rows = parts.catalog.find_blobs(needed)
    for digest in needed.keys() - rows.keys():
        bad.append(Bad(f"blob {digest.hex()[:16]}", "is not in the catalog", tuple(needed[digest])))

    total_bytes = sum(row.place.plain_bytes for row in rows.values())

    def check(digest: Digest) -> Bad | None:
        row = rows[digest]
        error = _check(parts, digest, row.place, deep=deep)
        if error and row.state != QUARANTINED:
            parts.catalog.quarantine(digest)
        elif row.state == QUARANTINED and not error:
            parts.catalog.release(digest)
        progress(row.place.plain_bytes, total_bytes)
        return Bad(error.where, error.why, tuple(needed[digest])) if error else None

    with ThreadPoolExecutor(workers_count()) as pool:
        bad += [found for found in pool.map(check, rows) if found]
    return Scrubbed(len(rows) + len(versions), total_bytes, tuple(bad))


def _check(parts: ReadParts, digest: Digest, place: Place, *, deep: bool) -> Corrupt | None:
    try:
        record = OpenRecord(parts.segments, parts.keys, place, KIND_BLOB)
        record.check(digest, parts.keys.tenant.digest_key if deep else None)
    except FormatError as error:
        return corrupt(place, digest, error)
    except Corrupt as error:
        return error
    return None
