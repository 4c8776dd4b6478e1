"""Match: the stored blocks of a sequence are counted from the first on; a bad or missing block ends the count."""

from pathlib import Path

import pytest

from arstore import BadInput, Corrupt, Store, create_store, open_store
from arstore.formats.catalog import LIVE, QUARANTINED
from arstore.store.access import rebuild_catalog
from tests.support.kv_made import IDENTITY, made, raw
from tests.support.kv_store import BLOCK, TOKENS, answer, block_row, damage, identity_rows, match, put, store

__all__ = ["store"]  # a fixture


def test_the_longest_match_is_whole_blocks_and_a_last_one_only_where_the_sequence_ends(store: Store) -> None:
    put(store, "chat", TOKENS)
    assert match(store, [*TOKENS, 1]) == 64
    for length in range(1, 71):
        assert match(store, TOKENS[:length]) == (70 if length == 70 else length // BLOCK * BLOCK)
    for at in range(70):
        changed = [*TOKENS[:at], 999, *TOKENS[at + 1 :]]
        assert match(store, changed) == at // BLOCK * BLOCK
    put(store, "short", TOKENS[:5])
    assert match(store, TOKENS[:5]) == 5
    assert match(store, TOKENS[:6]) == 0
    miss = store.longest_prefix([1, 2, 3], IDENTITY)
    assert (miss.tokens_count, miss.blocks_count, miss.id, miss.layers, bool(miss)) == (0, 0, "", (), False)
    with pytest.raises(BadInput, match="0 tokens"):
        miss.tensors()


def test_a_rebuilt_catalog_matches_as_before(tmp_path: Path) -> None:
    create_store()
    sequences = [TOKENS, [*TOKENS[:32], 1, 2, 3], [5, 6, 7]]
    with open_store() as store:
        for n, tokens in enumerate(sequences):
            put(store, f"s{n}", tokens)
        put(store, "gone", [8, 8, 8])
        store.erase("gone")
        rows = identity_rows(store)
    rebuild_catalog()
    with open_store() as store:
        assert identity_rows(store) == rows
        assert match(store, [8, 8, 8]) == 0
        for tokens in sequences:
            assert answer(store, tokens) == raw(made(tokens))


def test_a_bad_block_ends_the_match_before_it_and_heals_with_the_next_put(store: Store) -> None:
    put(store, "chat", TOKENS)
    damage(store, "chat", 2)
    hit = store.longest_prefix(TOKENS, IDENTITY)
    assert hit.tokens_count == 70  # nobody knows yet
    with pytest.raises(Corrupt) as refused:
        hit.tensors()
    assert refused.value.hint == "put the KV again, or compute it anew: that heals it"
    assert block_row(store, "chat", 2)[1].state == QUARANTINED
    assert match(store, TOKENS) == 32
    assert answer(store, TOKENS) == raw({name: one[:32] for name, one in made(TOKENS).items()})
    [bad] = store.verify().corrupt
    assert bad.artifacts == ("chat@1",)
    assert put(store, "chat", TOKENS).blobs_new == 1
    assert block_row(store, "chat", 2)[1].state == LIVE
    assert answer(store, TOKENS) == raw(made(TOKENS))
    assert store.verify(deep=True).corrupt == ()


def test_a_block_that_a_rebuild_misses_ends_the_match_too(tmp_path: Path) -> None:
    create_store()
    with open_store() as store:
        put(store, "chat", TOKENS)
        damage(store, "chat", 2)
    assert len(rebuild_catalog().lost) == 1
    with open_store() as store:
        assert match(store, TOKENS) == 32
        assert put(store, "chat", TOKENS).blobs_new == 1
        assert answer(store, TOKENS) == raw(made(TOKENS))


def test_verify_finds_a_bad_block_and_others_go_on(store: Store) -> None:
    put(store, "chat", TOKENS)
    put(store, "other", [*TOKENS[:16], 1])
    damage(store, "chat", 3)
    assert len(store.verify().corrupt) == 1
    assert (match(store, TOKENS), match(store, [*TOKENS[:16], 1])) == (48, 17)
