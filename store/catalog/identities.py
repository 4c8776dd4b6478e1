"""Identities: which blobs an identity stands for on this host, kept in the transactions that add and drop versions.

    identities   tenant u32, keyed hash of the id (20)  -> NamedRow

A version's row says how many of the claims in its manifest it holds: those before the first conflict.

Invariant: a prefix block has a row only while every block before it has one, for a version claims all blocks of its
sequence up to one: so the longest stored prefix is found by bisection. A row's content never changes while a version
claims it and its blobs are good; other bytes for the same identity are a conflict, and the row stays with the first.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from ...formats.catalog import Named, NamedRow, parse_named
from .tables import Rows

if TYPE_CHECKING:
    from ...formats.identity import KeyId

TABLE = "identities"

Claims: TypeAlias = "Iterable[tuple[KeyId, Named]]"
RowKey: TypeAlias = "Callable[[KeyId], bytes]"


def claim(rows: Rows, row_key: RowKey, claims: Claims, is_whole: Callable[[Named], bool]) -> int:
    """Write or count what a version claims, in order, up to the first identity that stands for other bytes already;
    return how many it holds then. What stands for bytes that are lost gives way.
    """
    held = 0
    for id_, named in claims:
        row = read_named(rows, row_key, id_) or NamedRow(named, 0)
        if row.named != named and is_whole(row.named):
            break
        if row.named != named:
            row = NamedRow(named, 0)
        rows.put(TABLE, row_key(id_), NamedRow(named, row.refs + 1).packed(id_))
        held += 1
    return held


def unclaim(rows: Rows, row_key: RowKey, claims: Claims) -> None:
    """Take back what a version holds; what no other does is gone."""
    for id_, named in claims:
        row = read_named(rows, row_key, id_)
        if row and row.named == named and row.refs <= 1:
            rows.delete(TABLE, row_key(id_))
        elif row and row.named == named:
            rows.put(TABLE, row_key(id_), NamedRow(named, row.refs - 1).packed(id_))


def read_named(rows: Rows, row_key: RowKey, id_: "KeyId") -> NamedRow | None:
    """Return the row of an identity, None where nothing is stored."""
    value = rows.get(TABLE, row_key(id_))
    return parse_named(value, id_) if value is not None else None
