"""A shared tier of the test's own, artifacts that are published in it, and what then lies there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore import Store, create_store, open_store
from arstore.store.tiers import sealed as sealed_room
from tests.support.command import Ran, cli
from tests.support.fresh_memory import fresh_memory

LENGTH = 100_000
SUM_BYTES = 10_000


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sealed_room, "SUM_BYTES", SUM_BYTES)  # so that a small object has several
    with fresh_memory() as path:
        monkeypatch.setenv("ARSTORE_HOST_DIR", str(path / "host"))
        monkeypatch.setenv("ARSTORE_SHARED_DIR", str(path / "shared"))
        (path / "shared").mkdir(mode=0o700)
        yield path


@pytest.fixture
def store(memory: Path) -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def put(store: Store, folder: Path, name: str = "m", length: int = LENGTH) -> bytes:
    """Put an artifact that is one file, `f`."""
    (path := folder / f"of-{name}").mkdir()
    (path / "f").write_bytes(content := os.urandom(length))
    store.put(path, name=name, kind="file", codec="stored")
    return content


def published(store: Store, folder: Path, name: str = "m") -> bytes:
    content = put(store, folder, name)
    assert cli("prefetch", name, "--to", "shared").code == 0
    return content


def lying(memory: Path, tier: str = "shared") -> list[Path]:
    return sorted(path for path in (memory / tier).rglob("*") if path.is_file())


def came_from(ran: Ran) -> list[str]:
    assert ran.code == 0, ran.err
    return [one["from"] for one in ran.json["staged"]]


def gone(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARSTORE_SHARED_DIR", str(path := memory / "nowhere"))
    return path
