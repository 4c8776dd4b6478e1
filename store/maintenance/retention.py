"""Retention: which versions a collection may drop. Pure: everything it needs is handed in.

By number and age: a version's age is counted back from the newest version of its name, and the newest one stays.

By `max_bytes`: those versions go that are worth least and are enough. The value of a byte is its cost times its chance.
The cost is 1 for weights and files, which are fetched again, and 4 for KV and intermediates, which are computed again.
The chance that a byte is used again halves with every week since its last use. What was used within a day goes last.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from ...formats.manifest import BlobName
from ..artifacts.names import StoredVersion

_COST_PER_BYTE = {"weights": 1.0, "file": 1.0, "kv": 4.0, "intermediate": 4.0}
_HALF_LIFE_S, _FRESH_S = 7 * 24 * 3600, 24 * 3600


@dataclass(frozen=True, slots=True)
class Retention:
    """Which versions may go. If all fields are None, no version may go.

    Versions that are pinned or have a label always stay, because a user asked for them by hand.
    """

    keep_last: int | None = None
    keep_within_s: int | None = None
    max_bytes: int | None = None
    drop_last: bool = False  # the newest version of a name may go, too; it may always go by `max_bytes`


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
    kept = [version for version in versions if version.text not in gone]
    return doomed + _too_many(kept, wanted.max_bytes, now_s, blobs_of)


def _too_many(
    versions: Sequence[StoredVersion],
    max_bytes: int,
    now_s: int,
    blobs_of: Callable[[StoredVersion], Iterable[BlobName]],
) -> list[StoredVersion]:
    """Return the versions that are worth least and without which the rest fits, or all that may go."""
    needs = {version.text: set(blobs_of(version)) for version in versions}
    weight = _Weight(needs)
    over = sum(blob.length for blob in weight.counts) - max_bytes
    free = sorted(
        (version for version in versions if not _is_kept(version)),
        key=lambda version: (_is_fresh(version, now_s), _value(version, now_s), version.text),
    )
    alone = {version.text: weight.alone(version) for version in free}
    chosen: list[StoredVersion] = []
    for version in free:
        if weight.freed >= over:
            break
        weight.drop(version)
        chosen.append(version)
    if weight.freed < over:
        return chosen
    for version in reversed(chosen[:]):  # a later one may be enough without earlier ones
        weight.keep(version)
        if weight.freed >= over:
            chosen.remove(version)
        else:
            weight.drop(version)

    def loss(dropped: Sequence[StoredVersion]) -> tuple[bool, float]:
        fresh = any(_is_fresh(version, now_s) for version in dropped)
        return fresh, sum(_value(version, now_s) * alone[version.text] for version in dropped)

    enough = [[version] for version in free if over > 0 and alone[version.text] >= over]
    return min([chosen, *enough], key=loss)


class _Weight:
    """How many bytes nothing needs any more without some versions."""

    def __init__(self, needs: Mapping[str, Set[BlobName]]) -> None:
        self._needs, self.freed = needs, 0
        self.counts = Counter(blob for blobs in needs.values() for blob in blobs)

    def alone(self, version: StoredVersion) -> int:
        """Return the bytes that only this version needs."""
        return sum(blob.length for blob in self._needs[version.text] if self.counts[blob] == 1)

    def drop(self, version: StoredVersion) -> None:
        for blob in self._needs[version.text]:
            self.counts[blob] -= 1
            self.freed += 0 if self.counts[blob] else blob.length

    def keep(self, version: StoredVersion) -> None:
        for blob in self._needs[version.text]:
            self.freed -= 0 if self.counts[blob] else blob.length
            self.counts[blob] += 1


def _outdated(versions: Sequence[StoredVersion], wanted: Retention, now_s: int) -> list[StoredVersion]:
    """Return the versions that no rule, pin or label keeps. If no rule is given, return none."""
    if wanted.keep_last is None and wanted.keep_within_s is None:
        return []
    doomed = []
    newer: Counter[str] = Counter()
    newest_s: dict[str, int] = {}
    for version in sorted(versions, key=lambda version: (version.summary.name, -version.summary.version)):
        name = version.summary.name
        newer[name] += 1
        from_s = newest_s.setdefault(name, now_s if wanted.drop_last else _created_s(version))
        kept = newer[name] <= max(wanted.keep_last or 0, 0 if wanted.drop_last else 1)
        young = wanted.keep_within_s is not None and from_s - _created_s(version) <= wanted.keep_within_s
        if not (kept or young or _is_kept(version)):
            doomed.append(version)
    return doomed


def _is_kept(version: StoredVersion) -> bool:
    return version.summary.pinned or version.summary.label is not None


def _is_fresh(version: StoredVersion, now_s: int) -> bool:
    return now_s - _used_s(version) < _FRESH_S


def _used_s(version: StoredVersion) -> int:
    return max(version.row.used_s, _created_s(version))


def _value(version: StoredVersion, now_s: int) -> float:
    chance: float = 0.5 ** (max(now_s - _used_s(version), 0) / _HALF_LIFE_S)
    return _COST_PER_BYTE[version.summary.kind] * chance


def _created_s(version: StoredVersion) -> int:
    return int(datetime.fromisoformat(version.summary.created).timestamp())
