"""Drop: versions are removed from their names, and the counts of the blobs that they needed go down.

If the record of a version is bad, the needs of all other versions are counted anew.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Set

from ...formats.catalog import BlobRow, Place
from ...formats.digest import Digest
from ...formats.manifest import Needs
from ..catalog.changes import Superseded
from ..catalog.recount import has_quarantines, recount
from ..errors import BadInput, Conflict, Corrupt, NotFound
from .names import Names, StoredVersion

_ATTEMPTS = 100


def remove(names: Names, text: str, *, all_versions: bool, dry_run: bool) -> list[StoredVersion]:
    """Drop one version of a name, or all of them, durably; return the versions that are (or would be) dropped.

    Blobs that nothing else needs stay until they are collected.
    """
    if all_versions and "@" in text:
        raise BadInput(text, "names one version; to drop all, give the bare name")
    addressed = names.addressed(text, all_versions=all_versions)
    for version in addressed if not dry_run else ():
        drop(names, version)
    return addressed


def drop(names: Names, version: StoredVersion) -> None:
    """Drop a version, durably. If its record can't be read, what the other versions need is counted anew."""
    try:
        needs = names.needs(version)
    except Corrupt:
        names.catalog.drop(version.summary.name, version.summary.version, Needs())
        with contextlib.suppress(Corrupt):  # another version is bad, too; 'repair' counts once it is gone
            recount_needs(names)
        return
    names.catalog.drop(version.summary.name, version.summary.version, needs)
    settle_claims(names, [needs])


def settle_claims(names: Names, dropped: Iterable[Needs]) -> None:
    """Count needs anew if one of the dropped versions had claims and a blob was ever in quarantine.

    A put that heals an identity takes it from the version that held it. So counts alone do not say who holds it now.
    """
    if any(needs.claims for needs in dropped) and has_quarantines(names.catalog):
        with contextlib.suppress(Corrupt):
            recount_needs(names)


def recount_needs(names: Names, without: Set[Place] = frozenset(), *, dry_run: bool = False) -> int:
    """Count anew how many versions need each blob, durably; return how many counts were wrong.

    Raises Corrupt if a version can't be read that does not lie in one of the places `without`.
    """
    for _ in range(_ATTEMPTS):
        needs: dict[Place, Needs] = {}
        for version, row in names.catalog.versions():
            needs[row.place] = Needs() if row.place in without else names.needs(names.opened(version, row))
        with contextlib.suppress(Superseded):
            return recount(names.catalog, needs, dry_run=dry_run)
    raise Conflict("repair", "versions kept being added and removed; try again")


def released(names: Names, dropped: Iterable[StoredVersion]) -> list[BlobRow]:
    """Return the rows of blobs that nothing would need once these versions are dropped."""
    counts: Counter[Digest] = Counter()
    for version in dropped:
        with contextlib.suppress(Corrupt, NotFound):
            counts.update(names.needs(version).blobs)
    return [row for digest, row in names.catalog.find_blobs(counts).items() if 0 < row.refs <= counts[digest]]
