"""Changes: what a commit and a drop do to the rows, and that a refused one does nothing."""

import pytest

from arstore.formats.catalog import LIVE
from arstore.formats.digest import Digest
from arstore.formats.manifest import Needs
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.changes import BlobGone, NewVersion, Superseded
from arstore.store.catalog.key_slots import doom, doomed_slots
from arstore.store.catalog.leases import Lease
from arstore.store.errors import Fenced, NoRoom
from tests.support.catalog_rows import RECORD_BYTES, all_rows, digest, key_id, named, new_version, place


@pytest.fixture
def stored(catalog: Catalog) -> Catalog:
    """A catalog in which model@1 needs the blob 1 and claims the identity 1."""
    catalog.new_segment(1)
    catalog.commit(
        new_version("model", 1, place(1, 1), {digest(1): place(1, 2)}, claims=((key_id(1), named(1)),)),
    )
    return catalog


def doomed(catalog: Catalog) -> set[int]:
    with catalog.tables.reading() as rows:
        return doomed_slots(rows, catalog.tenant)


def refs(catalog: Catalog, blob: Digest) -> int:
    return catalog.find_blobs([blob])[blob].refs


@pytest.mark.parametrize(
    ("new", "refusal"),
    [
        (new_version("model", 1, place(1, 3), {}), Superseded),
        (new_version("model", 3, place(1, 3), {}), Superseded),
        (new_version("other", 1, place(1, 3), {digest(2): place(1, 4)}, reused=frozenset({digest(9)})), BlobGone),
        (new_version("other", 1, place(1, 3), {digest(2): place(1, 4)}, quota_bytes=4 * RECORD_BYTES - 1), NoRoom),
        (
            new_version("other", 1, place(1, 3), {digest(2): place(1, 4)}, claims=((key_id(1), named(2)),), join=True),
            BlobGone,
        ),
    ],
    ids=["a taken number", "a number left out", "a blob that is gone", "over the quota", "other bytes to join"],
)
def test_a_refused_commit_changes_nothing(stored: Catalog, new: NewVersion, refusal: type[Exception]) -> None:
    before = all_rows(stored)
    with pytest.raises(refusal):
        stored.commit(new)
    assert all_rows(stored) == before


def test_a_commit_may_fill_the_quota(stored: Catalog) -> None:
    stored.commit(new_version("other", 1, place(1, 3), {digest(2): place(1, 4)}, quota_bytes=4 * RECORD_BYTES))
    assert stored.usage_bytes() == 4 * RECORD_BYTES


def test_a_commit_under_a_lease_that_nobody_holds_is_fenced(stored: Catalog) -> None:
    before = all_rows(stored)
    needs = Needs(frozenset({digest(1)}))
    row = stored.versions("model")[0][1]
    with pytest.raises(Fenced):
        stored.commit(NewVersion("model", 2, row, needs, {}, {}, lease=Lease(stored.scope("model"), bytes(16), 1)))
    assert all_rows(stored) == before


def test_a_blob_that_two_versions_need_is_counted_twice(stored: Catalog) -> None:
    stored.commit(new_version("model", 2, place(1, 3), {}, reused=frozenset({digest(1)})))
    assert refs(stored, digest(1)) == 2
    stored.drop("model", 1, Needs(frozenset({digest(1)})))
    assert refs(stored, digest(1)) == 1


def test_a_commit_names_the_first_identity_that_goes_on_to_stand_for_other_bytes(stored: Catalog) -> None:
    claims = ((key_id(0), named(2)), (key_id(1), named(2)), (key_id(2), named(2)))
    lost = stored.commit(new_version("other", 1, place(1, 3), {digest(2): place(1, 4)}, claims=claims))
    assert lost == key_id(1)
    assert stored.versions("other")[0][1].claimed == 1


def test_a_blob_in_quarantine_is_not_reused_and_the_next_copy_replaces_it(stored: Catalog) -> None:
    stored.quarantine(digest(1), place(1, 2))
    with pytest.raises(BlobGone):
        stored.commit(new_version("other", 1, place(1, 3), {}, reused=frozenset({digest(1)})))
    stored.commit(new_version("other", 1, place(1, 3), {digest(1): place(1, 4)}))
    blob = stored.find_blobs([digest(1)])[digest(1)]
    assert (blob.place, blob.state, blob.refs) == (place(1, 4), LIVE, 2)
    assert doomed(stored) == {2}
    assert stored.usage_bytes() == 3 * RECORD_BYTES


def test_of_two_writers_of_one_blob_the_first_copy_stays(stored: Catalog) -> None:
    stored.commit(new_version("other", 1, place(1, 3), {digest(1): place(1, 4)}))
    assert stored.find_blobs([digest(1)])[digest(1)].place == place(1, 2)
    assert stored.usage_bytes() == 3 * RECORD_BYTES


def test_a_blob_whose_key_is_doomed_is_not_taken_in(stored: Catalog) -> None:
    stored.tables.write(lambda rows: doom(rows, stored.tenant, [7]))
    assert stored.adopt({digest(7): place(1, 7), digest(8): place(1, 8)}, {1: 9 * RECORD_BYTES}) == 1
    assert stored.find_blobs([digest(7), digest(8)]).keys() == {digest(8)}


def test_a_drop_dooms_the_key_of_the_version_and_keeps_its_blobs(stored: Catalog) -> None:
    assert stored.drop("model", 1, Needs(frozenset({digest(1)}), ((key_id(1), named(1)),))) == 0
    assert doomed(stored) == {1}
    assert refs(stored, digest(1)) == 0
    assert stored.usage_bytes() == RECORD_BYTES


def test_a_drop_that_shreds_takes_what_nothing_else_needs(stored: Catalog) -> None:
    stored.commit(new_version("other", 1, place(1, 3), {digest(2): place(1, 4)}, reused=frozenset({digest(1)})))
    assert stored.drop("other", 1, Needs(frozenset({digest(1), digest(2)})), shred=True) == 1
    assert stored.find_blobs([digest(1), digest(2)]).keys() == {digest(1)}
    assert doomed(stored) == {3, 4}
    assert stored.last_version("other") == 0
    assert stored.usage_bytes() == 2 * RECORD_BYTES
    assert stored.segments()[1].live_bytes == 2 * RECORD_BYTES
