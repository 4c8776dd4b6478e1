"""Plans with less room than they need at once, and the commands that work through them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from arstore import Store, create_store, open_store
from arstore.store.config import default_store
from tests.support.planning import SIZE, job

NAMES = "uvwxyz"


@pytest.fixture
def store() -> Iterator[Store]:
    """A store with an artifact for each of NAMES, filled with its number, and speeds as if measured."""
    create_store()
    speed = {"bytes_per_s": 1e9, "latency_s": 0.0, "measured": "2026-01-01T00:00:00Z"}
    (default_store() / "tiers.json").write_text(json.dumps(dict.fromkeys(("local", "host", "device"), speed)))
    with open_store() as opened:
        for number, name in enumerate(NAMES):
            opened.put(tensors={"w": torch.full((SIZE // 4,), number, dtype=torch.int32)}, name=name)
        yield opened


def tight(folder: Path, to: str = "host", room: int = 3) -> Path:
    """Return a job that walks over all artifacts four times, with room for three of them."""
    requests = [{"id": n, "artifacts": [NAMES[n % 6], NAMES[(n + 1) % 6]]} for n in range(24)]
    return job(folder, requests, f"[budget]\n{to} = {room * SIZE}\nhost = {(room + 1) * SIZE}\n" if to != "host" else
               f"[budget]\nhost = {room * SIZE}\n", to=to)  # fmt: skip


def value_of(tensor: torch.Tensor) -> int:
    """Return the one number that fills a tensor."""
    found = torch.unique(tensor).tolist()
    assert len(found) == 1, found
    return int(found[0])


WORK = """
import arstore, os, sys
staged = arstore.attach()
print(sorted(staged), flush=True)
for number, request in enumerate(staged.requests()):
    values = {name: request[name]["w"].unique().tolist() for name in request}
    print(request.id, values, sorted(request.failed), flush=True)
    if len(sys.argv) > 1 and number == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
"""


def worked(out: str) -> dict[int, dict[str, list[int]]]:
    """Return what a command said of each request."""
    rows = [line.split(" ", 1) for line in out.splitlines()[1:]]
    return {int(id_): eval(rest.partition("} ")[0] + "}", {}) for id_, rest in rows}
