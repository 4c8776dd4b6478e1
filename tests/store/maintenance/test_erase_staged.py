"""Erase takes staged copies with it, and the bounds of erased keys."""

from typing import Any

import pytest

from arstore import Store
from tests.support.staged_store import IDENTITY, TOKENS, made, store

__all__ = ["store"]  # fixtures


def test_an_erase_takes_the_bounds_of_the_keys_with_it(store: Store) -> None:
    store.kv.put(made(0), name="chat", tokens=TOKENS, identity=IDENTITY, key_bounds=8)
    assert set(store.erase("chat").versions) == {"chat@1", "chat/key-bounds@1"}
    assert store.ls() == []


def test_an_erase_takes_what_was_staged_while_it_ran(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(tensors=made(0), name="m")
    drop, staged = store._parts.catalog.drop, list[Any]()

    def staged_between(*words: object, **more: object) -> int:
        if not staged:
            staged.append(store.prefetch(["m"], ttl_s=60))
            staged[0].release()
        return drop(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store._parts.catalog), "drop", lambda _, *words, **more: staged_between(*words, **more))
    store.erase("m")
    assert staged
    assert store.tiers.arenas.host().residents() == []
