"""Every tier keeps the promise of tiers: the same suite runs over each, fast and slow, and over steps of full size."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arstore.store.errors import NoRoom
from arstore.store.tiers.device import DeviceTier
from tests.support.fresh_memory import memory
from tests.support.tier_faults import Between, Slow, given
from tests.support.tier_places import TIERS, a_place, small_steps, stocked, store
from tests.support.tier_suite import (
    KEYS,
    SOURCE_BEHAVIOURS,
    TIER_BEHAVIOURS,
    A,
    Place,
    Stocked,
    odd_objects,
    part,
    whole,
)

__all__ = ["memory", "small_steps", "stocked", "store"]  # fixtures


@pytest.fixture
def place(request: pytest.FixtureRequest, memory: Path, small_steps: None) -> Place:
    return a_place(request.param, memory)


# ---- the suite


@pytest.mark.parametrize("place", TIERS, indirect=True)
@pytest.mark.parametrize("behaviour", TIER_BEHAVIOURS, ids=lambda one: one.__name__)
def test_tier(place: Place, behaviour: Callable[[Place], None]) -> None:
    behaviour(place)


@pytest.mark.parametrize("place", TIERS, indirect=True)
@pytest.mark.parametrize("behaviour", TIER_BEHAVIOURS, ids=lambda one: one.__name__)
def test_tier_that_is_slow(place: Place, behaviour: Callable[[Place], None]) -> None:
    tier, again = Between(place.tier, Slow()), lambda: Between(place.again(), Slow())
    behaviour(replace(place, tier=tier, again=again))


@pytest.mark.parametrize("place", TIERS, indirect=True)
@pytest.mark.parametrize("behaviour", SOURCE_BEHAVIOURS, ids=lambda one: one.__name__)
def test_source(place: Place, behaviour: Callable[[Stocked], None]) -> None:
    objects = dict(zip(KEYS, odd_objects(), strict=False))
    for key, one in objects.items():
        place.tier.fill(key, one, time.time() + 100)
    for source in (place.tier, Between(place.tier, Slow())):
        behaviour(Stocked(source, objects, place.stranger()))


# ---- objects of the store, and steps of full size


@pytest.mark.parametrize("tier", TIERS)
def test_every_object_of_the_store_arrives_in_every_tier(
    stocked: Stocked, tier: str, memory: Path, small_steps: None
) -> None:
    for key, wanted in stocked.objects.items():
        place = a_place(tier, memory)
        held = stocked.source.hold(key)
        assert held
        with contextlib.suppress(NoRoom):  # of the very last object
            found = place.tier.fill(key, held)
            assert (found.name, tuple(found.spans)) == (wanted.name, tuple(wanted.spans))
            assert whole(found) == wanted.content, wanted.name
            continue
        raise AssertionError(wanted.name)


@pytest.mark.parametrize("tier", TIERS)
def test_steps_of_full_size(tier: str, memory: Path) -> None:
    """Sums of 4 MiB, buffers of 32 MiB: what lies across their bounds is what it was."""
    wanted = given((33 << 20) + 5)
    place = a_place(tier, memory)
    if place.outlives_us:
        held = place.tier.fill(A, wanted)
    else:
        held = DeviceTier(str(place.tier.device), 1 << 30).fill(A, wanted)  # type: ignore[attr-defined]
    assert whole(held) == wanted.content
    for bound in (4 << 20, 32 << 20, 33 << 20):
        for first, stop in ((bound - 1, bound + 1), (bound, bound + 5), (max(bound - (5 << 20), 0), bound + 1)):
            assert part(held, first, stop - first) == wanted.content[first:stop]
