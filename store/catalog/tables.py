"""Tables: named LMDB databases in which every value ends in a check. A process has one environment for each store."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from ...formats.catalog import close_row, open_row
from ...formats.errors import FormatError
from ..disk import Disk
from ..errors import Corrupt, NoRoom, StorageFailed

T = TypeVar("T")
# This is only address space: the file grows as it fills. A full map is doubled.
_MAP_BYTES = 16 << 30
_REBUILD = "run 'arstore repair --rebuild-catalog'"

# LMDB allows a process one environment for each file, so all openings of one directory (of two tenants, say) share it.
# A value is the environment, how many use it, and the id of the process that opened it.
_environments: dict[Path, tuple[lmdb.Environment, int, int]] = {}
_environments_guard = threading.Lock()


class Tables:
    """Transactions over checked rows."""

    def __init__(self, path: Path, names: tuple[str, ...], check_key: bytes) -> None:
        self._path, self._check_key = path, check_key
        self._pid = os.getpid()
        self._env = _open_environment(path)
        try:
            with _lmdb_errors(path):
                self._tables = {name: self._env.open_db(name.encode()) for name in names}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        _close_environment(self._path)

    @contextlib.contextmanager
    def reading(self) -> Iterator["Rows"]:
        """Give a view of all tables as they are at this moment."""
        with _lmdb_errors(self._path):
            self._check_process()
            try:
                txn = self._env.begin()
            except lmdb.MapResizedError:
                self._env.set_mapsize(0)  # another process grew the map
                txn = self._env.begin()
            with txn:
                yield Rows(txn, self._tables, self._check_key)

    def write(self, change: Callable[["Rows"], T]) -> T:
        """Perform `change` in one transaction, durable on return. It runs again if the map had to grow.

        If it raises, nothing has changed.
        """
        with _lmdb_errors(self._path):
            self._check_process()
            while True:
                try:
                    with self._env.begin(write=True) as txn:
                        return change(Rows(txn, self._tables, self._check_key))
                except lmdb.MapFullError:
                    self._env.set_mapsize(2 * self._env.info()["map_size"])
                except lmdb.MapResizedError:
                    self._env.set_mapsize(0)

    def _check_process(self) -> None:
        # LMDB's locks belong to the process: a forked child that used them would corrupt the parent's.
        if os.getpid() != self._pid:
            raise _forked(self._path)


class Rows:
    """The rows that one transaction sees."""

    def __init__(self, txn: lmdb.Transaction, tables: Mapping[str, Any], check_key: bytes) -> None:
        self._txn, self._tables, self._check_key = txn, tables, check_key

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return a row's value, or None; raise Corrupt if its check refuses."""
        value = self._txn.get(key, db=self._tables[table])
        return self._open(table, key, bytes(value)) if value is not None else None

    def put(self, table: str, key: bytes, packed: bytes) -> None:
        self._txn.put(key, close_row(self._check_key, table, key, packed), db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        self._txn.delete(key, db=self._tables[table])

    def scan(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys that start with `prefix`, in order, with their values."""
        cursor = self._txn.cursor(db=self._tables[table])
        if cursor.set_range(prefix):
            for raw_key, value in cursor:
                key = bytes(raw_key)
                if not key.startswith(prefix):
                    return
                yield key, self._open(table, key, bytes(value))

    def _open(self, table: str, key: bytes, value: bytes) -> bytes:
        try:
            return open_row(self._check_key, table, key, value)
        except FormatError as error:
            raise Corrupt("catalog", str(error), hint=_REBUILD) from None


@contextlib.contextmanager
def _lmdb_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
        lmdb.VersionMismatchError,
        lmdb.IncompatibleError,
        lmdb.BadTxnError,  # LMDB met a page it can't use earlier in this transaction
        FormatError,
    ) as error:
        raise Corrupt(str(path), str(error), hint=_REBUILD) from error
    except lmdb.Error as error:
        if "LMDB data format" in str(error):  # its two format fields have no exception class of their own
            raise Corrupt(str(path), str(error), hint=_REBUILD) from error
        if "No space" in str(error):
            raise NoRoom(str(path), "no space left on device", hint="free some space, or run 'arstore gc'") from error
        raise StorageFailed(str(path), str(error)) from error


def _forked(path: Path) -> StorageFailed:
    return StorageFailed(
        str(path), "opened before a fork", hint="close it before the fork, or start the child with spawn"
    )


def _open_environment(path: Path) -> lmdb.Environment:
    key = path.resolve()
    with _environments_guard, _lmdb_errors(path):
        if key in _environments:
            env, users, pid = _environments[key]
            if pid != os.getpid():
                raise _forked(path)
        else:
            env = lmdb.open(str(path), map_size=_MAP_BYTES, max_dbs=16, max_readers=1024, mode=0o600)
            users = 0
            env.reader_check()  # frees the slots of killed readers, which would hold old pages for ever
            _fill_up(env, path / "data.mdb")
        _environments[key] = env, users + 1, os.getpid()
    return env


def _fill_up(env: lmdb.Environment, file: Path) -> None:
    """Fill up a file with zeros to the end of its last page: reading a map beyond the end of its file is SIGBUS.

    LMDB doesn't write pages that one transaction took and gave back, so a sound file may be short. If the file was cut,
    LMDB or the checks of rows refuse the zeros.
    """

    def full_bytes() -> int:
        return int(min((env.info()["last_pgno"] + 1) * env.stat()["psize"], env.info()["map_size"]))

    if file.stat().st_size < full_bytes():
        disk = Disk()
        fd = disk.open(file)
        try:
            with env.begin(write=True):  # keeps other processes from growing the file
                if os.fstat(fd).st_size < (length := full_bytes()):
                    disk.truncate(fd, length)
        finally:
            os.close(fd)


def _close_environment(path: Path) -> None:
    key = path.resolve()
    with _environments_guard:
        env, users, pid = _environments.pop(key)
        if users > 1:
            _environments[key] = env, users - 1, pid
        else:
            env.close()
