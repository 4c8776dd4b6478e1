"""A store with a host tier of its own, and KV in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from arstore import Store, create_store, open_store

IDENTITY = {"model": "m", "revision": "1", "precision": "bf16", "block_tokens": 16}


TOKENS = list(range(40))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(tmp_path / "host"))
    create_store()
    with open_store() as opened:
        yield opened


def made(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"layers.0.{side}": torch.randn(40, 2, 16).bfloat16() for side in ("key", "value")}
