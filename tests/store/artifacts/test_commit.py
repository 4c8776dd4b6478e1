"""Commit: a label that has this very content stays one version, and blobs of a failed attempt stay or go."""

import pytest

from arstore.store.artifacts.commit import Wish, owning, storing
from arstore.store.artifacts.cuts import cut_file, group_cuts
from arstore.store.artifacts.inputs import inputs_from_path
from arstore.store.artifacts.refs import Ref
from arstore.store.errors import BadInput, Fenced, NoRoom, StoreError
from arstore.store.progress import ignore_progress
from tests.support.room import KIB, Room, room

__all__ = ["room"]  # fixtures


def test_the_same_content_under_its_label_is_one_version(room: Room) -> None:
    source = room.source(1, 2)
    first = room.store.put(source, name="a@old")
    again = room.store.put(source, name="a@old", pin=True)
    assert (again.summary.version, again.blobs_new, again.blobs_reused) == (1, 0, 2)
    assert (again.bytes_in, again.bytes_stored) == (first.bytes_in, 0)
    [version] = room.store.ls()
    assert version.summary.pinned


def test_without_a_label_the_same_content_is_a_version_of_its_own(room: Room) -> None:
    results = [room.store.put(room.source(1), name="a") for _ in range(2)]
    assert [result.summary.version for result in results] == [1, 2]
    assert [result.blobs_reused for result in results] == [0, 1]


@pytest.mark.parametrize(("error", "kept"), [(StoreError, 1), (KeyboardInterrupt, 1), (NoRoom, 0)])
def test_blobs_of_a_failed_attempt_stay_unless_there_is_no_room(
    room: Room, error: type[BaseException], kept: int
) -> None:
    parts, wish = room.store._parts.put, Wish(Ref("a"), "file", ())
    raised = error("place", "why") if issubclass(error, StoreError) else error()

    def fail() -> None:
        with storing(parts, wish, ignore_progress) as ingest:
            [file] = inputs_from_path(room.source(1), (), look_inside=False).files
            ingest.run(list(group_cuts(file.source, cut_file(file))))
            raise raised

    with pytest.raises(error):
        fail()
    assert room.store.stats().blobs == kept
    room.put("a", 1)
    room.check({"a": room.source(1)})


def test_an_unknown_codec_is_refused(room: Room) -> None:
    with pytest.raises(BadInput, match="wanted one of auto, stored, zstd, plane"):
        room.store.put(room.source(1), name="a", codec="gzip")
    assert room.store.ls() == []


def test_a_version_record_that_does_not_fit_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arstore.store.artifacts.commit.MANIFEST_MAX_BYTES", KIB // 4)
    with pytest.raises(BadInput, match="at most 256 are allowed"):
        room.put("a", *range(8))
    assert room.store.ls() == []


def test_a_name_has_one_writer_unless_several_are_asked_for(room: Room) -> None:
    parts, alone = room.store._parts.put, Wish(Ref("a"), "file", ())
    several, other = Wish(Ref("a"), "file", (), multi_writer=True), Wish(Ref("b"), "file", ())
    with owning(parts, alone) as lease, owning(parts, several) as none, owning(parts, other):
        assert lease is not None
        assert none is None
        with pytest.raises(Fenced), owning(parts, alone):
            pytest.fail("two writers own one name")
    with owning(parts, alone):
        pass
