"""Usage: live bytes, durable lengths and counters."""

import pytest

from arstore.formats.catalog import SegmentRow
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.tables import Tables
from arstore.store.catalog.usage import Marks, account, count_quarantines, extend_segments, mark
from arstore.store.errors import Corrupt
from tests.support.catalog_rows import all_rows, digest, place


def test_a_segment_is_never_noted_shorter(catalog: Catalog) -> None:
    catalog.new_segment(1)
    for length in (100, 40, 300):
        catalog.tables.write(lambda rows, length=length: extend_segments(rows, {1: length}))  # type: ignore[misc]
    assert catalog.segments() == {1: SegmentRow(1, 300, 0)}


def test_bytes_are_counted_in_the_segment_and_the_tenant(catalog: Catalog) -> None:
    assert [catalog.new_segment(1), catalog.new_segment(1)] == [1, 2]
    catalog.tables.write(lambda rows: account(rows, catalog.tenant, {1: 500, 2: 70}))
    catalog.tables.write(lambda rows: account(rows, catalog.tenant, {1: -200}))
    assert {segment: row.live_bytes for segment, row in catalog.segments().items()} == {1: 300, 2: 70}
    assert catalog.usage_bytes() == 370


def test_counts_do_not_fall_below_nothing(catalog: Catalog) -> None:
    catalog.new_segment(1)
    catalog.tables.write(lambda rows: account(rows, catalog.tenant, {1: -1}))
    assert (catalog.segments()[1].live_bytes, catalog.usage_bytes()) == (0, 0)


def test_a_segment_without_a_row_is_corrupt_and_changes_nothing(catalog: Catalog) -> None:
    catalog.new_segment(1)
    before = all_rows(catalog)
    with pytest.raises(Corrupt, match="segment 2"):
        catalog.tables.write(lambda rows: account(rows, catalog.tenant, {1: 5, 2: 5}))
    assert all_rows(catalog) == before


def test_missing_blobs_lie_in_no_segment(catalog: Catalog) -> None:
    catalog.tables.write(lambda rows: account(rows, catalog.tenant, {0: 0}))
    assert catalog.usage_bytes() == 0


def test_leftovers_that_came_after_a_look_are_not_cleared(catalog: Catalog, tables: Tables) -> None:
    marks = Marks(tables, catalog.tenant)
    catalog.new_segment(1)
    catalog.adopt({digest(1): place(1, 1)}, {})
    seen = marks.leftovers()
    catalog.adopt({digest(1): place(1, 1)}, {})  # nothing new
    assert marks.leftovers() == seen == 1
    catalog.adopt({digest(2): place(1, 2)}, {})
    marks.leftovers_cleared(seen)
    assert marks.leftovers() == 2
    marks.leftovers_cleared(2)
    assert marks.leftovers() == 0
    assert Marks(tables, catalog.tenant + 1).leftovers() == 0


def test_blobs_found_bad_are_counted_by_tenant(catalog: Catalog) -> None:
    catalog.new_segment(1)
    catalog.adopt({digest(1): place(1, 1)}, {})
    catalog.quarantine(digest(1), place(1, 1))
    with catalog.tables.reading() as rows:
        assert [count_quarantines(rows, tenant) for tenant in (catalog.tenant, catalog.tenant + 1)] == [1, 0]


def test_a_mark_adds_one(tables: Tables) -> None:
    for _ in range(2):
        tables.write(lambda rows: mark(rows, b"seen"))
    with tables.reading() as rows:
        assert rows.get("counters", b"seen") == (2).to_bytes(8, "little")
