"""Directories of the test's own in memory: for tiers, and for stores whose syncs are not the point."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def fresh_memory() -> Iterator[Path]:
    """Give a new directory in memory, where there is such a file system, and leave nothing of it."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else Path(os.environ["ARSTORE_STORE"]).parent
    path = place / f"arstore-test-{os.urandom(8).hex()}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def memory() -> Iterator[Path]:
    with fresh_memory() as path:
        yield path


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test a host tier of its own."""
    with fresh_memory() as path:
        monkeypatch.setenv("ARSTORE_HOST_DIR", str(path / "host"))
        yield path / "host"
