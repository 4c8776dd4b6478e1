"""Counts written anew: into an empty catalog, and where rows say something else than the versions need."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from arstore.formats.catalog import QUARANTINED, BlobRow, NamedRow, Place, VersionRow
from arstore.formats.manifest import Needs
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.changes import Superseded
from arstore.store.catalog.identities import read_named
from arstore.store.catalog.key_slots import doomed_slots
from arstore.store.catalog.recount import forget_versions, has_quarantines, recount, restore
from arstore.store.catalog.usage import write_segments
from tests.support.catalog_rows import INDEX_KEY, RECORD_BYTES, all_rows, digest, key_id, named, new_version, place

CLAIMS = ((key_id(1), named(1)),)


@pytest.fixture
def stored(catalog: Catalog) -> Catalog:
    """A catalog in which model@1 needs the blob 1 and claims an identity with it, and nothing needs the blob 2."""
    catalog.new_segment(1)
    catalog.commit(new_version("model", 1, place(1, 1), {digest(1): place(1, 2)}, claims=CLAIMS))
    catalog.adopt({digest(2): place(1, 3)}, {})
    return catalog


def needs_of(stored: Catalog) -> Mapping[Place, Needs]:
    return {place(1, 1): Needs(frozenset({digest(1)}), CLAIMS)}


def set_refs(catalog: Catalog, number: int, refs: int) -> None:
    row = catalog.find_blobs([digest(number)])[digest(number)]
    catalog.tables.write(
        lambda rows: rows.put("blobs", catalog.keys.blob(digest(number)), replace(row, refs=refs).packed())
    )


def test_right_counts_stay(stored: Catalog) -> None:
    before = all_rows(stored)
    assert recount(stored, needs_of(stored)) == 0
    assert all_rows(stored) == before


@pytest.mark.parametrize(("number", "wrong"), [(1, 0), (1, 7), (2, 3)])
def test_a_wrong_count_of_needs_is_set_right(stored: Catalog, number: int, wrong: int) -> None:
    before = all_rows(stored)
    set_refs(stored, number, wrong)
    assert recount(stored, needs_of(stored)) == 1
    assert all_rows(stored) == before


def test_a_lost_identity_is_written_again(stored: Catalog) -> None:
    before = all_rows(stored)
    stored.tables.write(lambda rows: rows.delete("identities", stored.keys.identity(key_id(1))))
    assert recount(stored, needs_of(stored)) == 1
    assert all_rows(stored) == before


def test_a_dry_run_counts_and_changes_nothing(stored: Catalog) -> None:
    set_refs(stored, 1, 7)
    set_refs(stored, 2, 7)
    before = all_rows(stored)
    assert recount(stored, needs_of(stored), dry_run=True) == 2
    assert all_rows(stored) == before


def test_a_version_that_came_or_went_meanwhile_ends_a_recount(stored: Catalog) -> None:
    before = all_rows(stored)
    for needs in ({}, {**needs_of(stored), place(1, 9): Needs()}):
        with pytest.raises(Superseded):
            recount(stored, needs)
    assert all_rows(stored) == before


def test_rows_that_are_restored_are_the_rows_that_were(stored: Catalog) -> None:
    blobs = stored.find_blobs([digest(1), digest(2)])
    [(_, version)] = stored.versions("model")
    other = Catalog(stored.tables, stored.tenant + 1, INDEX_KEY)
    restore(other, blobs, {("model", 1): (replace(version, claimed=0), CLAIMS)})
    assert other.find_blobs([digest(1), digest(2)]) == blobs
    assert other.versions("model") == [(1, version)]
    assert other.last_version("model") == 1
    assert other.usage_bytes() == stored.usage_bytes() == 3 * RECORD_BYTES
    with stored.tables.reading() as rows:
        assert read_named(rows, other.keys, key_id(1)) == NamedRow(named(1), 1)


def test_of_two_restored_versions_the_first_gets_the_identity(catalog: Catalog) -> None:
    blobs = {digest(number): BlobRow(place(1, number), 1) for number in (1, 2)}
    row = VersionRow(place(1, 8), False, b"")
    second = replace(row, place=place(1, 9))
    other_claims = ((key_id(1), named(2)),)
    restore(catalog, blobs, {("model", 1): (row, CLAIMS), ("model", 2): (second, other_claims)})
    assert [version.claimed for _, version in catalog.versions("model")] == [1, 0]
    assert catalog.last_version("model") == 2


def test_restored_blobs_that_are_bad_leave_a_mark(catalog: Catalog) -> None:
    restore(catalog, {digest(1): BlobRow(place(1, 1), 0)}, {})
    assert not has_quarantines(catalog)
    restore(catalog, {digest(2): BlobRow(place(1, 2), 0, QUARANTINED)}, {})
    assert has_quarantines(catalog)


def test_restored_segments_do_not_get_their_numbers_twice(stored: Catalog) -> None:
    segments = stored.segments()
    stored.tables.write(lambda rows: write_segments(rows, segments, 40))
    assert stored.new_segment(1) == 41


def test_a_version_that_is_forgotten_gives_its_bytes_back(stored: Catalog) -> None:
    forget_versions(stored, {place(1, 1), place(1, 9)})
    assert stored.versions() == []
    assert stored.usage_bytes() == 2 * RECORD_BYTES
    with stored.tables.reading() as rows:
        assert doomed_slots(rows, stored.tenant) == {1}
    assert stored.find_blobs([digest(1)])[digest(1)].refs == 1
