"""Find: a prefix is found by exactly its identity and by its own tenant only, and one block by its id."""

import pytest

from arstore import BadInput, NotFound, Store, open_store
from arstore.store.kv.find import block_finder, sequence_chain
from tests.support.kv_made import IDENTITY, made, raw
from tests.support.kv_store import BLOCK, TOKENS, answer, damage, match, put, store

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


def test_a_block_is_found_by_its_id_as_a_prefix_of_its_own(store: Store) -> None:
    put(store, "chat", TOKENS)
    find, chain = block_finder(store.kv.read, IDENTITY), sequence_chain(store.kv.read, TOKENS, IDENTITY)
    assert len(chain.blocks) == 5
    for number, id_ in enumerate(chain.blocks):
        block, first = find(id_.hex()), BLOCK * number
        assert block is not None
        assert (block.id, block.tokens_count, block.blocks_count) == (id_.hex(), min(BLOCK, 70 - first), 1)
        wanted = {name: array[first : first + BLOCK] for name, array in made(TOKENS).items()}
        assert raw(block.tensors()) == raw(wanted)


def test_a_block_that_is_bad_removed_or_none_is_not_found(store: Store) -> None:
    put(store, "chat", TOKENS)
    find, chain = block_finder(store.kv.read, IDENTITY), sequence_chain(store.kv.read, TOKENS, IDENTITY)
    assert find("00" * 32) is None
    assert find(chain.root.hex()) is None, "the root of a chain is no block"
    assert block_finder(store.kv.read, IDENTITY | {"model": "other"})(chain.blocks[0].hex()) is None
    damage(store, "chat", 2)
    assert len(store.verify().corrupt) == 1
    assert [find(id_.hex()) is not None for id_ in chain.blocks] == [True, True, False, True, True]
    first = find(chain.blocks[0].hex())
    store.erase("chat")
    assert find(chain.blocks[0].hex()) is None
    assert first is not None
    with pytest.raises(NotFound, match="was removed while it was read"):
        first.tensors()
