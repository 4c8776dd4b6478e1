"""Catalog: one tenant's rows as its methods give them back."""

import pytest

from arstore.formats.catalog import LIVE, QUARANTINED, SegmentRow
from arstore.formats.manifest import Needs
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.tables import Tables
from arstore.store.errors import Conflict
from tests.support.catalog_rows import INDEX_KEY, RECORD_BYTES, all_rows, digest, new_version, place


def put(catalog: Catalog, name: str, number: int) -> None:
    """Commit the next version of a name, with one new blob of this number in the segment 1."""
    version = catalog.last_version(name) + 1
    catalog.commit(new_version(name, version, place(1, 2 * number), {digest(number): place(1, 2 * number + 1)}))


def test_a_committed_version_and_its_blob_are_found(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    blobs = catalog.find_blobs([digest(1), digest(2)])
    assert {found: (blob.place, blob.refs, blob.state) for found, blob in blobs.items()} == {
        digest(1): (place(1, 3), 1, LIVE)
    }
    assert list(catalog.all_blobs()) == [blobs[digest(1)]]
    assert [(version, row.place) for version, row in catalog.versions("model")] == [(1, place(1, 2))]
    assert catalog.usage_bytes() == 2 * RECORD_BYTES
    assert catalog.segments() == {1: SegmentRow(1, 4 * RECORD_BYTES, 2 * RECORD_BYTES)}


def test_versions_come_in_the_order_of_their_numbers(catalog: Catalog) -> None:
    catalog.new_segment(1)
    for number in range(300):
        put(catalog, "model", number)
    assert [version for version, _ in catalog.versions("model")] == list(range(1, 301))
    put(catalog, "another", 300)
    assert len(catalog.versions()) == 301
    assert len(catalog.versions("model")) == 300


def test_a_version_number_is_not_given_twice_after_a_drop(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    catalog.drop("model", 1, Needs(frozenset({digest(1)})))
    assert catalog.versions("model") == []
    assert catalog.last_version("model") == 1
    assert catalog.find_blobs([digest(1)])[digest(1)].refs == 0


def test_two_tenants_do_not_find_each_others_rows(tables: Tables, catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    other = Catalog(tables, catalog.tenant + 1, INDEX_KEY)
    assert other.find_blobs([digest(1)]) == {}
    assert other.versions() == []
    assert other.last_version("model") == 0
    assert other.usage_bytes() == 0
    assert other.segments() == catalog.segments()


def test_segment_ids_grow(catalog: Catalog) -> None:
    assert [catalog.new_segment(lifetime) for lifetime in (0, 1, 2)] == [1, 2, 3]
    assert {segment: row.lifetime for segment, row in catalog.segments().items()} == {1: 0, 2: 1, 3: 2}


def test_a_bad_blob_is_in_quarantine_until_it_passes(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    catalog.quarantine(digest(1), place(1, 3))
    assert catalog.find_blobs([digest(1)])[digest(1)].state == QUARANTINED
    catalog.passed({digest(1): place(1, 3)}, 1_700_000_000)
    blob = catalog.find_blobs([digest(1)])[digest(1)]
    assert (blob.state, blob.checked_s, blob.refs) == (LIVE, 1_700_000_000, 1)


def test_what_was_read_at_an_old_place_changes_nothing(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    before = all_rows(catalog)
    catalog.quarantine(digest(1), place(1, 9))
    catalog.passed({digest(1): place(1, 9), digest(2): place(1, 3)}, 1_700_000_000)
    assert all_rows(catalog) == before


def test_only_the_place_of_the_row_is_live(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    assert catalog.live_slots({digest(1): place(1, 3), digest(2): place(1, 4)}) == {3}
    assert catalog.live_slots({digest(1): place(1, 9)}) == set()


def test_a_version_is_pinned_and_used(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    catalog.set_pinned("model", 1, True)
    catalog.set_used("model", 1, 1_700_000_000)
    [(_, row)] = catalog.versions("model")
    assert (row.pinned, row.used_s, row.summary) == (True, 1_700_000_000, b"summary")


def test_a_version_that_is_gone_is_a_conflict(catalog: Catalog) -> None:
    catalog.new_segment(1)
    put(catalog, "model", 1)
    before = all_rows(catalog)
    for change in (
        lambda: catalog.set_pinned("model", 2, True),
        lambda: catalog.set_used("model", 2, 1),
        lambda: catalog.drop("model", 2, Needs()),
    ):
        with pytest.raises(Conflict, match="model@2"):
            change()
    assert all_rows(catalog) == before
