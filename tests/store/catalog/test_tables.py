"""Tables: checked rows in LMDB, transactions that are undone, and one environment a process."""

import errno
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import pytest

from arstore.store.catalog.tables import Rows, Tables
from arstore.store.errors import Corrupt, NoRoom, StorageFailed
from tests.support.catalog_rows import opened_tables


def put(tables: Tables, key: bytes, packed: bytes) -> None:
    tables.write(lambda rows: rows.put("names", key, packed))


def get(tables: Tables, key: bytes) -> bytes | None:
    with tables.reading() as rows:
        return rows.get("names", key)


def test_rows_come_back(tables: Tables) -> None:
    put(tables, b"key", b"value")
    assert get(tables, b"key") == b"value"
    assert get(tables, b"other") is None
    tables.write(lambda rows: rows.delete("names", b"key"))
    assert get(tables, b"key") is None


def test_a_scan_gives_the_keys_that_start_so_in_order(tables: Tables) -> None:
    for key in (b"b2", b"a", b"b", b"c", b"b1"):
        put(tables, key, key.upper())
    with tables.reading() as rows:
        assert list(rows.scan("names", b"b")) == [(b"b", b"B"), (b"b1", b"B1"), (b"b2", b"B2")]
        assert [key for key, _ in rows.scan("names", b"")] == [b"a", b"b", b"b1", b"b2", b"c"]
        assert list(rows.scan("names", b"d")) == []


def test_a_transaction_that_raises_is_undone(tables: Tables) -> None:
    put(tables, b"key", b"before")

    def change(rows: Rows) -> None:
        rows.put("names", b"key", b"after")
        rows.put("names", b"new", b"after")
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        tables.write(change)
    assert (get(tables, b"key"), get(tables, b"new")) == (b"before", None)


def test_a_view_does_not_change_while_it_is_read(tables: Tables) -> None:
    put(tables, b"key", b"before")
    with tables.reading() as rows, ThreadPoolExecutor() as pool:
        pool.submit(put, tables, b"key", b"after").result()
        assert rows.get("names", b"key") == b"before"
    assert get(tables, b"key") == b"after"


def write_raw(tables: Tables, change: Callable[[lmdb.Transaction, Any], None]) -> None:
    """Change the table of names past the checks."""
    tables._environment.write(lambda txn: change(txn, tables._environment.tables["names"]))


@pytest.mark.parametrize("flipped", range(5 + 8))
def test_a_row_with_a_flipped_bit_is_refused(tables: Tables, flipped: int) -> None:
    put(tables, b"key", b"value")

    def flip(txn: lmdb.Transaction, names: Any) -> None:
        value = bytearray(txn.get(b"key", b"", db=names))
        value[flipped] ^= 1
        txn.put(b"key", bytes(value), db=names)

    write_raw(tables, flip)
    with pytest.raises(Corrupt, match="check"):
        get(tables, b"key")
    with pytest.raises(Corrupt, match="check"), tables.reading() as rows:
        list(rows.scan("names", b""))


def test_a_row_holds_under_its_own_key_and_in_its_own_table_alone(tables: Tables) -> None:
    put(tables, b"key", b"value")

    def copy(txn: lmdb.Transaction, names: Any) -> None:
        value = txn.get(b"key", b"", db=names)
        txn.put(b"other", value, db=names)
        txn.put(b"key", value, db=tables._environment.tables["blobs"])

    write_raw(tables, copy)
    assert get(tables, b"key") == b"value"
    with pytest.raises(Corrupt):
        get(tables, b"other")
    with pytest.raises(Corrupt), tables.reading() as rows:
        rows.get("blobs", b"key")


def test_a_full_map_grows_and_the_change_runs_again(tables: Tables) -> None:
    tables._environment.lmdb.set_mapsize(1 << 20)
    runs: list[int] = []

    def change(rows: Rows) -> None:
        runs.append(1)
        for number in range(1000):
            rows.put("names", number.to_bytes(4, "big"), bytes(4000))

    tables.write(change)
    assert len(runs) > 1
    with tables.reading() as rows:
        assert sum(1 for _ in rows.scan("names", b"")) == 1000


def test_two_openings_of_one_directory_see_each_other(tmp_path: Path) -> None:
    with opened_tables(tmp_path / "catalog") as first:
        with opened_tables(tmp_path / "catalog") as second:
            put(second, b"key", b"value")
            assert get(first, b"key") == b"value"
        put(first, b"key", b"later")  # the other one that closed took nothing away
        assert get(first, b"key") == b"later"
    with opened_tables(tmp_path / "catalog") as again:
        assert get(again, b"key") == b"later"


def test_another_check_key_opens_no_row(tmp_path: Path) -> None:
    with opened_tables(tmp_path / "catalog") as tables:
        put(tables, b"key", b"value")
    other = Tables(tmp_path / "catalog", ("names",), bytes(31) + b"\1")
    try:
        with pytest.raises(Corrupt):
            get(other, b"key")
    finally:
        other.close()


def test_a_forked_child_is_refused(tables: Tables) -> None:
    put(tables, b"key", b"value")
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        refused = 0
        for use in (get, partial(put, packed=b"child")):
            try:
                use(tables, b"key")
            except StorageFailed as error:
                refused += "before a fork" in str(error)
        os.write(writer, bytes([refused]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"\2"
    os.close(reader)
    os.close(writer)
    assert get(tables, b"key") == b"value"


def test_a_file_that_is_no_catalog_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "data.mdb").write_bytes(b"nonsense" * 4096)
    with pytest.raises(Corrupt) as caught:
        Tables(tmp_path / "catalog", ("names",), bytes(32))
    assert caught.value.hint == "run 'arstore repair --rebuild-catalog'"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_error_of_lmdb_for_lack_of_room_is_no_room(tables: Tables, code: int) -> None:
    def change(rows: Rows) -> None:
        raise lmdb.Error(f"mdb_txn_commit: {os.strerror(code)}")

    with pytest.raises(NoRoom) as caught:
        tables.write(change)
    assert caught.value.hint
    assert ("ulimit -f" in caught.value.hint) == (code == errno.EFBIG)


def test_a_limit_of_file_sizes_is_named(tmp_path: Path) -> None:
    """The catalog's file may not grow: the writer gets NoRoom, and nothing has changed."""
    with opened_tables(tmp_path / "catalog") as tables:
        put(tables, b"key", b"value")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill(rows: Rows) -> None:
            for at in range(2000):
                rows.put("names", b"%d" % at, bytes(4000))

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        try:
            with pytest.raises(NoRoom) as caught:
                tables.write(fill)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.hint
        assert "ulimit -f" in caught.value.hint
        assert get(tables, b"key") == b"value"
        tables.write(fill)
