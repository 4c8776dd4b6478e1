"""Counts: how many versions need each blob, written anew where the catalog lost them or can't be believed."""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import replace

from ...formats.catalog import QUARANTINED, BlobRow, Place, VersionRow, parse_blob, parse_version
from ...formats.digest import Digest
from ...formats.manifest import Needs
from .catalog import Catalog, Superseded
from .identities import TABLE as IDENTITIES
from .identities import Claims
from .key_slots import doom
from .tables import Rows
from .usage import QUARANTINES, account, count, mark, write_usage


def restore(
    catalog: Catalog, blobs: Mapping[Digest, BlobRow],
    versions: Mapping[tuple[str, int], tuple[VersionRow, Claims]],
) -> None:  # fmt: skip
    """Write the rows of a tenant into an empty catalog; of two versions that claim an identity, the first gets it."""

    def change(rows: Rows) -> None:
        places = [row.place for row in blobs.values()]
        for digest, row in blobs.items():
            rows.put("blobs", catalog.blob_key(digest), row.packed())
        if any(row.state == QUARANTINED for row in blobs.values()):
            mark(rows, QUARANTINES + catalog.prefix)
        for (name, version), (found, claims) in versions.items():
            claimed = catalog.claim(rows, claims)
            rows.put("versions", catalog.version_key(name, version), replace(found, claimed=claimed).packed())
            places.append(found.place)
        for name, version in sorted(versions):
            rows.put("names", catalog.name_key(name), version.to_bytes(4, "big"))
        write_usage(rows, catalog.prefix, sum(place.record_bytes for place in places))

    catalog.tables.write(change)


def recount(catalog: Catalog, needs: Mapping[Place, Needs], *, dry_run: bool = False) -> int:
    """Set how many versions need each blob of a tenant and claim each identity; return how many rows said otherwise.

    `needs` are those of every version, by the place of its record: raises Superseded if there are others by now.
    Blobs that nothing needs stay, as garbage.
    """
    counts = Counter(digest for one in needs.values() for digest in one.blobs)
    counted = {catalog.blob_key(digest): count for digest, count in counts.items()}

    def change(rows: Rows) -> int:
        versions = {key: parse_version(value) for key, value in rows.scan("versions", catalog.prefix)}
        if {row.place for row in versions.values()} != needs.keys():
            raise Superseded
        blobs = ((key, parse_blob(value)) for key, value in rows.scan("blobs", catalog.prefix))
        wrong = [(key, row) for key, row in blobs if row.refs != counted.get(key, 0)]
        for key, row in wrong:
            rows.put("blobs", key, row.referred(counted.get(key, 0) - row.refs).packed())
        changed = len(wrong) + _reclaim(rows, catalog, versions, needs)
        if dry_run:
            raise _Undone(changed)
        return changed

    try:
        return catalog.tables.write(change)
    except _Undone as undone:
        return undone.changed


class _Undone(Exception):
    """Ends a transaction without a trace."""

    def __init__(self, changed: int) -> None:
        self.changed = changed


def _reclaim(
    rows: Rows, catalog: Catalog, versions: Mapping[bytes, VersionRow], needs: Mapping[Place, Needs]
) -> int:  # fmt: skip
    """Write the rows of identities anew; return how many are others than before."""
    before = dict(rows.scan(IDENTITIES, catalog.prefix))
    for key in before:
        rows.delete(IDENTITIES, key)
    # Where versions disagree, identities stand for what they stood for: whoever holds a claim held more than its depth.
    for key, row in sorted(versions.items(), key=lambda one: -one[1].claimed):
        claimed = catalog.claim(rows, needs[row.place].claims)
        if claimed != row.claimed:
            rows.put("versions", key, replace(row, claimed=claimed).packed())
    after = dict(rows.scan(IDENTITIES, catalog.prefix))
    return sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())


def forget_versions(catalog: Catalog, places: Set[Place]) -> None:
    """Delete the rows of versions whose records lie in these places, whatever their names and needs are."""

    def change(rows: Rows) -> None:
        for key, value in list(rows.scan("versions", catalog.prefix)):
            if (place := parse_version(value).place) in places:
                rows.delete("versions", key)
                doom(rows, catalog.tenant, [place.slot])
                account(rows, catalog.prefix, {place.segment: -place.record_bytes})

    catalog.tables.write(change)


def has_quarantines(catalog: Catalog) -> bool:
    """Say whether blobs of a tenant were ever found bad."""
    with catalog.tables.reading() as rows:
        return count(rows, QUARANTINES + catalog.prefix) > 0
