"""A store with four artifacts whose tiers have known speeds, and JOB files about them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from arstore import Store, create_store, open_store
from arstore.store.config import default_store

IDENTITY = {"model": "m", "revision": "1", "precision": "bf16"}
IDENTITY_TABLE = "[identity]\n" + "".join(f'{name} = "{value}"\n' for name, value in IDENTITY.items())
SIZE = 40_000  # of each artifact's one tensor


@pytest.fixture
def store() -> Iterator[Store]:
    """A store with four artifacts, and speeds as if measured: 1 MB/s from local, no time above."""
    create_store()
    measured = {"latency_s": 0.0, "measured": "2026-01-01T00:00:00Z"}
    speeds = {"local": {"bytes_per_s": 1e6, **measured}, "host": {"bytes_per_s": 1e9, **measured}}
    (default_store() / "tiers.json").write_text(json.dumps(speeds))
    with open_store() as opened:
        for seed, name in enumerate(["base", "x", "y", "z"]):
            torch.manual_seed(seed)
            opened.put(tensors={"w": torch.randn(SIZE // 4)}, name=name)
        yield opened


def write_speeds(bytes_per_s: float = 1e9) -> None:
    """Write speeds into the default store, as if measured: measuring takes seconds."""
    speed = {"bytes_per_s": bytes_per_s, "latency_s": 0.0, "measured": "2026-01-01T00:00:00Z"}
    (default_store() / "tiers.json").write_text(json.dumps(dict.fromkeys(("local", "host", "device"), speed)))


def job(folder: Path, requests: Sequence[Mapping[str, object]] | None = None, more: str = "", **fields: object) -> Path:
    fields = {"to": "host", **fields}
    if requests is not None:
        (folder / "requests.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in requests))
        fields["requests"] = "requests.jsonl"
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    (path := folder / "JOB.toml").write_text("[job]\n" + "\n".join(lines) + f"\n{more}")
    return path
