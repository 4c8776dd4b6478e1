"""Retention: which versions a collection may drop. Pure: everything it needs is handed in.

With `max_bytes` the least valuable versions go first. The value of a byte is its cost times its chance. The cost is 1
for weights and files, which are fetched again, and 4 for KV and intermediates, which are computed again. The chance
that a byte is used again halves with every week since its last use.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ...formats.manifest import BlobName
from ..artifacts.names import StoredVersion

_COST_PER_BYTE = {"weights": 1.0, "file": 1.0, "kv": 4.0, "intermediate": 4.0}
_HALF_LIFE_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Retention:
    """Which versions may go. If all fields are None, no version may go.

    Versions that are pinned or have a label always stay, because a user asked for them by hand.
    """

    keep_last: int | None = None
    keep_within_s: int | None = None
    max_bytes: int | None = None


KEEP_ALL = Retention()


def choose(
    versions: Sequence[StoredVersion],
    wanted: Retention,
    now_s: int,
    blobs_of: Callable[[StoredVersion], Iterable[BlobName]],
) -> list[StoredVersion]:
    """Return the versions to drop: first by count and age, then the least valuable ones until the rest fits."""
    doomed = _outdated(versions, wanted, now_s)
    if wanted.max_bytes is None:
        return doomed
    gone = {version.text for version in doomed}
    needs = {version.text: set(blobs_of(version)) for version in versions if version.text not in gone}
    counts = Counter(blob for blobs in needs.values() for blob in blobs)
    total = sum(blob.length for blob in counts)
    free = [version for version in versions if version.text not in gone and not _is_kept(version)]
    for version in sorted(free, key=lambda version: (_value(version, now_s), version.text)):
        if total <= wanted.max_bytes:
            break
        for blob in needs[version.text]:
            counts[blob] -= 1
            total -= 0 if counts[blob] else blob.length
        doomed.append(version)
    return doomed


def _outdated(versions: Sequence[StoredVersion], wanted: Retention, now_s: int) -> list[StoredVersion]:
    """Return the versions that no rule, pin or label keeps. If no rule is given, return none."""
    if wanted.keep_last is None and wanted.keep_within_s is None:
        return []
    doomed = []
    newer: Counter[str] = Counter()
    for version in sorted(versions, key=lambda version: (version.summary.name, -version.summary.version)):
        name = version.summary.name
        newer[name] += 1
        kept = wanted.keep_last is not None and newer[name] <= wanted.keep_last
        young = wanted.keep_within_s is not None and now_s - _created_s(version) <= wanted.keep_within_s
        if not (kept or young or _is_kept(version)):
            doomed.append(version)
    return doomed


def _is_kept(version: StoredVersion) -> bool:
    return version.summary.pinned or version.summary.label is not None


def _value(version: StoredVersion, now_s: int) -> float:
    used_s = max(version.row.used_s, _created_s(version))
    chance: float = 0.5 ** (max(now_s - used_s, 0) / _HALF_LIFE_S)
    return _COST_PER_BYTE[version.summary.kind] * chance


def _created_s(version: StoredVersion) -> int:
    return int(datetime.fromisoformat(version.summary.created).timestamp())
