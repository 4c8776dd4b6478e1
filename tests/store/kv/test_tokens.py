"""Tokens: what is no list of token ids is refused by position."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from arstore import BadInput, Store
from tests.support.kv_made import IDENTITY, made
from tests.support.kv_store import TOKENS, store

__all__ = ["store"]  # a fixture


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([], "are 0, wanted 1 to"), ([1, -1], "position 1: '-1'"), ([1, 2, 1 << 32], "position 2: '4294967296'"),
        ([1, 2.0], "position 1: '2.0'"), ([True, 1], "position 0: 'True'"), ([1, None], "position 1: 'None'"),
        ([1, "2"], "position 1: '2'"), ([[1], [2]], "position 0"), (np.zeros((2, 2), np.int64), "2 axes"),
        (np.zeros(3), "float64"), (np.array([True]), "bool"), (np.array([1, -5]), "position 1: '-5'"),
        (np.array([1 << 40], np.uint64), "position 0"), (np.array([1, None]), "object"), (np.int64(5), "0 axes"),
        (torch.zeros(3), "float32"), ("1,2", "are str"), (7, "are int"), ([10**400], "position 0"), (b"abc",
        "are bytes"),
        (memoryview(b"abcde"), "bytes"), (np.zeros((1 << 24) + 1, np.uint8), "are 16777217, wanted 1 to 16777216"),
    ],
)  # fmt: skip
def test_bad_tokens_are_refused_by_position(store: Store, tokens: Any, why: str) -> None:
    for ask in (partial(store.longest_prefix, tokens, IDENTITY),
                partial(store.kv.put, made(TOKENS), name="chat", tokens=tokens, identity=IDENTITY)):  # fmt: skip
        with pytest.raises(BadInput, match=why) as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert store.stats().stored_bytes == 0
