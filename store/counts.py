"""Counts: how many versions need each blob, written anew where the catalog lost them or can't be believed."""

from collections import Counter
from collections.abc import Mapping, Set

from ..formats.catalog import BlobRow, Place, VersionRow, parse_blob, parse_version
from ..formats.digest import Digest
from .accounts import account, write_usage
from .catalog import Catalog, Superseded
from .slots import doom
from .tables import Rows


def restore(catalog: Catalog, blobs: Mapping[Digest, BlobRow], versions: Mapping[tuple[str, int], VersionRow]) -> None:
    """Write the rows of a tenant into an empty catalog."""

    def change(rows: Rows) -> None:
        for digest, row in blobs.items():
            rows.put("blobs", catalog.blob_key(digest), row.packed())
        for (name, version), found in sorted(versions.items()):
            rows.put("versions", catalog.version_key(name, version), found.packed())
            rows.put("names", catalog.name_key(name), version.to_bytes(4, "big"))
        places = [*(row.place for row in blobs.values()), *(row.place for row in versions.values())]
        used = sum(place.record_bytes for place in places)
        write_usage(rows, catalog.prefix, used)

    catalog.tables.write(change)


def recount(catalog: Catalog, seen: Set[Place], needs: Counter[Digest], *, dry_run: bool = False) -> int:
    """Set how many versions need each blob of a tenant; return how many rows said otherwise.

    `seen` is where the records of all versions lie whose needs were counted: raises Superseded if they are others by
    now. Blobs that nothing needs stay, as garbage.
    """
    counted = {catalog.blob_key(digest): count for digest, count in needs.items()}

    def change(rows: Rows) -> int:
        if {parse_version(value).place for _, value in rows.scan("versions", catalog.prefix)} != seen:
            raise Superseded
        blobs = ((key, parse_blob(value)) for key, value in rows.scan("blobs", catalog.prefix))
        wrong = [(key, row) for key, row in blobs if row.refs != counted.get(key, 0)]
        for key, row in wrong if not dry_run else ():
            rows.put("blobs", key, row.referred(counted.get(key, 0) - row.refs).packed())
        return len(wrong)

    return catalog.tables.write(change)


def forget_versions(catalog: Catalog, places: Set[Place]) -> None:
    """Delete the rows of versions whose records lie in these places, whatever their names and needs are."""

    def change(rows: Rows) -> None:
        for key, value in list(rows.scan("versions", catalog.prefix)):
            if (place := parse_version(value).place) in places:
                rows.delete("versions", key)
                doom(rows, catalog.tenant, [place.slot])
                account(rows, catalog.prefix, {place.segment: -place.record_bytes})

    catalog.tables.write(change)
