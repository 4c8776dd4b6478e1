"""Find: a prefix is found by exactly its identity, and by its own tenant only."""

import pytest

from arstore import BadInput, Store, open_store
from tests.support.kv_made import IDENTITY, made, raw
from tests.support.kv_store import TOKENS, answer, match, put, store

__all__ = ["store"]  # a fixture


def test_every_field_of_the_identity_tells_apart(store: Store) -> None:
    put(store, "chat", TOKENS)
    for other in ({"model": "llama2"}, {"revision": "r2"}, {"adapter": "a"}, {"rope_factor": 8}, {"precision": "bf16"},
                  {"block_tokens": 32}, {"strict": True}):  # fmt: skip
        assert match(store, TOKENS, **other) == 0
    second = IDENTITY | {"revision": "r2"}
    store.kv.put(made(TOKENS, salt=1), name="other", tokens=TOKENS, identity=second)
    assert raw(store.longest_prefix(TOKENS, second).tensors()) == raw(made(TOKENS, salt=1))
    assert answer(store, TOKENS) == raw(made(TOKENS))
    assert match(store, TOKENS, engine="any") == 70  # provenance counts where strict is asked for
    with pytest.raises(BadInput, match="'colour' is not known"):
        match(store, TOKENS, colour="red")
    with pytest.raises(BadInput, match="lacks model, revision"):
        store.longest_prefix(TOKENS, {"precision": "bf16"})
    for size in (0, 65537, 10**18):
        with pytest.raises(BadInput, match=f"block_tokens {size}: wanted 1 to 65536"):
            match(store, TOKENS, block_tokens=size)


def test_two_tenants_never_meet(store: Store) -> None:
    store.tenants.add("guests")
    put(store, "chat", TOKENS)
    with open_store(tenant="guests") as guests:
        assert match(guests, TOKENS) == 0
        assert put(guests, "chat", TOKENS).blobs_reused == 0
        mine, theirs = (one.longest_prefix(TOKENS, IDENTITY) for one in (store, guests))
        assert mine.id != theirs.id
        store.erase("chat")
        assert (match(store, TOKENS), match(guests, TOKENS)) == (0, 70)
    store.tenants.remove("guests", erase=True)
    with store._parts.tables.reading() as rows:
        assert list(rows.scan("identities", b"")) == []
