"""Opening: an empty catalog takes the place of whatever was there, and every table is open."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.opening import create_tables, open_tables
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt, StorageFailed
from arstore.store.keys.keyring import Keyring, create_keyring
from tests.support.catalog_rows import ALL_TABLES
from tests.support.keyed import MASTER, STORE_ID


@pytest.fixture
def keyring(tmp_path: Path) -> Iterator[Keyring]:
    keys = tmp_path / "keys"
    keys.mkdir()
    create_keyring(keys, keys / "root", MASTER, STORE_ID, Disk())
    with closing(Keyring(keys, keys / "root", [MASTER], STORE_ID, Disk())) as keyring:
        yield keyring


def test_a_new_catalog_is_empty_whatever_was_there(tmp_path: Path, keyring: Keyring) -> None:
    directory = tmp_path / "catalog"
    with closing(create_tables(directory, keyring, Disk())) as tables:
        Catalog(tables, 0, bytes(32)).new_segment(1)
    (directory / "left").write_bytes(b"by somebody")
    with closing(create_tables(directory, keyring, Disk())) as tables, tables.reading() as rows:
        assert [list(rows.scan(table, b"")) for table in ALL_TABLES] == [[]] * len(ALL_TABLES)
    assert not (directory / "left").exists()


def test_rows_open_with_the_catalog_key_of_their_keyring_alone(tmp_path: Path, keyring: Keyring) -> None:
    directory = tmp_path / "catalog"
    with closing(create_tables(directory, keyring, Disk())) as tables:
        Catalog(tables, 0, bytes(32)).new_segment(1)
    with closing(open_tables(directory, keyring)) as tables:
        assert Catalog(tables, 0, bytes(32)).segments().keys() == {1}
    other = tmp_path / "other"
    other.mkdir()
    create_keyring(other, other / "root", MASTER, STORE_ID, Disk())
    with closing(Keyring(other, other / "root", [MASTER], STORE_ID, Disk())) as strange:
        tables = open_tables(directory, strange)
        with closing(tables), pytest.raises(Corrupt):
            Catalog(tables, 0, bytes(32)).segments()


def test_a_catalog_that_could_not_be_made_durable_is_closed(tmp_path: Path, keyring: Keyring) -> None:
    class Broken(Disk):
        def sync_dir(self, path: Path) -> None:
            if path.name == "catalog":
                raise StorageFailed(str(path), "input/output error")
            super().sync_dir(path)

    with pytest.raises(StorageFailed):
        create_tables(tmp_path / "catalog", keyring, Broken())
    with closing(create_tables(tmp_path / "catalog", keyring, Disk())) as tables:  # on files of its own
        assert (tmp_path / "catalog" / "data.mdb").exists()
        Catalog(tables, 0, bytes(32)).new_segment(1)
    with closing(open_tables(tmp_path / "catalog", keyring)) as tables:
        assert Catalog(tables, 0, bytes(32)).segments().keys() == {1}
