"""An arena has every object whole or not at all, whatever is killed, gone or full."""

from pathlib import Path

import pytest

from arstore import NoRoom, Store
from arstore.formats.tensor import TensorSpan
from arstore.store.disk import Disk, Out
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.local import StoredObject
from tests.support.staging import KEY, OTHER, Meddling, fill, host, store

__all__ = ["host", "store"]  # fixtures


# ---- time and room


def test_what_others_are_staging_takes_room_too(store: Store, host: Path) -> None:
    tier = Arena("host", host / "tenant", 100_000, Disk())
    span = TensorSpan("f", "U8", (60_000,), 0, 60_000)

    def meanwhile(_: int, out: Out) -> None:
        with pytest.raises(NoRoom):
            tier.make_room(50_000, frozenset([OTHER]))
        tier.make_room(60_000, frozenset([KEY]))  # it is what we wait for

    with tier.filling(KEY, wait=False):
        tier.fill(KEY, StoredObject("m@1", (span,), meanwhile))


# ---- several at once


def test_what_was_just_published_is_held_already(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    taken: list[bool] = []
    held = fill(Arena("host", host / "tenant", 1 << 20, Meddling("rename", lambda: taken.append(plain.remove(KEY)))), 1)
    assert taken == [False]
    assert plain.find(KEY)
    del held
    assert plain.remove(KEY)
