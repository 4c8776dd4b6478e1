"""Identities: which blobs an identity stands for on this host, kept in the transactions that add and drop versions.

The row of a version says how many of the claims in its manifest it holds: those before the first conflict.

Invariant: a prefix block has a row only while every block before it has one. A version claims all blocks of its
sequence up to one of them, so this follows. It lets bisection find the longest stored prefix. The content of a row
never changes while a version claims it and its blobs are good. Other bytes for the same identity are a conflict, and
the row stays with the first.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from ...formats.catalog import Named, NamedRow, parse_named
from ...formats.row_keys import RowKeys
from .lookup import is_whole
from .tables import Rows

if TYPE_CHECKING:
    from ...formats.identity import KeyId

TABLE = "identities"

Claims: TypeAlias = "Iterable[tuple[KeyId, Named]]"


def claim(rows: Rows, keys: RowKeys, claims: Claims) -> int:
    """Claim the identities of a version in order, and return how many it holds then.

    It stops at the first identity that stands for other good bytes. A row whose bytes are bad or gone is replaced.
    """
    held = 0
    for id_, named in claims:
        row = read_named(rows, keys, id_) or NamedRow(named, 0)
        if row.named != named and is_whole(rows, keys, row.named):
            break
        if row.named != named:
            row = NamedRow(named, 0)
        rows.put(TABLE, keys.identity(id_), NamedRow(named, row.refs + 1).packed(id_))
        held += 1
    return held


def unclaim(rows: Rows, keys: RowKeys, claims: Claims) -> None:
    """Give up the identities that a version holds. A row that no other version claims is deleted."""
    for id_, named in claims:
        row = read_named(rows, keys, id_)
        if row and row.named == named and row.refs <= 1:
            rows.delete(TABLE, keys.identity(id_))
        elif row and row.named == named:
            rows.put(TABLE, keys.identity(id_), NamedRow(named, row.refs - 1).packed(id_))


def read_named(rows: Rows, keys: RowKeys, id_: "KeyId") -> NamedRow | None:
    """Return the row of an identity, None where nothing is stored."""
    value = rows.get(TABLE, keys.identity(id_))
    return parse_named(value, id_) if value is not None else None
