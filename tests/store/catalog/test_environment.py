"""Environment: LMDB under locks of the store's own, which hold between threads, processes and containers."""

import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from arstore.store.catalog import environment
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.tables import Rows, Tables
from arstore.store.errors import Fenced, StorageFailed
from tests.support.beside import inside, leave, worker
from tests.support.catalog_rows import ALL_TABLES, INDEX_KEY, new_version, opened_tables, place
from tests.support.catalog_worker import FIRST, add_one, number, read


def put_all(tables: Tables, keys: Sequence[bytes], value: bytes) -> None:
    def change(rows: Rows) -> None:
        for key in keys:
            rows.put("names", key, value)

    tables.write(change)


def stop_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have whoever waits give up at once."""
    monkeypatch.setattr(environment, "_WAIT_S", 0.0)


# ---- readers and writers


def test_a_reader_sees_its_snapshot_and_holds_up_the_second_commit(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.write(add_one)
    with ThreadPoolExecutor(1) as pool:
        with tables.reading() as rows:
            assert pool.submit(tables.write, add_one).result() == 2
            assert number(rows, FIRST) == 1
            with monkeypatch.context() as patched:
                stop_waiting(patched)
                with pytest.raises(Fenced, match="another process has kept it"):
                    pool.submit(tables.write, add_one).result()
            assert number(rows, FIRST) == 1
        assert pool.submit(tables.write, add_one).result() == 3


def test_a_reader_of_another_process_holds_up_the_second_commit(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_tables(directory) as tables:
        tables.write(add_one)
        with inside(directory, "hold-read") as reader:
            assert tables.write(add_one) == 2
            with monkeypatch.context() as patched:
                stop_waiting(patched)
                with pytest.raises(Fenced):
                    tables.write(add_one)
            assert read(tables) == 2  # newer snapshots are read beside it
            leave(reader)
        assert tables.write(add_one) == 3


@pytest.mark.parametrize("what", ["hold-read", "hold-write", "fork-write"])
def test_a_killed_process_holds_nothing_up(directory: Path, what: str) -> None:
    """A child that it forked lives on, and keeps none of its locks."""
    with opened_tables(directory) as tables:
        tables.write(add_one)
        with inside(directory, what) as process:
            process.kill()
            process.wait()
            assert [tables.write(add_one) for _ in range(3)] == [2, 3, 4]
            assert read(tables) == 4


def test_a_writer_of_another_process_keeps_writers_out_and_no_reader(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_tables(directory) as tables:
        tables.write(add_one)
        with inside(directory, "hold-write"):
            assert read(tables) == 1
            stop_waiting(monkeypatch)
            with pytest.raises(Fenced) as caught:
                tables.write(add_one)
            assert caught.value.hint == "a process that uses the store may be stopped"


def test_what_is_noted_while_reading_waits_for_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped inside a transaction holds up no `get`, which notes a time of use."""
    with opened_tables(directory) as tables:
        catalog = Catalog(tables, 0, INDEX_KEY)
        catalog.commit(new_version("model", 1, place(catalog.new_segment(1), 1), {}))
        with inside(directory, "hold-write"):
            monkeypatch.setattr("arstore.store.catalog.catalog._NOTE_WAIT_S", 0.0)
            catalog.set_used("model", 1, 1000)
        catalog.set_used("model", 1, 2000)
        assert [row.used_s for _, row in catalog.versions()] == [2000]


def test_a_copy_of_the_files_drops_no_lock(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup by the process that writes: it opens and closes each file of the catalog."""
    with opened_tables(directory) as tables:
        tables.write(add_one)

        def change(rows: Rows) -> None:
            add_one(rows)
            shutil.copytree(directory, tmp_path / "backup")
            other = worker(directory, "write", 1, before=("timeout", "2"))
            assert other.wait() == 124  # it waits for this transaction

        tables.write(change)
        assert read(tables) == 2


def test_what_a_scan_gives_may_be_written_while_it_goes_on(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [b"%04d" % at for at in range(100)]
    put_all(tables, keys, b"value")
    monkeypatch.setattr("arstore.store.catalog.tables._SLICE_ROWS", 7)
    seen = []
    for key, value in tables.scan("names", b""):
        assert value == b"value"
        tables.write(partial(Rows.delete, table="names", key=key))
        seen.append(key)
    assert seen == keys
    assert list(tables.scan("names", b"")) == []


def test_a_transaction_inside_another_is_refused(tables: Tables) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"), tables.reading():
        tables.write(add_one)
    with pytest.raises(RuntimeError, match="wait for itself"):
        tables.write(lambda rows: read(tables))
    assert tables.write(add_one) == 1


def test_threads_read_while_the_map_grows(tables: Tables) -> None:
    """A map that is made anew has no reader: every thread reads to its end, and begins anew."""
    tables._environment.lmdb.set_mapsize(1 << 20)
    done = threading.Event()

    def reading() -> int:
        reads = 0
        while not done.is_set() or not reads:
            with tables.reading() as rows:
                values = {value for _, value in rows.scan("names", b"")}
                assert len(values) <= 1
            reads += 1
        return reads

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(reading) for _ in range(3)]
        try:
            for at in range(6):
                put_all(tables, [b"%d" % row for row in range(900)], bytes([at]) * 1500)
        finally:
            done.set()
        assert all(reader.result() for reader in readers)
    assert tables._environment.lmdb.info()["map_size"] > 1 << 20


def test_a_process_with_a_small_map_sees_what_another_one_added(directory: Path) -> None:
    with opened_tables(directory) as tables:
        tables._environment.lmdb.set_mapsize(1 << 20)
        with worker(directory, "write", 300) as other:
            assert other.wait() == 0
        assert read(tables) == 300
        assert tables.write(add_one) == 301


# ---- one file, many ways


def test_two_paths_of_one_file_share_it(directory: Path, tmp_path: Path) -> None:
    with opened_tables(directory) as tables:
        (tmp_path / "link").symlink_to(directory)
        with opened_tables(tmp_path / "link") as linked:
            assert linked.write(add_one) == 1
            assert linked._environment is tables._environment
        assert read(tables) == 1


def test_a_sync_that_failed_is_not_tried_again(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def sync(self, force: bool) -> None:
            raise StorageFailed("catalog", "input/output error")

    real = tables._environment.lmdb
    monkeypatch.setattr(tables._environment, "lmdb", Failing())
    with pytest.raises(StorageFailed, match="input/output error"):
        tables.write(add_one)
    monkeypatch.undo()
    with pytest.raises(StorageFailed, match="a sync failed before"):
        tables.write(add_one)


# ---- limits of the address space


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
from tests.support import catalog_worker
import arstore.store.catalog.environment, lmdb
now = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
catalog_worker.main(*sys.argv[1:])
"""


def test_little_address_space_is_enough(directory: Path) -> None:
    with opened_tables(directory) as tables:
        tables.write(add_one)
    command = [sys.executable, "-c", LIMITED, str(100 << 20), str(directory), "write", "3"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["2", "3", "4"]


def test_a_map_that_can_not_grow_is_an_error_and_loses_nothing(directory: Path) -> None:
    with opened_tables(directory) as tables:
        tables.write(add_one)
        limits = resource.getrlimit(resource.RLIMIT_AS)

        def fill(rows: Rows) -> None:
            for at in range(20_000):
                rows.put("identities", b"%d" % at, bytes(4000))

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        try:
            resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), limits[1]))
            with pytest.raises(StorageFailed, match="address space"):
                tables.write(fill)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
        assert read(tables) == 1
        tables.write(fill)
        assert tables.write(add_one) == 2


# ---- a new file


def test_all_tables_are_there_in_a_new_file(directory: Path) -> None:
    with opened_tables(directory) as tables:
        assert tables._environment.tables.keys() == set(ALL_TABLES)
    assert sorted(path.name for path in directory.iterdir()) == ["data.mdb", "last-write"]
