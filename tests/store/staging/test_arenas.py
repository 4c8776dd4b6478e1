"""Arenas: speeds that are half there count as not measured."""

import json

from arstore import Store
from tests.support.staged_store import store

__all__ = ["store"]  # fixtures


def test_half_a_table_of_speeds_is_none(store: Store) -> None:
    speed = {"bytes_per_s": 1, "latency_s": 0, "measured": "x"}
    whole = dict.fromkeys(("local", "host", "device"), speed)
    (store._parts.root / "tiers.json").write_text(json.dumps(whole))
    assert store.tiers.arenas.speeds()
    (store._parts.root / "tiers.json").write_text('{"host": {"bytes_per_s": 1, "latency_s": 0, "measured": "x"}}')
    assert store.tiers.arenas.speeds() == {}
