"""Retention: which versions a collection may drop. Pure: everything it needs is handed in.

Under `max_bytes` the least valuable versions go first. Value per byte = what a byte costs to make again x the chance
that it is used again: made-again cost by kind (weights and files are fetched: 1; KV and intermediates are computed:
4), chance halving with every week since the last use.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ...formats.manifest import BlobName
from ..artifacts.names import Found

_COST_PER_BYTE = {"weights": 1.0, "file": 1.0, "kv": 4.0, "intermediate": 4.0}
_HALF_LIFE_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Retention:
    """Which versions may go, besides those already dropped. All None: none.

    Pinned ones never do, nor do those that the user gave a label: a name that somebody chose is nobody's to take away.
    """

    keep_last: int | None = None
    keep_within_s: int | None = None
    max_bytes: int | None = None


KEEP_ALL = Retention()


def choose(
    versions: Sequence[Found], wanted: Retention, now_s: int, blobs_of: Callable[[Found], Iterable[BlobName]]
) -> list[Found]:
    """Return the versions to drop: old ones by count and age, then the least valuable until the rest fits."""
    doomed = _outdated(versions, wanted, now_s)
    if wanted.max_bytes is None:
        return doomed
    gone = {found.text for found in doomed}
    needs = {found.text: set(blobs_of(found)) for found in versions if found.text not in gone}
    counts = Counter(blob for blobs in needs.values() for blob in blobs)
    total = sum(blob.length for blob in counts)
    free = [found for found in versions if found.text not in gone and not _is_kept(found)]
    for found in sorted(free, key=lambda one: (_value(one, now_s), one.text)):
        if total <= wanted.max_bytes:
            break
        for blob in needs[found.text]:
            counts[blob] -= 1
            total -= 0 if counts[blob] else blob.length
        doomed.append(found)
    return doomed


def _outdated(versions: Sequence[Found], wanted: Retention, now_s: int) -> list[Found]:
    """Return the versions that neither rule keeps, nor a pin or label; none where neither rule is given."""
    if wanted.keep_last is None and wanted.keep_within_s is None:
        return []
    doomed = []
    newer: Counter[str] = Counter()
    for found in sorted(versions, key=lambda one: (one.summary.name, -one.summary.version)):
        name = found.summary.name
        newer[name] += 1
        kept = wanted.keep_last is not None and newer[name] <= wanted.keep_last
        young = wanted.keep_within_s is not None and now_s - _created_s(found) <= wanted.keep_within_s
        if not (kept or young or _is_kept(found)):
            doomed.append(found)
    return doomed


def _is_kept(found: Found) -> bool:
    return found.summary.pinned or found.summary.label is not None


def _value(found: Found, now_s: int) -> float:
    used_s = max(found.row.used_s, _created_s(found))
    chance: float = 0.5 ** (max(now_s - used_s, 0) / _HALF_LIFE_S)
    return _COST_PER_BYTE[found.summary.kind] * chance


def _created_s(found: Found) -> int:
    return int(datetime.fromisoformat(found.summary.created).timestamp())
