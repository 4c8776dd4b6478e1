"""Identities: which blobs an identity stands for on this host, kept in the transactions that add and drop versions.

    identities   tenant u32, keyed hash of the id (20)  -> NamedRow

Invariant: a prefix block has a row only while every block before it has one, for a version claims all blocks of its
sequence or none: so the longest stored prefix is found by bisection. A row's content never changes while a version
claims it; other bytes for the same identity are a conflict, and the row stays with the first.
"""

from collections.abc import Callable, Iterable

from ..formats.catalog import Named, NamedRow, parse_named
from ..formats.identity import KeyId
from .tables import Rows

TABLE = "identities"

Claims = Iterable[tuple[KeyId, Named]]
RowKey = Callable[[KeyId], bytes]


def claim(rows: Rows, row_key: RowKey, claims: Claims) -> KeyId | None:
    """Write or count what a version claims, in order, up to the first identity that stands for other bytes already;
    return that, None if there is none.
    """
    for id_, named in claims:
        row = read_named(rows, row_key(id_)) or NamedRow(named, 0)
        if row.named != named:
            return id_
        rows.put(TABLE, row_key(id_), NamedRow(named, row.refs + 1).packed())
    return None


def unclaim(rows: Rows, row_key: RowKey, claims: Claims) -> None:
    """Take back what a version claimed, as far as it could; what no other claims is gone."""
    for id_, named in claims:
        row = read_named(rows, row_key(id_))
        if row is None or row.named != named:
            return
        if row.refs <= 1:
            rows.delete(TABLE, row_key(id_))
        else:
            rows.put(TABLE, row_key(id_), NamedRow(named, row.refs - 1).packed())


def read_named(rows: Rows, key: bytes) -> NamedRow | None:
    """Return the row of an identity, None where nothing is stored."""
    value = rows.get(TABLE, key)
    return parse_named(value) if value is not None else None
