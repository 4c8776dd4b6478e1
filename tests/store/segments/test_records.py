"""Records: cut, moved, swapped or played again, none of them stands in for another."""

import os
import secrets
import shutil
from pathlib import Path

import pytest

from arstore.formats.catalog import BlobRow
from arstore.formats.frames import TAG_BYTES
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES
from arstore.store.access import create_store
from arstore.store.errors import Corrupt
from arstore.store.keys.unlock import Secrets
from arstore.store.store import Store
from tests.support.damage import (
    FRAME_BYTES,
    NAMES,
    World,
    attempt,
    listed,
    of_size,
    pristine,
    sources,
    swap,
    three_frames,
    world,
    write_at,
)

__all__ = ["pristine", "sources", "world"]  # fixtures


def test_a_segment_that_was_cut(world: World) -> None:
    spots = world.spots()
    path = world.segments[0]
    held = path.read_bytes()
    mine = [spot for spot in spots if spot.path == path]
    near = [spot.offset + more for spot in mine for more in (-1, 0, 1, HEADER_BYTES, ALIGN_BYTES)]
    for length in sorted({0, 1, ALIGN_BYTES - 1, ALIGN_BYTES, *near, len(held) - 1}):
        os.truncate(path, min(length, len(held)))
        for name in ("model", "big"):
            whole = max(spot.end for spot in mine if spot.artifact == name) <= length
            refused = attempt(world, name)
            assert refused is None if whole else isinstance(refused, Corrupt), (name, length)
            if refused:
                assert str(path) in str(refused)
            assert (world.verify(name).corrupt == ()) == whole
        path.write_bytes(held)
    assert world.verify().corrupt == ()


def test_what_is_appended_is_never_read(world: World) -> None:
    path = world.segments[0]
    with path.open("ab") as file:
        file.write(secrets.token_bytes(10_000))
    assert attempt(world, "model") is None
    assert world.verify().corrupt == ()


def test_two_records_that_changed_places(world: World) -> None:
    first, second = of_size(world.spots(), "model", 8192)
    swap(first, second)
    refused = attempt(world, "model")
    assert isinstance(refused, Corrupt)
    assert first.named() in str(refused) or second.named() in str(refused)
    found = world.verify()
    assert {spot for spot in (first, second) for bad in found.corrupt if spot.named() in bad.what} == {first, second}
    assert len(found.corrupt) == 2


def test_two_records_that_changed_segments(world: World) -> None:
    spots = world.spots()
    first, second = of_size(spots, "model", 8192)[0], of_size(spots, "other", 8192)[0]
    assert first.path != second.path
    assert first.header.record_bytes == second.header.record_bytes
    swap(first, second)
    for spot in (first, second):
        refused = attempt(world, spot.artifact)
        assert isinstance(refused, Corrupt)
        assert spot.named() in str(refused)
    assert listed(world.verify()) == {("model@1",), ("other@1",)}


def test_a_record_that_stands_in_for_another(world: World) -> None:
    first, second = of_size(world.spots(), "model", 8192)
    write_at(second.path, second.offset, first.bytes())
    refused = attempt(world, "model")
    assert isinstance(refused, Corrupt)
    assert second.named() in str(refused)
    [bad] = world.verify().corrupt
    assert second.named() in bad.what


@pytest.mark.parametrize("change", ["swap", "repeat"])
def test_frames_of_one_record_out_of_order(world: World, change: str) -> None:
    rows = three_frames(world, encoded=False)
    sealed = FRAME_BYTES + TAG_BYTES
    first, second = rows.offset + HEADER_BYTES, rows.offset + HEADER_BYTES + sealed
    held = rows.bytes()[HEADER_BYTES:]
    write_at(rows.path, second, held[:sealed])
    if change == "swap":
        write_at(rows.path, first, held[sealed : 2 * sealed])
    refused = attempt(world, "big")
    assert isinstance(refused, Corrupt)
    assert rows.named() in str(refused)
    assert listed(world.verify()) == {("big@1",)}


def put_more(world: World) -> None:
    """Put a fourth artifact, which goes to the segment of the first."""
    with world.open() as store:
        store.put(world.source("more"), name="more")


@pytest.mark.parametrize("filled", [False, True], ids=["as it was", "filled with zeros"])
def test_an_old_copy_of_a_segment_that_is_played_again(world: World, filled: bool) -> None:
    path = world.segments[0]
    old = path.read_bytes()
    put_more(world)
    new = path.read_bytes()
    assert len(old) < len(new)
    path.write_bytes(old.ljust(len(new), b"\0") if filled else old)
    assert attempt(world, "model") is None
    assert isinstance(attempt(world, "more"), Corrupt)
    assert listed(world.verify()) == {("more@1",)}
    # What is put now must not end up where readers would refuse it, nor count on what is gone.
    with world.open() as store:
        assert store.put(world.source("more"), name="more").blobs_reused == 0 or filled
        store.verify()
        store.put(world.source("more"), name="more")
    assert attempt(world, "more") is None
    assert attempt(world, "model") is None


@pytest.mark.parametrize("change", ["onto", "exchange", "foreign", "deleted"])
def test_a_segment_under_another_name(world: World, tmp_path: Path, change: str) -> None:
    first, second = world.segments
    hit = {"model", "big"}
    if change == "onto":
        second.replace(first)
        hit = set(NAMES)
    elif change == "exchange":
        aside = first.rename(first.with_name("aside"))
        second.rename(first)
        aside.rename(second)
        hit = set(NAMES)
    elif change == "foreign":
        other = World(tmp_path / "elsewhere", world.sources, world.encrypted)
        create_store(other.root, encrypted=world.encrypted, key_file=world.base / "key" if world.encrypted else None)
        with Store(other.root, held=Secrets(key_file=world.base / "key")) as store:
            store.put(other.source("model"), name="model")
        shutil.copyfile(other.segments[0], first)
    else:
        first.unlink()
    for name in NAMES:
        refused = attempt(world, name)
        assert isinstance(refused, Corrupt) if name in hit else refused is None
        if refused:
            assert str(first) in str(refused) or str(second) in str(refused)
    assert listed(world.verify()) == {(f"{name}@1",) for name in hit}


def test_a_record_that_was_moved_to_another_tenant(world: World) -> None:
    with world.open("stranger") as store:
        store.put(world.source("stranger"), name="theirs", kind="file")
        place = next(store._parts.catalog.all_blobs()).place
    theirs = (world.root / "segments" / f"{place.segment:016x}.seg").read_bytes()
    theirs = theirs[place.offset : place.offset + place.record_bytes]
    [mine] = of_size(world.spots(), "other", 8192)
    write_at(mine.path, mine.offset, theirs)
    refused = attempt(world, "other")
    assert isinstance(refused, Corrupt)
    assert mine.named() in str(refused)
    assert listed(world.verify()) == {("other@1",)}


def test_a_row_that_points_to_another_tenants_record(world: World) -> None:
    """Even a catalog that lies, which takes the store's master key, gives no tenant another's plaintext."""
    with world.open("stranger") as store:
        store.put(world.source("other"), name="theirs", kind="file")
        theirs = next(store._parts.catalog.all_blobs()).place
    with world.open() as store:
        [blob] = store.show("other")[1].blobs
        row = BlobRow(theirs, 1)
        store._parts.catalog.tables.write(
            lambda rows: rows.put("blobs", store._parts.catalog.keys.blob(blob.digest), row.packed())
        )
    assert isinstance(attempt(world, "other"), Corrupt)
    assert listed(world.verify()) == {("other@1",)}
