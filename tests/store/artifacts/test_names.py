"""Names: a ref or the beginning of an id leads to one version, or an error says why not."""

import pytest

from arstore.store.artifacts.names import ID_PREFIX_MIN, Names
from arstore.store.artifacts.refs import Ref
from arstore.store.errors import BadInput, Conflict, Corrupt, NotFound
from tests.support.room import DAY_S, Room, room

__all__ = ["room"]  # fixtures


@pytest.fixture
def names(room: Room) -> Names:
    """Give the names of a store that holds a@1, a@2 with the label `old`, a@3 and b@1; the last two are equal."""
    for ref, seed in (("a", 1), ("a@old", 2), ("a", 3), ("b", 3)):
        room.clock.go(60)
        room.put(ref, seed)
    return room.store._parts.names


def test_a_name_leads_to_its_newest_version_and_a_ref_to_the_one_that_it_names(names: Names) -> None:
    assert [names.resolve(text).text for text in ("a", "a@1", "a@old", "b")] == ["a@3", "a@1", "a@2", "b@1"]


def test_an_id_leads_to_the_newest_of_equal_versions(names: Names) -> None:
    id_ = names.resolve("a@3").summary.id
    assert id_ == names.resolve("b").summary.id
    assert [names.resolve(text).text for text in (id_, id_[:ID_PREFIX_MIN])] == ["b@1", "b@1"]
    with pytest.raises(NotFound):
        names.resolve(id_[: ID_PREFIX_MIN - 1])


def test_what_is_not_there_is_refused_with_what_is(names: Names) -> None:
    for text in ("a@9", "a@new"):
        with pytest.raises(NotFound, match="no such version") as refused:
            names.resolve(text)
        assert refused.value.hint == "a has 1, old, 3"
    with pytest.raises(NotFound, match="no such name"):
        names.resolve("c")
    with pytest.raises(NotFound, match="no such name or id"):
        names.resolve("0" * 64)


def test_a_list_goes_by_name_and_version_and_keeps_to_glob_and_kind(names: Names) -> None:
    assert [version.text for version in names.listed()] == ["a@1", "a@2", "a@3", "b@1"]
    assert [version.text for version in names.listed("b*")] == ["b@1"]
    assert names.listed(kind="weights") == []
    assert len(names.listed(kind="file")) == 4


def test_a_removal_means_one_version_or_all_of_a_bare_name(names: Names) -> None:
    def addressed(text: str, all_versions: bool) -> list[str]:
        return [version.text for version in names.addressed(text, all_versions=all_versions)]

    assert addressed("a", False) == ["a@3"]
    assert addressed("a", True) == ["a@1", "a@2", "a@3"]
    assert addressed("a@old", False) == ["a@2"]
    with pytest.raises(NotFound):
        addressed("c", True)


def test_a_label_is_free_taken_by_the_same_or_taken_by_other_content(names: Names) -> None:
    from arstore.formats.manifest import ManifestId

    old, other = (ManifestId(bytes.fromhex(names.resolve(text).summary.id)) for text in ("a@old", "a@1"))
    assert names.check_free(Ref("a", label="new"), old) is None
    same = names.check_free(Ref("a", label="old"), old)
    assert same
    assert same.text == "a@2"
    with pytest.raises(Conflict):
        names.check_free(Ref("a", label="old"), other)


def test_a_use_is_noted_once_an_hour(names: Names, room: Room) -> None:
    def used_s() -> int:
        return names.resolve("b").row.used_s

    start_s = room.store._parts.now_s + DAY_S
    for after_s, noted_s in ((0, start_s), (3599, start_s), (3600, start_s + 3600)):
        names.note_use(names.resolve("b"), start_s + after_s)
        assert used_s() == noted_s


def test_an_id_prefix_that_fits_two_artifacts_is_refused(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = sorted({version.summary.id for version in names.all()})
    assert len(ids) == 3
    monkeypatch.setattr("arstore.store.artifacts.names.ID_PREFIX_MIN", 0)
    with pytest.raises(BadInput, match="give more digits"):
        names._by_id("")


def test_a_version_whose_key_is_gone_stops_no_listing_and_is_removed_by_its_number(names: Names) -> None:
    row = names.resolve("a@1").row
    assert names.unopened() == []
    names._keys.keyring.destroy({names._keys.number: [row.place.slot]})
    assert [(version.version, version.row) for version in names.unopened()] == [(1, row)]
    assert [version.text for version in names.listed()] == ["a@2", "a@3", "b@1"]
    with pytest.raises(Corrupt):
        names.resolve("a@1")
    [blank] = names.addressed("a@1", all_versions=False)
    assert (blank.text, blank.summary.kind, blank.row) == ("a@1", "unknown", row)
