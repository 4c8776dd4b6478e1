"""A store for prefix KV, one sequence, and the calls that tests of KV make again and again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arstore import Store, create_store, open_store
from arstore.formats.catalog import BlobRow
from tests.support.kv_made import IDENTITY, made, raw

BLOCK = 16
TOKENS = [7 * n % 251 for n in range(70)]  # four blocks and six tokens


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def put(store: Store, name: str, tokens: list[int], *, salt: int = 0, **more: Any) -> Any:
    return store.kv.put(made(tokens, salt=salt), name=name, tokens=tokens, identity=IDENTITY, **more)


def match(store: Store, tokens: Any, **other: object) -> int:
    return store.longest_prefix(tokens, IDENTITY | other).tokens_count


def answer(store: Store, tokens: list[int]) -> Any:
    return raw(store.longest_prefix(tokens, IDENTITY).tensors())


def identity_rows(store: Store) -> dict[bytes, bytes]:
    with store._parts.tables.reading() as rows:
        return dict(rows.scan("identities", b""))


def block_row(store: Store, name: str, number: int) -> tuple[Any, BlobRow]:
    """Return the digest and the row of the first blob of a block."""
    _, manifest = store.show(name)
    blob = manifest.blobs[manifest.claims[1 + number].blobs[0]]
    return blob, store._parts.catalog.find_blobs([blob.digest])[blob.digest]


def damage(store: Store, name: str, number: int) -> None:
    """Change one byte of a block on disk."""
    _, row = block_row(store, name, number)
    with (store._parts.directory / f"{row.place.segment:016x}.seg").open("r+b") as file:
        file.seek(row.place.offset + 1000)
        old = file.read(1)
        file.seek(row.place.offset + 1000)
        file.write(bytes([old[0] ^ 1]))
