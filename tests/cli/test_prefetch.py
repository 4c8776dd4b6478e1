"""Prefetch on the command line: versions and names that look like words of it."""

from pathlib import Path

import torch

from arstore import Store
from tests.support.command import cli
from tests.support.staged_store import made, store

__all__ = ["store"]  # fixtures


def test_two_versions_on_a_device_are_two(store: Store) -> None:
    for seed in (0, 1):
        store.put(tensors=made(seed), name="d")
    staged = store.prefetch(["d@1", "d@2"], to="device:cpu")
    assert set(staged) == {"d@1", "d@2"}
    assert torch.equal(staged["d@1"]["layers.0.key"], made(0)["layers.0.key"])


def test_the_word_prefetch_may_be_a_name(store: Store, tmp_path: Path) -> None:
    store.put(tensors=made(0), name="prefetch")
    assert cli("get", "prefetch", "--", tmp_path / "out").code == 0
    assert cli("show", "prefetch", "--").code == 0
