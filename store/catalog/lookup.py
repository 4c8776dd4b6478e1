"""Look-ups: one row of a tenant by what it is about, inside a transaction."""

from ...formats.catalog import LIVE, BlobRow, Named, VersionRow, parse_blob, parse_newest, parse_version
from ...formats.digest import Digest
from ...formats.row_keys import RowKeys
from ..errors import Conflict
from .tables import Rows


def read_blob(rows: Rows, keys: RowKeys, digest: Digest) -> BlobRow | None:
    """Return the row of a blob, None where there is none. The blob may be in quarantine."""
    value = rows.get("blobs", keys.blob(digest))
    return parse_blob(value) if value is not None else None


def read_version(rows: Rows, keys: RowKeys, name: str, version: int) -> VersionRow:
    """Return the row of a version; raise Conflict if it is gone."""
    value = rows.get("versions", keys.version(name, version))
    if value is None:
        raise Conflict(f"{name}@{version}", "was removed by somebody else")
    return parse_version(value)


def newest_version(rows: Rows, keys: RowKeys, name: str) -> int:
    """Return the highest version number ever given under a name, 0 if none."""
    value = rows.get("names", keys.name(name))
    return parse_newest(value) if value is not None else 0


def is_whole(rows: Rows, keys: RowKeys, named: Named) -> bool:
    """Say whether every blob of an identity is stored and not known to be bad."""
    blobs = [read_blob(rows, keys, digest) for digest in named.blobs]
    return all(blob is not None and blob.state == LIVE for blob in blobs)
