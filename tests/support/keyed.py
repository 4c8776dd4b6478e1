"""A store made by the command line, its key file, and what is put into it."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save_file

from arstore.formats.catalog import Place
from arstore.store.store import Store
from tests.support.command import Ran, cli

MASTER, STORE_ID = bytes([7]) * 32, bytes(range(16))
PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def root() -> Path:
    return Path(os.environ["ARSTORE_STORE"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small checkpoint of two tensors."""
    path = tmp_path / "weights.safetensors"
    values = np.random.default_rng(3)
    save_file({name: values.standard_normal((32, 32), dtype=np.float32) for name in ("first", "second")}, path)
    return path


def works(*words: object) -> Ran:
    ran = cli(*words)
    assert ran.code == 0, ran.err
    return ran


def refused(code: int, *words: object) -> str:
    """Run a command that must end in `code` with one clear line, and return the line."""
    ran = cli(*words)
    assert (ran.code, ran.out) == (code, ""), ran
    assert len(ran.err.splitlines()) <= 2, "one line of error, and perhaps a hint"
    return ran.error


def opens(source: Path) -> None:
    """Check that the store opens, holds what is put, and gives it back."""
    works("put", source, "m")
    out = source.with_name("out")
    works("get", "m", out)
    assert out.read_bytes() == source.read_bytes()


def contents(root: Path) -> bytes:
    """Return the bytes of every file below the store, one after the other."""
    return b"\n".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def segments(root: Path) -> list[Path]:
    return sorted((root / "segments").iterdir())


def places(store: Store) -> list[Place]:
    """Return the place of every record of the store's tenant, blobs and versions."""
    blobs = [row.place for row in store._parts.catalog.all_blobs()]
    return blobs + [row.place for _, row in store._parts.catalog.versions()]


ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def readable(root: Path) -> Iterator[bytes]:
    """Yield all there is to read without a key: names, bytes of files, and what zstd frames in them expand to."""
    for path in sorted(root.rglob("*")):
        yield path.relative_to(root).as_posix().encode()
    held = contents(root)
    yield held
    at = held.find(ZSTD_MAGIC)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(held[at:])
        at = held.find(ZSTD_MAGIC, at + 1)


@pytest.fixture
def stored(root: Path, source: Path) -> Path:
    """A store with a key file and one artifact in it; returns the key file."""
    key = Path(works("init", "--json").json["key_file"])
    works("put", source, "m")
    return key


def command(tmp_path: Path, body: str) -> str:
    """Return a key command that runs a line of Python; there is a blank in its path."""
    script = tmp_path / "key command.py"
    script.write_text(f"import sys\n{body}\n")
    return shlex.join([sys.executable, str(script)])
