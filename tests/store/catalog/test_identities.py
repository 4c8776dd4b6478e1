"""Identities: which of the claims of a version are held, and what is left when versions go."""

import pytest

from arstore.formats.catalog import Named
from arstore.formats.identity import KeyId
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.identities import claim, read_named, unclaim
from tests.support.catalog_rows import digest, key_id, named, place

Claims = list[tuple[KeyId, Named]]


@pytest.fixture
def holding(catalog: Catalog) -> Catalog:
    """A catalog that has the blobs 0 to 9, needed by nothing."""
    catalog.new_segment(1)
    catalog.adopt({digest(number): place(1, number + 1) for number in range(10)}, {})
    return catalog


def claimed(catalog: Catalog, claims: Claims) -> int:
    return catalog.tables.write(lambda rows: claim(rows, catalog.keys, claims))


def rows_of(catalog: Catalog, *ids: KeyId) -> list[tuple[Named, int] | None]:
    with catalog.tables.reading() as rows:
        read = [read_named(rows, catalog.keys, id_) for id_ in ids]
    return [(row.named, row.refs) if row else None for row in read]


def test_claims_end_before_the_first_conflict(holding: Catalog) -> None:
    assert claimed(holding, [(key_id(2), named(2))]) == 1
    assert claimed(holding, [(key_id(1), named(1)), (key_id(2), named(5)), (key_id(3), named(3))]) == 1
    assert rows_of(holding, key_id(1), key_id(2), key_id(3)) == [(named(1), 1), (named(2), 1), None]


def test_equal_claims_are_counted(holding: Catalog) -> None:
    claims: Claims = [(key_id(1), named(1)), (key_id(2), named(1, 2))]
    assert [claimed(holding, claims), claimed(holding, claims)] == [2, 2]
    assert rows_of(holding, key_id(1), key_id(2)) == [(named(1), 2), (named(1, 2), 2)]


def test_an_identity_of_a_bad_blob_is_replaced(holding: Catalog) -> None:
    claimed(holding, [(key_id(1), named(1, 2))])
    holding.quarantine(digest(2), place(1, 3))
    assert claimed(holding, [(key_id(1), named(5))]) == 1
    assert rows_of(holding, key_id(1)) == [(named(5), 1)]


def test_the_last_claim_that_goes_takes_the_row(holding: Catalog) -> None:
    claims: Claims = [(key_id(1), named(1))]
    claimed(holding, claims)
    claimed(holding, claims)
    holding.tables.write(lambda rows: unclaim(rows, holding.keys, claims))
    assert rows_of(holding, key_id(1)) == [(named(1), 1)]
    holding.tables.write(lambda rows: unclaim(rows, holding.keys, claims))
    assert rows_of(holding, key_id(1)) == [None]


def test_a_claim_on_other_bytes_takes_nothing_back(holding: Catalog) -> None:
    claimed(holding, [(key_id(1), named(1))])
    holding.tables.write(lambda rows: unclaim(rows, holding.keys, [(key_id(1), named(2))]))
    assert rows_of(holding, key_id(1)) == [(named(1), 1)]
