"""Environment: the LMDB file of a catalog, opened once in a process, read and written under locks of the store's own.

LMDB's own locks are off: a process loses them when it closes any descriptor of LMDB's lock file, as a backup does, and
they take processes of two containers for one if their ids are the same. The locks here belong to open file
descriptions. They stand on bytes of `data.mdb`, far past its end:

- one byte for the writer;
- two bytes for readers: one for snapshots with an even number, one for odd ones. A reader shares the byte of the newest
  snapshot while it reads. Whoever writes snapshot n holds the byte of n alone. This is also the byte of n - 2.

So all readers of n - 2 are gone before n is written, and readers of n - 1 go on. LMDB overwrites nothing that n - 1
needs: it reuses pages that only n - 2 and older ones have, and the meta page of n - 2. A reader waits for no writer,
except for the moment between the new meta page and the end of the lock. A writer waits for readers that began two
commits ago. So a reader must be brief.
"""

import contextlib
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from ..disk import Disk
from ..errors import Fenced, StorageFailed
from ..locks import try_lock_byte, unlock_byte
from .last_write import LastWrite
from .page_check import DATA_NAME

T = TypeVar("T")
_WRITER, _READERS = 1 << 62, (1 << 62) + 1
_WAIT_S = 300.0  # no transaction takes as long
# The map is address space alone, which some machines limit. It has room for twice the file, and is made anew when full.
_MAP_MIN_BYTES = 64 << 20
_PROBE_BYTES = 1 << 20


class Environment:
    """One catalog file. Threads may share it. A process that forks must open its own."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.path, self._pid = directory, os.getpid()
        self._guard = threading.Lock()  # held for moments, never while waiting
        self._readers = [0, 0]  # how many transactions of this process share each byte
        self._writing = self._growing = self._failed = False
        self._turn, self._busy = threading.Lock(), threading.local()
        with contextlib.ExitStack() as opened:
            # Locks of one opening never conflict, so the writer of this process has another one than its readers.
            self._fd, self.read_only = Disk().open_as_allowed(directory / DATA_NAME)
            opened.callback(os.close, self._fd)
            self._reader_fd = os.open(directory / DATA_NAME, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, self._reader_fd)
            self._last_write = LastWrite(directory, self._fd)
            with _hold_byte(self._reader_fd, _WRITER, shared=True):
                self._last_write.check()
                size = _room_for(os.fstat(self._fd).st_size)
                _check_address_space(size)
                self.lmdb = lmdb.open(
                    str(directory), map_size=size, max_dbs=16, mode=0o600,
                    readonly=self.read_only, lock=False, metasync=False, create=False,
                )  # fmt: skip
                opened.callback(self.lmdb.close)
                tables = self._open_tables(names)
            if not tables:
                tables = self.write(lambda txn: {name: self.lmdb.open_db(name.encode(), txn) for name in names})
            self.tables, self._opened = tables, opened.pop_all()

    def _open_tables(self, names: Sequence[str]) -> dict[str, Any]:
        try:
            return {name: self.lmdb.open_db(name.encode(), create=False) for name in names}
        except lmdb.NotFoundError:  # a new file has none
            return {}

    def close(self) -> None:
        self._opened.close()

    def begin_reading(self) -> tuple[lmdb.Transaction, int]:
        """Begin to read the newest snapshot; return the transaction and the byte that it shares, for `end_reading`."""
        self._enter()
        try:
            return self._begin()
        except BaseException:
            self._busy.busy = False
            raise

    def end_reading(self, txn: lmdb.Transaction, side: int) -> None:
        txn.abort()
        with self._guard:
            self._leave(side)
        self._busy.busy = False

    def write(self, change: Callable[[lmdb.Transaction], T], wait_s: float | None = None) -> T:
        """Perform `change` in one transaction, durable on return. It runs again if the map had to grow.

        If it raises, nothing has changed. Raises Fenced if other processes hold it up for `wait_s`.
        """
        self._enter()
        try:
            with self._turn, _hold_byte(self._fd, _WRITER, wait_s=wait_s):
                return self._write(change, wait_s)
        finally:
            self._busy.busy = False

    def _write(self, change: Callable[[lmdb.Transaction], T], wait_s: float | None) -> T:
        if self._failed:
            raise StorageFailed(str(self.path), "a sync failed before", hint="open the store again")
        try:
            while True:
                with contextlib.suppress(lmdb.MapFullError, lmdb.MapResizedError):
                    return self._commit(change, wait_s)
                self._grow()
        except lmdb.Error as error:
            if os.strerror(errno.EIO) in str(error):  # also what LMDB says of a write that ended halfway
                Disk().reserve(self._fd, os.fstat(self._fd).st_size + _PROBE_BYTES)  # raises NoRoom if that was why
            raise
        finally:
            self._last_write.renew()

    def _commit(self, change: Callable[[lmdb.Transaction], T], wait_s: float | None) -> T:
        number = self._newest() + 1
        with _hold_byte(self._fd, _READERS + number % 2, wait_s=wait_s):
            with self._guard:
                txn, self._writing = self.lmdb.begin(write=True), True
            try:
                with txn:
                    result = change(txn)
            finally:
                self._writing = False
        if self._newest() == number:  # readers see it by now, and the next writer waits until it is durable
            self._failed = True  # a sync that failed once may report success when it is tried again
            self.lmdb.sync(True)
            self._failed = False
        return result

    def _newest(self) -> int:
        with self._guard:  # while the map is made anew there is nothing to read
            return int(self.lmdb.info()["last_txnid"])

    def _begin(self) -> tuple[lmdb.Transaction, int]:
        for _ in _moments("a commit does not end"):
            try:
                with self._guard:
                    begun = self._try_begin() if not self._growing else None
            except lmdb.MapResizedError:  # another process wrote past the end of this map
                self._grow()
            else:
                if begun:
                    return begun
        raise AssertionError("unreachable")

    def _try_begin(self) -> tuple[lmdb.Transaction, int] | None:
        number = int(self.lmdb.info()["last_txnid"])
        side = number % 2
        if not self._readers[side] and not try_lock_byte(self._reader_fd, _READERS + side, shared=True):
            return None  # its commit is about to end, or a newer one is there by now
        self._readers[side] += 1
        txn = None
        try:
            txn = self.lmdb.begin()
            if txn.id() == number:
                return txn, side
        except BaseException:
            self._leave(side)
            raise
        txn.abort()
        self._leave(side)
        return None

    def _leave(self, side: int) -> None:
        self._readers[side] -= 1
        if not self._readers[side]:
            unlock_byte(self._reader_fd, _READERS + side)

    def _grow(self) -> None:
        """Make a larger map, once no transaction of this process uses the old one."""
        self._growing = True
        try:
            for _ in _moments("a reader of this process does not end"):
                with self._guard:
                    if not self._writing and not any(self._readers):
                        info = self.lmdb.info()
                        used = (info["last_pgno"] + 1) * self.lmdb.stat()["psize"]
                        size = max(2 * info["map_size"], _room_for(used))
                        _check_address_space(size)
                        self.lmdb.set_mapsize(size)
                        return
        finally:
            self._growing = False

    def _enter(self) -> None:
        """Note that this thread begins a transaction."""
        if os.getpid() != self._pid:
            raise _forked(self.path)
        if getattr(self._busy, "busy", False):
            raise RuntimeError("a transaction inside another one could wait for itself")
        self._busy.busy = True

    def drop_in_child(self) -> None:
        """Close the descriptors in a forked child, once. If it kept them, locks would outlive their process."""
        self._opened.pop_all()
        for fd in (self._fd, self._reader_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._reader_fd = -1


@contextlib.contextmanager
def _hold_byte(fd: int, offset: int, *, shared: bool = False, wait_s: float | None = None) -> Iterator[None]:
    for _ in _moments("another process has kept it", wait_s):
        if try_lock_byte(fd, offset, shared=shared):
            break
    try:
        yield
    finally:
        unlock_byte(fd, offset)


def _moments(why: str, limit_s: float | None = None) -> Iterator[None]:
    """Yield at once, and again after short waits; raise Fenced after `limit_s`, by default `_WAIT_S`."""
    limit_s = _WAIT_S if limit_s is None else limit_s
    deadline, pause_s = time.monotonic() + limit_s, 0.0001
    while True:
        yield
        if time.monotonic() > deadline:
            raise Fenced("catalog", f"{why} for {limit_s:.0f} s", hint="a process that uses the store may be stopped")
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, 0.001)


def _room_for(used_bytes: int) -> int:
    return max(2 * used_bytes, _MAP_MIN_BYTES)


def _check_address_space(size: int) -> None:
    """Raise StorageFailed if a map of this size can't be made: LMDB gives up its old one first, and then has none."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()
    except OSError as error:
        why = f"no address space for a map of {size >> 20} MiB"
        raise StorageFailed("catalog", why, hint="raise the limit that 'ulimit -v' shows") from error


def _forked(path: Path) -> StorageFailed:
    hint = "close it before the fork, or start the child with spawn"
    return StorageFailed(str(path), "opened before a fork", hint=hint)


# LMDB allows a process one environment for each file, so all openings of one file (of two tenants, or by two paths)
# share it. A value is the environment and how many use it.
_shared: dict[tuple[int, int], tuple[Environment, int]] = {}
_shared_guard = threading.Lock()


def open_environment(directory: Path, names: Sequence[str]) -> Environment:
    """Open the catalog file in a directory with tables of these names, or share the environment that has it open."""
    key = _file_key(directory)
    with _shared_guard:
        environment, users = _shared[key] if key in _shared else (Environment(directory, names), 0)
        if environment._pid != os.getpid():
            raise _forked(directory)
        _shared[key] = environment, users + 1
    return environment


def close_environment(environment: Environment) -> None:
    with _shared_guard:
        [key] = [key for key, (other, _) in _shared.items() if other is environment]
        _, users = _shared.pop(key)
        if users > 1:
            _shared[key] = environment, users - 1
        else:
            environment.close()


def _file_key(directory: Path) -> tuple[int, int]:
    status = os.stat(directory / DATA_NAME)
    return status.st_dev, status.st_ino


def _drop_in_child() -> None:
    for environment, _ in _shared.values():
        environment.drop_in_child()
    _shared_guard.release()


os.register_at_fork(before=_shared_guard.acquire, after_in_parent=_shared_guard.release, after_in_child=_drop_in_child)
