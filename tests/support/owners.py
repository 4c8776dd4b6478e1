"""Owners of leases that stop, sleep and die where a test wants it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arstore.store.access import create_store, open_store
from arstore.store.store import Store
from tests.support.command import PATIENCE_S

HOLDER = """
import dataclasses, sys
from pathlib import Path
from arstore.cli.main import EXIT_CODES
from arstore.store.disk import Disk
from arstore.store.errors import StoreError
from arstore.store.catalog.leases import Leases, current_process
from arstore.store.config import default_store
from arstore.store.store import Store

class Waiting(Disk):
    asked = False
    def sync(self, fd):
        if not Waiting.asked and ".seg" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            Waiting.asked = True
            print("under way", flush=True)
            sys.stdin.readline()
        super().sync(fd)

with Store(default_store(), disk=Waiting()) as store:
    parts = store._parts
    store._parts = dataclasses.replace(parts, leases=Leases(parts.tables, current_process(), float(sys.argv[3])))
    try:
        print(store.put(sys.argv[1], name=sys.argv[2]).summary.version, flush=True)
    except StoreError as error:
        print(error, flush=True)
        sys.exit(EXIT_CODES[type(error)])
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    create_store()
    path = tmp_path / "source"
    path.write_bytes(b"first" * 1000)
    return path


@pytest.fixture
def store(source: Path) -> Iterator[Store]:
    with open_store() as opened:
        yield opened


def child(program: str, *words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def holding(source: Path, name: str = "model", ttl_s: float = 60.0) -> "Iterator[subprocess.Popen[str]]":
    """A put of `source` in a process of its own that owns the name and has not published."""
    process = child(HOLDER, source, name, ttl_s)
    try:
        assert process.stdout
        assert process.stdout.readline() == "under way\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def resume(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Let the holder go on; return how it ended and what it said."""
    said, _ = process.communicate("\n", timeout=PATIENCE_S)
    return process.returncode, said


def contents(store: Store, name: str, out: Path) -> bytes:
    store.get_to(name, out)
    return out.read_bytes()
