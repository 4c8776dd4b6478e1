"""Prefix KV through the library: put, found and read back, and what happens to it in a store."""

from pathlib import Path

import numpy as np
import torch

from arstore import Store
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.retention import Retention
from tests.support.kv_made import IDENTITY, made, raw
from tests.support.kv_store import TOKENS, identity_rows, match, put, store
from tests.support.plunder import Scene, canary, found

__all__ = ["store"]  # a fixture


def test_what_was_put_comes_back_bit_for_bit(store: Store) -> None:
    stored = put(store, "chat", TOKENS)
    assert (stored.summary.kind, stored.summary.model) == ("kv", "llama")
    hit = store.longest_prefix(TOKENS, IDENTITY)
    assert (hit.tokens_count, hit.blocks_count, hit.layers, bool(hit)) == (70, 5, (0, 1, 2), True)
    arrays = made(TOKENS)
    assert any(np.isnan(one.astype(np.float32)).any() for one in arrays.values())
    assert raw(hit.tensors()) == raw(arrays)
    assert raw(store.kv.open("chat").tensors()) == raw(arrays)
    assert raw(store.longest_prefix(np.array(TOKENS, np.int64), IDENTITY).tensors()) == raw(arrays)
    assert raw(store.longest_prefix(torch.tensor(TOKENS), IDENTITY).tensors()) == raw(arrays)


def test_retention_drops_kv_and_its_prefix_rows(store: Store) -> None:
    put(store, "chat", TOKENS)
    put(store, "chat", [1, 2, 3])
    assert match(store, TOKENS) == 70
    collected = store.gc(AT_ONCE, Retention(keep_last=1))
    assert collected.dropped == ("chat@1",)
    assert (match(store, TOKENS), match(store, [1, 2, 3])) == (0, 3)
    assert len(identity_rows(store)) == 2
    assert store.stats().unreferenced_bytes == 0


def test_removed_kv_is_garbage_and_comes_back_with_the_next_put(store: Store) -> None:
    put(store, "chat", TOKENS)
    store.rm("chat")
    assert (match(store, TOKENS), identity_rows(store)) == (0, {})
    assert put(store, "chat", TOKENS).blobs_reused == 5
    assert match(store, TOKENS) == 70


def test_erased_kv_is_gone_for_whoever_kept_everything(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "store", tmp_path / "safe" / "R")
    mark, kept = canary("kv"), canary("other")
    arrays = {
        text: {"layers.0.key": np.frombuffer(text.encode().ljust(64) * 40, np.float16).reshape(40, 4, 8)}
        for text in (mark, kept)
    }
    tokens = {mark: list(range(40)), kept: list(range(100, 140))}
    with scene.open() as store:
        for text in (mark, kept):
            store.kv.put(arrays[text], name=text, tokens=tokens[text], identity=IDENTITY | {"sequence": text})
        assert found(scene.now(), [mark, kept]) == {mark, kept}
        store.erase(mark)
        assert match(store, tokens[mark], sequence=mark) == 0
        assert match(store, tokens[kept], sequence=kept) == 40
        assert len(identity_rows(store)) == 4
    assert found(scene.worst(), [mark, kept]) == {kept}
    assert found(scene.ever(old_roots=True), [mark]) == {mark}  # the test bites
