"""Healing: a put of the same source replaces what is bad or gone."""

import os
from collections.abc import Callable

import pytest

from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES
from arstore.store.errors import Corrupt
from tests.support.damage import NAMES, World, attempt, flip, flipped, listed, of_size, pristine, sources, world

__all__ = ["pristine", "sources", "world"]  # fixtures


Damage = Callable[[World], None]


def damage_blobs(world: World) -> None:
    for spot in world.spots():
        if spot.is_blob:
            flip(spot.path, spot.offset + HEADER_BYTES)


def damage_versions(world: World) -> None:
    for spot in world.spots():
        if not spot.is_blob:
            flip(spot.path, spot.offset + HEADER_BYTES)


def damage_segment_headers(world: World) -> None:
    for path in world.segments:
        flip(path, 24)


def delete_segments(world: World) -> None:
    for path in world.segments:
        path.unlink()


def cut_segments(world: World) -> None:
    for path in world.segments:
        os.truncate(path, 3 * ALIGN_BYTES)


LARGE_DAMAGE = [damage_segment_headers, delete_segments, cut_segments]


def put_again(world: World) -> None:
    with world.open() as store:
        for name in NAMES:
            store.put(world.source(name), name=name, kind="file" if name == "other" else None)
    assert all(attempt(world, name) is None for name in NAMES)


def remove_first_versions(world: World) -> None:
    """Remove the versions whose own records are bad: what they consisted of is not known any more."""
    with world.open() as store:
        for name in NAMES:
            store.rm(f"{name}@1")


@pytest.mark.parametrize("damage", [damage_blobs, damage_versions, *LARGE_DAMAGE])
def test_putting_the_source_again_heals(world: World, damage: Damage) -> None:
    damage(world)
    assert listed(world.verify()) == {(f"{name}@1",) for name in NAMES}
    assert all(isinstance(attempt(world, name), Corrupt) for name in NAMES)
    put_again(world)
    if damage is not damage_blobs:
        assert listed(world.verify()) == {(f"{name}@1",) for name in NAMES}
        remove_first_versions(world)
    assert world.verify(deep=True).corrupt == ()


@pytest.mark.parametrize("damage", LARGE_DAMAGE)
def test_a_put_does_not_count_on_a_segment_that_is_gone(world: World, damage: Damage) -> None:
    """Before any verify or get has seen it: what a put acknowledges can be read."""
    damage(world)
    put_again(world)
    remove_first_versions(world)
    assert world.verify(deep=True).corrupt == ()


def test_a_blob_that_reads_well_again_leaves_quarantine(world: World) -> None:
    spot = of_size(world.spots(), "model", 8192)[0]
    with flipped(spot.path, spot.padding):
        assert attempt(world, "model") is None
        assert len(world.verify().corrupt) == 1
        assert "quarantine" in str(attempt(world, "model"))
    assert world.verify().corrupt == ()
    assert attempt(world, "model") is None
