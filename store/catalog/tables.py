"""Tables: named LMDB databases in which every value ends in a check."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from ...formats.catalog import close_row, open_row
from ...formats.errors import FormatError
from ..disk import NO_ROOM
from ..errors import Corrupt, NoRoom, ReadOnly, StorageFailed
from .environment import close_environment, open_environment

T = TypeVar("T")
_REBUILD = "run 'arstore repair --rebuild-catalog'"
_SLICE_ROWS = 4096  # of one transaction of a scan: some milliseconds, because a writer may wait for it


class Tables:
    """Transactions over checked rows. Inside one, the same thread begins no other."""

    def __init__(self, directory: Path, names: tuple[str, ...], check_key: bytes, *, read_only: bool = False) -> None:
        self._path, self._check_key = directory, check_key
        with _lmdb_errors(directory):
            self._environment = open_environment(directory, names)
        self.read_only = read_only or self._environment.read_only

    def close(self) -> None:
        close_environment(self._environment)

    @contextlib.contextmanager
    def reading(self) -> Iterator["Rows"]:
        """Give a view of all tables as they are at this moment. Be brief: a writer may wait for this to end."""
        with _lmdb_errors(self._path):
            txn, side = self._environment.begin_reading()
            try:
                yield Rows(txn, self._environment.tables, self._check_key)
            finally:
                self._environment.end_reading(txn, side)

    def scan(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys that start with `prefix`, in order, with their values, however many these are.

        A row that others change meanwhile is seen as it was before or as it is after.
        """
        last = b""
        while True:
            with self.reading() as rows:
                batch = list(islice(rows.scan(table, prefix, after=last), _SLICE_ROWS))
            yield from batch
            if len(batch) < _SLICE_ROWS:
                return
            last = batch[-1][0]

    def write(self, change: Callable[["Rows"], T], wait_s: float | None = None) -> T:
        """Perform `change` in one transaction, durable on return. It runs again if the map had to grow.

        If it raises, nothing has changed. Raises ReadOnly if the store may not be written, and Fenced if other
        processes hold it up for `wait_s`, by default for minutes.
        """
        if self.read_only:
            raise ReadOnly(str(self._path.parent), "the store is read-only")
        with _lmdb_errors(self._path):
            tables, check_key = self._environment.tables, self._check_key
            return self._environment.write(lambda txn: change(Rows(txn, tables, check_key)), wait_s)


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

    def scan(self, table: str, prefix: bytes, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield keys that start with `prefix`, in order, with their values; with `after`, those behind that key."""
        cursor = self._txn.cursor(db=self._tables[table])
        if cursor.set_range(after + b"\0" if after else prefix):
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
        for code, hint in NO_ROOM.items():  # LMDB's errors have no number here, but the system's text
            if os.strerror(code) in str(error):
                raise NoRoom(str(path), os.strerror(code).lower(), hint=hint) from error
        raise StorageFailed(str(path), str(error)) from error
