"""Unstage: what is over time is wiped, and a name finds what was staged under it."""

import os

import pytest

from arstore import NotFound, Store
from tests.support.staged_store import made, store

__all__ = ["store"]  # fixtures


def test_what_is_over_time_is_wiped_by_whoever_comes_next(store: Store) -> None:
    for name in ("m", "n"):
        store.put(tensors=made(0), name=name)
    store.prefetch(["m"], ttl_s=600).release()
    assert len(store.tiers.arenas.host().residents()) == 1
    [extent] = store.tiers.arenas.host().directory.glob("*.extent")
    os.utime(extent, (1, 1))  # its time is over
    store.prefetch(["n"]).release()
    assert store.tiers.arenas.host().residents() == []


def test_unstage_knows_the_name_that_was_staged(store: Store) -> None:
    store.put(tensors=made(0), name="m")
    store.prefetch(["m"], ttl_s=60).release()
    store.put(tensors=made(1), name="m")
    assert [one.resident.name for one in store.tiers.unstage(["m"]).gone] == ["m@1"]
    store.prefetch(["m"], ttl_s=60).release()
    store.rm("m", all_versions=True)
    assert [one.resident.name for one in store.tiers.unstage(["m"]).gone] == ["m@2"]
    with pytest.raises(NotFound):
        store.tiers.unstage(["m"])
