"""Artifacts to stage, commands that hold them, and what then lies in a host tier of the test's own."""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from arstore import Store, create_store, open_store
from arstore.formats.record import HEADER_BYTES
from arstore.formats.tensor import TensorSpan
from arstore.store.config import default_store
from arstore.store.disk import Disk, Out
from arstore.store.staging.prefetch import Prefetched
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.local import Local, StoredObject
from tests.support.command import PATIENCE_S, cli
from tests.support.tier_faults import Given
from tests.support.tier_suite import whole

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def store() -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def weights(seed: int = 0, count: int = 20_000) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"w": torch.randn(count), "b": torch.randn(7, 3)}


def put_file(store: Store, folder: Path, name: str, length: int = 100_000) -> bytes:
    """Put an artifact that is one file, `f`, without a tensor."""
    (path := folder / f"of-{name}").mkdir()
    (path / "f").write_bytes(content := secrets.token_bytes(length))
    store.put(path, name=name, kind="file")
    return content


def in_host(store: Store, names: list[str], ttl_s: float = 0.0) -> Prefetched:
    stage = store.prefetch(names, ttl_s=ttl_s)
    assert isinstance(stage, Prefetched)
    return stage


def extents(host: Path) -> list[Path]:
    return sorted(host.glob("*/*.extent"))


def left(host: Path) -> list[str]:
    """Return every file that is left in the tier, of whatever kind."""
    return [path.name for path in host.rglob("*") if path.is_file() or path.is_socket()]


def wait_for(ready: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < until, f"{what} never came"
        time.sleep(0.01)


def stage_three(store: Store, tmp_path: Path) -> list[str]:
    for number, name in enumerate("abc"):
        put_file(store, tmp_path, name, 64 * 1000)
        assert cli("prefetch", name, "--ttl", f"{number + 1}h").code == 0
    return [store.get(name).summary.id for name in "abc"]


class Meddling(Disk):
    """Lets somebody else act right after an operation took effect, once."""

    def __init__(self, operation: str, act: Callable[[], object]) -> None:
        self._operation, self._act = operation, act

    def _after(self, operation: str) -> None:
        if operation == self._operation:
            self._operation = ""
            self._act()

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        fd = super().open(path, create=create, direct=direct, mode=mode)
        self._after("open")
        return fd

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._after("rename")


def fill(tier: Arena, byte: int, until_s: float = 0.0) -> object:
    def read(at: int, out: Out) -> None:
        out[:] = bytes([byte]) * len(out)

    return tier.fill(KEY, StoredObject("m@1", (TensorSpan("f", "U8", (5000,), 0, 5000),), read), until_s)


def copy_of(store: Store, name: str) -> tuple[str, Given]:
    """Return the key of an artifact and what a stager has read of it."""
    key = store.get(name).summary.id
    held = Local(store.get, lambda key: None).hold(key)
    assert held
    return key, Given(held.name, tuple(held.spans), whole(held))


def damage(store: Store, name: str = "m") -> None:
    """Flip a bit of the largest blob of an artifact, in its segment."""
    blob = max(store.get(name).manifest.blobs, key=lambda one: one.length)
    [row] = store._parts.catalog.find_blobs([blob.digest]).values()
    path = default_store() / "segments" / f"{row.place.segment:016x}.seg"
    with path.open("r+b") as file:
        file.seek(row.place.offset + HEADER_BYTES)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
