"""A real catalog in an empty directory, and made-up blobs and versions for it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arstore.formats.catalog import Named, Place, VersionRow
from arstore.formats.digest import Digest
from arstore.formats.identity import KeyId
from arstore.formats.manifest import Needs
from arstore.store.catalog.catalog import TABLES as CATALOG_TABLES
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.changes import NewVersion
from arstore.store.catalog.key_slots import TABLES as SLOT_TABLES
from arstore.store.catalog.leases import TABLE as LEASES_TABLE
from arstore.store.catalog.page_check import DATA_NAME
from arstore.store.catalog.tables import Tables

RECORD_BYTES = 4096  # what the record of every place here takes: header, one frame and footer, padded
INDEX_KEY = bytes(range(32))
ALL_TABLES = (*CATALOG_TABLES, *SLOT_TABLES, LEASES_TABLE)


@contextmanager
def opened_tables(directory: Path) -> Iterator[Tables]:
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / DATA_NAME).exists():
        (directory / DATA_NAME).touch()
    tables = Tables(directory, ALL_TABLES, bytes(32))
    try:
        yield tables
    finally:
        tables.close()


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "little"))


def key_id(number: int) -> KeyId:
    return KeyId(bytes([0xFF]) + number.to_bytes(31, "little"))


def place(segment: int, slot: int) -> Place:
    """Return the place of a small record; no two slots of a segment lie at one offset."""
    return Place(segment, RECORD_BYTES * slot, slot, 100, 116, bytes(16), 1 << 20, 0, 1)


def named(*numbers: int) -> Named:
    """Return an identity of a block that stands for these blobs."""
    return Named(16, tuple(map(digest, numbers)))


def new_version(
    name: str,
    version: int,
    where: Place,
    written: Mapping[Digest, Place],
    *,
    reused: frozenset[Digest] = frozenset(),
    claims: tuple[tuple[KeyId, Named], ...] = (),
    quota_bytes: int = 0,
    join: bool = False,
) -> NewVersion:
    needs = Needs(frozenset(written) | reused, claims)
    durable = {spot.segment: spot.offset + RECORD_BYTES for spot in (where, *written.values())}
    row = VersionRow(where, False, b"summary")
    return NewVersion(name, version, row, needs, written, durable, quota_bytes=quota_bytes, join=join)


def all_rows(catalog: Catalog) -> dict[tuple[str, bytes], bytes]:
    """Return every row of every table."""
    with catalog.tables.reading() as rows:
        return {(table, key): value for table in ALL_TABLES for key, value in rows.scan(table, b"")}
