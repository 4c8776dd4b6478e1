"""Counts: how many versions need each blob, written anew where the catalog lost them or can't be believed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

from ..formats.catalog import BlobRow, Place, VersionRow, parse_blob, parse_named, parse_version
from ..formats.digest import Digest
from ..formats.manifest import Needs
from .accounts import account, write_usage
from .catalog import Catalog, Superseded
from .identities import TABLE as IDENTITIES
from .identities import Claims, claim
from .slots import doom
from .tables import Rows


def restore(
    catalog: Catalog, blobs: Mapping[Digest, BlobRow], versions: Mapping[tuple[str, int], VersionRow],
    claims: Iterable[Claims],
) -> None:  # fmt: skip
    """Write the rows of a tenant into an empty catalog."""

    def change(rows: Rows) -> None:
        for digest, row in blobs.items():
            rows.put("blobs", catalog.blob_key(digest), row.packed())
        for (name, version), found in sorted(versions.items()):
            rows.put("versions", catalog.version_key(name, version), found.packed())
            rows.put("names", catalog.name_key(name), version.to_bytes(4, "big"))
        for one in claims:
            claim(rows, catalog.identity_key, one)
        places = [*(row.place for row in blobs.values()), *(row.place for row in versions.values())]
        used = sum(place.record_bytes for place in places)
        write_usage(rows, catalog.prefix, used)

    catalog.tables.write(change)


def recount(catalog: Catalog, seen: Set[Place], needs: Sequence[Needs], *, dry_run: bool = False) -> int:
    """Set how many versions need each blob of a tenant and claim each identity; return how many rows said otherwise.

    `seen` is where the records of all versions lie whose needs these are: raises Superseded if they are others by now.
    Blobs that nothing needs stay, as garbage.
    """
    counts = Counter(digest for one in needs for digest in one.blobs)
    counted = {catalog.blob_key(digest): count for digest, count in counts.items()}

    def change(rows: Rows) -> int:
        if {parse_version(value).place for _, value in rows.scan("versions", catalog.prefix)} != seen:
            raise Superseded
        blobs = ((key, parse_blob(value)) for key, value in rows.scan("blobs", catalog.prefix))
        wrong = [(key, row) for key, row in blobs if row.refs != counted.get(key, 0)]
        for key, row in wrong:
            rows.put("blobs", key, row.referred(counted.get(key, 0) - row.refs).packed())
        changed = len(wrong) + _reclaim(rows, catalog, needs)
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


def _reclaim(rows: Rows, catalog: Catalog, needs: Sequence[Needs]) -> int:
    """Write the rows of identities anew; return how many are others than before."""
    before = dict(rows.scan(IDENTITIES, catalog.prefix))
    for key in before:
        rows.delete(IDENTITIES, key)
    stood = {key: parse_named(value).named for key, value in before.items()}

    def disagrees(need: Needs) -> bool:
        return any(stood.get(catalog.identity_key(id_)) != named for id_, named in need.claims)

    for need in sorted(needs, key=disagrees):  # where versions disagree, identities stand for what they stood for
        claim(rows, catalog.identity_key, need.claims)
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
