"""The local store is a source of tiers like any other, and what is removed from it is an error."""

from collections.abc import Callable
from pathlib import Path

import pytest

from arstore import NotFound, Store
from arstore.store.errors import Corrupt
from tests.support.fresh_memory import memory
from tests.support.tier_places import KV_NAMES, block_keys, local_of, put_all, stocked, store
from tests.support.tier_suite import SOURCE_BEHAVIOURS, Stocked, whole

__all__ = ["memory", "stocked", "store"]  # fixtures


@pytest.mark.parametrize("behaviour", SOURCE_BEHAVIOURS, ids=lambda one: one.__name__)
def test_source_local(stocked: Stocked, behaviour: Callable[[Stocked], None]) -> None:
    behaviour(stocked)


def test_a_held_object_that_is_erased_raises_and_gives_no_other_bytes(store: Store, tmp_path: Path) -> None:
    put_all(store, tmp_path)
    local, layout = local_of(store, "paged-NHD"), "paged-NHD"
    keys = [store.get("weights").summary.id, store.get(layout).summary.id, block_keys(store, layout)[0]]
    held = [local.hold(key) for key in keys]
    for name in ("weights", *KV_NAMES):
        store.erase(name)
    for one in held:
        assert one
        with pytest.raises((NotFound, Corrupt)):
            whole(one)
    assert [local_of(store, layout).hold(key) for key in keys] == [None] * 3
