"""Drop: versions leave their names at once, and the blobs that nothing else needs become garbage."""

import pytest

from arstore.store.artifacts.drop import recount_needs, released, remove
from arstore.store.artifacts.names import Names
from arstore.store.errors import BadInput
from tests.support.room import Room, room

__all__ = ["room"]  # fixtures


@pytest.fixture
def names(room: Room) -> Names:
    """Give the names of a store with a@1 (seeds 1, 2), a@2 (2, 3) and b@1 (3): one blob a seed."""
    for name, seeds in (("a", (1, 2)), ("a", (2, 3)), ("b", (3,))):
        room.put(name, *seeds)
    return room.store._parts.names


def texts(names: Names) -> list[str]:
    return [version.text for version in names.listed()]


def test_one_version_or_all_of_a_name_are_dropped(names: Names) -> None:
    assert [version.text for version in remove(names, "a", all_versions=False, dry_run=False)] == ["a@2"]
    assert texts(names) == ["a@1", "b@1"]
    remove(names, "a", all_versions=True, dry_run=False)
    assert texts(names) == ["b@1"]


def test_a_dry_run_names_them_and_drops_none(names: Names) -> None:
    assert [version.text for version in remove(names, "a", all_versions=True, dry_run=True)] == ["a@1", "a@2"]
    assert texts(names) == ["a@1", "a@2", "b@1"]


def test_all_versions_of_a_single_version_is_refused(names: Names) -> None:
    with pytest.raises(BadInput, match="names one version"):
        remove(names, "a@1", all_versions=True, dry_run=False)
    assert len(texts(names)) == 3


def test_only_blobs_that_no_other_version_needs_are_released(names: Names) -> None:
    def count(*refs: str) -> int:
        return len(released(names, [names.resolve(ref) for ref in refs]))

    assert [count("a@1"), count("a@2"), count("a@1", "a@2"), count("a@2", "b")] == [1, 0, 2, 1]
    assert count("a@1", "a@2", "b") == 3


def test_counts_stay_right_when_versions_are_dropped(names: Names) -> None:
    remove(names, "a@2", all_versions=False, dry_run=False)
    assert recount_needs(names, dry_run=True) == 0
    left = names.resolve("a@1").row.place
    assert recount_needs(names, {left}, dry_run=True) == 2  # its two blobs would be needed once less
