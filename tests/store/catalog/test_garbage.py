"""Garbage: what a survey sees, and that only what nothing needs is condemned or deleted."""

from pathlib import Path

import pytest

from arstore.formats.catalog import BlobRow, SegmentRow
from arstore.formats.manifest import Needs
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.garbage import Garbage
from arstore.store.catalog.key_slots import SlotLedger
from arstore.store.disk import Disk
from tests.support.catalog_rows import INDEX_KEY, RECORD_BYTES, all_rows, digest, key_id, named, new_version, place


@pytest.fixture
def stored(catalog: Catalog) -> Catalog:
    """A catalog in which model@1 needs the blob 1, and nothing needs the blob 2."""
    catalog.new_segment(1)
    claims = ((key_id(1), named(1)),)
    catalog.commit(new_version("model", 1, place(1, 1), {digest(1): place(1, 2)}, claims=claims))
    catalog.adopt({digest(2): place(1, 3)}, {1: 4 * RECORD_BYTES})
    return catalog


@pytest.fixture
def garbage(stored: Catalog) -> Garbage:
    return Garbage(stored.tables)


def blob(catalog: Catalog, number: int) -> BlobRow:
    return catalog.find_blobs([digest(number)])[digest(number)]


def test_a_survey_sees_every_row(stored: Catalog, garbage: Garbage) -> None:
    asked = {(stored.tenant, slot) for slot in (1, 2, 9)} | {(stored.tenant + 1, 3)}
    survey = garbage.survey(asked)
    assert survey.segments == {1: SegmentRow(1, 4 * RECORD_BYTES, 3 * RECORD_BYTES)}
    runs = survey.live[1]
    assert sorted(zip(runs[::2], runs[1::2], strict=True)) == [(at * RECORD_BYTES, RECORD_BYTES) for at in (1, 2, 3)]
    assert survey.blobs == 2
    assert survey.unneeded == [(stored.keys.blob(digest(2)), blob(stored, 2))]
    assert survey.needed_slots == {(stored.tenant, 1), (stored.tenant, 2)}


def test_a_survey_forgets_records(garbage: Garbage) -> None:
    survey = garbage.survey()
    survey.forget([place(1, 3), place(1, 9), place(2, 1)])
    assert sorted(survey.live[1][::2]) == [RECORD_BYTES, 2 * RECORD_BYTES]


def test_cycles_grow(garbage: Garbage) -> None:
    assert [garbage.next_cycle() for _ in range(3)] == [1, 2, 3]


def test_what_is_needed_is_not_condemned(stored: Catalog, garbage: Garbage) -> None:
    garbage.condemn([stored.keys.blob(digest(number)) for number in (1, 2, 3)], 7, 1_700_000_000)
    assert (blob(stored, 1).condemned_cycle, blob(stored, 1).condemned_s) == (0, 0)
    assert (blob(stored, 2).condemned_cycle, blob(stored, 2).condemned_s) == (7, 1_700_000_000)


def test_a_new_need_ends_a_condemnation_and_keeps_the_blob(stored: Catalog, garbage: Garbage) -> None:
    keys = [stored.keys.blob(digest(2))]
    garbage.condemn(keys, 7, 1_700_000_000)
    stored.commit(new_version("other", 1, place(1, 4), {}, reused=frozenset({digest(2)})))
    assert blob(stored, 2).condemned_cycle == 0
    assert garbage.delete(keys) == []
    assert blob(stored, 2).refs == 1


def test_a_deleted_blob_gives_its_bytes_back_and_its_key_is_doomed(
    stored: Catalog, garbage: Garbage, tmp_path: Path
) -> None:
    assert garbage.delete([stored.keys.blob(digest(number)) for number in (1, 2, 3)]) == [place(1, 3)]
    assert stored.find_blobs([digest(1), digest(2)]).keys() == {digest(1)}
    assert SlotLedger(stored.tables, tmp_path / "loans", Disk()).doomed() == {stored.tenant: {3}}
    assert stored.usage_bytes() == stored.segments()[1].live_bytes == 2 * RECORD_BYTES


def test_blobs_of_two_tenants_are_deleted_in_their_own_accounts(
    stored: Catalog, garbage: Garbage, tmp_path: Path
) -> None:
    other = Catalog(stored.tables, stored.tenant + 1, INDEX_KEY)
    other.adopt({digest(5): place(1, 5), digest(6): place(1, 6)}, {})
    garbage.delete([stored.keys.blob(digest(2)), other.keys.blob(digest(5))])
    assert (stored.usage_bytes(), other.usage_bytes()) == (2 * RECORD_BYTES, RECORD_BYTES)
    doomed = SlotLedger(stored.tables, tmp_path / "loans", Disk()).doomed()
    assert doomed == {stored.tenant: {3}, other.tenant: {5}}


def test_only_an_empty_segment_is_dropped(stored: Catalog, garbage: Garbage) -> None:
    length = 4 * RECORD_BYTES
    assert not garbage.is_empty(1, length)
    assert not garbage.drop_segment(1, length)
    stored.drop("model", 1, Needs(frozenset({digest(1)})), shred=True)
    garbage.delete([stored.keys.blob(digest(2))])
    assert not garbage.drop_segment(1, length - 1)  # it grew since somebody looked
    assert not garbage.drop_segment(2, length)
    assert 1 in stored.segments()
    assert garbage.is_empty(1, length)
    assert garbage.drop_segment(1, length)
    assert stored.segments() == {}


def test_a_tenant_that_is_dropped_leaves_nothing_and_others_alone(stored: Catalog, garbage: Garbage) -> None:
    other = Catalog(stored.tables, stored.tenant + 1, INDEX_KEY)
    before_segment = stored.segments()
    before = {row: value for row, value in all_rows(stored).items() if row[0] != "segments"}
    other.commit(new_version("m", 1, place(1, 5), {digest(5): place(1, 6)}, claims=((key_id(5), named(5)),)))
    other.adopt({digest(7): place(1, 7)}, {})
    other.quarantine(digest(7), place(1, 7))
    other.drop("m", 1, Needs(frozenset({digest(5)}), ((key_id(5), named(5)),)))
    garbage.drop_tenant(other.tenant)
    assert {row: value for row, value in all_rows(stored).items() if row[0] != "segments"} == before
    assert stored.segments()[1].live_bytes == before_segment[1].live_bytes
