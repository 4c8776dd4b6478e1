"""Counts written anew: how many versions need each blob and claim each identity.

`restore` writes them into an empty catalog. `recount` corrects them where the rows may be wrong.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import replace

from ...formats.catalog import QUARANTINED, BlobRow, Place, VersionRow, pack_newest, parse_blob, parse_version
from ...formats.digest import Digest
from ...formats.manifest import Needs
from ...formats.row_keys import quarantines_key
from .catalog import Catalog
from .changes import Superseded
from .identities import TABLE as IDENTITIES
from .identities import Claims, claim
from .key_slots import doom
from .tables import Rows
from .usage import account, count_quarantines, mark, write_usage

Versions = Mapping[tuple[str, int], tuple[VersionRow, Claims]]


def restore(catalog: Catalog, blobs: Mapping[Digest, BlobRow], versions: Versions) -> None:
    """Write the rows of a tenant into an empty catalog. Of two versions that claim an identity, the first gets it."""
    keys = catalog.keys

    def change(rows: Rows) -> None:
        places = [blob.place for blob in blobs.values()]
        for digest, blob in blobs.items():
            rows.put("blobs", keys.blob(digest), blob.packed())
        if any(blob.state == QUARANTINED for blob in blobs.values()):
            mark(rows, quarantines_key(catalog.tenant))
        for (name, version), (row, claims) in versions.items():
            claimed = claim(rows, keys, claims)
            rows.put("versions", keys.version(name, version), replace(row, claimed=claimed).packed())
            places.append(row.place)
        for name, version in sorted(versions):
            rows.put("names", keys.name(name), pack_newest(version))
        write_usage(rows, catalog.tenant, sum(place.record_bytes for place in places))

    catalog.tables.write(change)


def recount(catalog: Catalog, needs: Mapping[Place, Needs], *, dry_run: bool = False) -> int:
    """Set how many versions need each blob of a tenant and claim each identity; return how many rows said otherwise.

    `needs` has what every version needs, by the place of its record. Raises Superseded if the catalog has other
    versions by now. Blobs that nothing needs stay as garbage.
    """
    counts = Counter(digest for version_needs in needs.values() for digest in version_needs.blobs)
    counted = {catalog.keys.blob(digest): count for digest, count in counts.items()}

    def change(rows: Rows) -> int:
        versions = {key: parse_version(value) for key, value in rows.scan("versions", catalog.keys.prefix)}
        if {row.place for row in versions.values()} != needs.keys():
            raise Superseded
        blobs = ((key, parse_blob(value)) for key, value in rows.scan("blobs", catalog.keys.prefix))
        wrong = [(key, blob) for key, blob in blobs if blob.refs != counted.get(key, 0)]
        for key, blob in wrong:
            rows.put("blobs", key, blob.referred(counted.get(key, 0) - blob.refs).packed())
        changed = len(wrong) + _claim_anew(rows, catalog, versions, needs)
        if dry_run:
            raise _Undone(changed)
        return changed

    try:
        return catalog.tables.write(change)
    except _Undone as undone:
        return undone.changed


class _Undone(Exception):
    """Raised to end a transaction with nothing changed."""

    def __init__(self, changed: int) -> None:
        self.changed = changed


def _claim_anew(
    rows: Rows,
    catalog: Catalog,
    versions: Mapping[bytes, VersionRow],
    needs: Mapping[Place, Needs],
) -> int:
    """Write the rows of identities anew; return how many differ from before."""
    before = dict(rows.scan(IDENTITIES, catalog.keys.prefix))
    for key in before:
        rows.delete(IDENTITIES, key)
    # An identity must go on to stand for the same bytes. A version that lost it there holds fewer claims than the one
    # that has it. So the version that holds most claims goes first.
    for key, row in sorted(versions.items(), key=lambda key_and_row: -key_and_row[1].claimed):
        claimed = claim(rows, catalog.keys, needs[row.place].claims)
        if claimed != row.claimed:
            rows.put("versions", key, replace(row, claimed=claimed).packed())
    after = dict(rows.scan(IDENTITIES, catalog.keys.prefix))
    return sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())


def forget_versions(catalog: Catalog, places: Set[Place]) -> None:
    """Delete the rows of versions whose records lie at these places, and doom their keys. Needs stay as counted."""

    def change(rows: Rows) -> None:
        for key, value in list(rows.scan("versions", catalog.keys.prefix)):
            if (place := parse_version(value).place) in places:
                rows.delete("versions", key)
                doom(rows, catalog.tenant, [place.slot])
                account(rows, catalog.tenant, {place.segment: -place.record_bytes})

    catalog.tables.write(change)


def has_quarantines(catalog: Catalog) -> bool:
    """Say whether blobs of a tenant were ever found bad."""
    with catalog.tables.reading() as rows:
        return count_quarantines(rows, catalog.tenant) > 0
