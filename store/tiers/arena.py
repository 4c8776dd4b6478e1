"""Arena: objects as extents in one directory of a memory file system. Each is filled once; any later process finds it.

An extent is filled under a hidden name, and renamed when every byte in it was verified. Its stager holds it already
before the rename. So there is no moment at which somebody else could remove it between filling and use.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ..disk import Disk, FileSpan, disk_errors
from ..errors import Corrupt, Fenced, NoRoom, NotFound, StorageFailed, StoreError
from ..locks import locked, try_lock
from ..progress import BytesTold, ignore_bytes
from .extent import (
    KEY,
    Extent,
    attach_extent,
    drop_extent,
    extent_path,
    remove_extent,
    remove_session,
    wipe,
)
from .filling import filling, mark_erased, partial_path, remove_partial
from .head import Head, read_name
from .sealed import SealedExtent, blank_sums, fill_summed
from .tier import Held, Resident


class Arena:
    """The extents of one tenant of one store, in a directory that only this user can enter. Keeps the tier's promise.

    With a `seal`, which is a key of the tenant, extents are sealed: each reading is verified. Else they are mapped.
    """

    def __init__(
        self, tier: str, directory: Path, capacity_bytes: int, disk: Disk, *, seal: bytes | None = None
    ) -> None:
        """Make the directory if it is not there.

        Raises StorageFailed if it can't be made, or if other users can enter it.
        """
        self.tier, self.directory, self.capacity_bytes = tier, directory, capacity_bytes
        self._disk, self._seal = disk, seal
        make_private(directory, disk)

    def residents(self) -> list[Resident]:
        """Return all whole extents, by key. Files that turn out to be none are listed too, so they can be removed."""
        residents = []
        for path in sorted(self.directory.glob("*.extent")):
            if KEY.fullmatch(path.stem):
                with contextlib.suppress(FileNotFoundError):
                    residents.append(Resident(path.stem, *read_name(path, self._seal), path.stat().st_mtime))
        return residents

    def find(self, key: str) -> bool:
        return self._path(key).exists()

    def hold(self, key: str, until_s: float = 0.0) -> "Extent | SealedExtent | None":
        """Return an extent, held in place; None if it is not there. A damaged one is wiped first, then None.

        Raises Corrupt if it is damaged and a process uses it.
        """
        path = self._path(key)
        try:
            extent = self._open(path, key)
        except NotFound:
            return None
        except Corrupt:
            extent = None
        if extent is None:  # not in the handler: there the error keeps the file open, so that it can't be removed
            if not self.remove(key):
                raise Corrupt(str(path), "is no extent, and a process uses it", hint="end that process")
            return None
        with disk_errors(path):
            if path.stat().st_mtime < until_s:
                self._disk.set_time(path, until_s)
        return extent

    def filling(self, key: str, *, wait: bool) -> AbstractContextManager[None]:
        return filling(self.directory, key, self._disk, wait=wait)

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        """Remove extents until so many bytes fit, those that expire first before others; see `Tier.make_room`."""
        where = f"{self.tier} tier"
        with locked(self.directory):  # without it, two processes that look would take each other for users
            residents = self.residents()
            free = [resident for resident in residents if resident.key not in keep and not self._is_used(resident.key)]
            used = sum(resident.length_bytes for resident in residents) + self._filling_bytes(keep)
            kept = used - sum(resident.length_bytes for resident in free)
            if kept + length_bytes > self.capacity_bytes:
                why = f"{length_bytes} bytes do not fit beside {kept} in use, of {self.capacity_bytes}"
                raise NoRoom(where, why, hint="raise --budget, stage less, or 'arstore unstage'")
            for resident in sorted(free, key=lambda resident: resident.expires_s):
                if used + length_bytes > self.capacity_bytes:
                    used -= resident.length_bytes if self.remove(resident.key) else 0
            if used + length_bytes > self.capacity_bytes:
                raise NoRoom(where, "what was to be removed came into use", hint="raise --budget, or wait")

    def fill(
        self, key: str, source: Held, until_s: float = 0.0, on_bytes: BytesTold = ignore_bytes
    ) -> "Extent | SealedExtent":
        """Stage an object and publish it in one step once its last byte was verified; return it, held in place.

        An object that is there already stays; its expiry is never brought forward. If filling fails, what was written
        is wiped.
        """
        if held := self.hold(key, until_s):
            return held
        head = Head(key, source.name, tuple(source.spans), source.length_bytes)
        if self._seal:
            head = replace(head, sums=blank_sums(head.length_bytes))
        partial = partial_path(self.directory, key)
        remove_extent(partial, self._disk)  # a stager that was killed may have left one
        fd = self._disk.open(partial, create=True)
        try:
            with self._room_errors():
                self._write(fd, head, source, on_bytes)
            self._disk.set_time(partial, until_s)
            extent = self._open(partial, key, head)
            self._disk.rename(partial, self._path(key))
        except BaseException:
            if partial.exists():
                with contextlib.suppress(StoreError):  # the first error counts
                    wipe(fd, partial, self._disk)
            raise
        finally:
            os.close(fd)
        return extent

    @contextlib.contextmanager
    def _room_errors(self) -> Iterator[None]:
        """Make NoRoom name the file system that is full, and give the hint that helps there."""
        try:
            yield
        except NoRoom as error:
            hint = "raise what the file system may hold, stage less, or 'arstore unstage'"
            raise NoRoom(f"{self.tier} tier: {self.directory}", error.why, hint=hint) from None

    def _write(self, fd: int, head: Head, source: Held, on_bytes: BytesTold) -> None:
        packed = head.packed(self._seal)
        start, stop = len(packed), len(packed) + head.length_bytes
        self._disk.truncate(fd, stop)  # so that `make_room` in another process counts the whole length
        out = FileSpan(self._disk, fd, start, stop, on_bytes)
        if self._seal:
            packed = replace(head, sums=fill_summed(self._seal, source, out)).packed(self._seal)
        else:
            source.read(0, out)
        self._disk.write_at(fd, packed, 0)

    def _open(self, path: Path, key: str, known: Head | None = None) -> "Extent | SealedExtent":
        return SealedExtent(path, key, self._seal) if self._seal else attach_extent(path, key, known)

    def remove(self, key: str, *, expired_only: bool = False) -> bool:
        """Wipe an extent and give its memory back, see `remove_extent`."""
        return remove_extent(self._path(key), self._disk, expired_only=expired_only)

    def drop(self, key: str) -> bool:
        """Wipe the extent of an erased object; return whether it is wiped.

        If a process uses it, only its name goes, so that nobody finds it any more. If it is being staged, its stager
        drops it when it is done.
        """
        while True:
            try:
                with self.filling(key, wait=False):
                    return drop_extent(self._path(key), self._disk)
            except Fenced:
                if mark_erased(self.directory, key, self._disk):
                    return False

    def sweep(self) -> None:
        """Wipe what killed stagers left, and expired extents that nobody uses."""
        for resident in self.residents():
            self.remove(resident.key, expired_only=True)
        for key in self.partials():
            remove_partial(self.directory, key, self._disk)
        for lock in (*self.directory.glob("session-*.lock"), *self.directory.glob(".*.lock")):
            self._sweep_lock(lock)

    def _sweep_lock(self, lock: Path) -> None:
        """Remove a lock that nobody holds, and the session it belongs to: the processes that held it were killed."""
        with contextlib.suppress(StorageFailed):
            fd = self._disk.open(lock)
            try:
                if try_lock(fd) and os.fstat(fd).st_nlink:
                    if lock.name.startswith("session-"):
                        remove_session(lock.with_suffix(".json"), self._disk)
                    self._disk.remove(lock)
            finally:
                os.close(fd)

    def partials(self) -> list[str]:
        """Return the keys of extents that are being filled, or that a killed stager left half-filled."""
        return self._hidden("partial")

    def coming(self) -> set[str]:
        """Return the keys that a stager works on, or worked on when it was killed."""
        return {*self._hidden("partial"), *self._hidden("lock")}

    def _hidden(self, suffix: str) -> list[str]:
        stems = (path.name[1 : -len(suffix) - 1] for path in self.directory.glob(f".*.{suffix}"))
        return [stem for stem in stems if KEY.fullmatch(stem)]

    def _filling_bytes(self, keep: frozenset[str]) -> int:
        """Return the bytes that others are staging now."""
        total = 0
        for key in set(self.partials()) - keep:
            with contextlib.suppress(FileNotFoundError):
                total += partial_path(self.directory, key).stat().st_size
        return total

    def _is_used(self, key: str) -> bool:
        with contextlib.suppress(StorageFailed):
            fd = self._disk.open(self._path(key))
            try:
                return not try_lock(fd)
            finally:
                os.close(fd)
        return False

    def _path(self, key: str) -> Path:
        return extent_path(self.directory, key)


def make_private(path: Path, disk: Disk) -> None:
    """Make a directory if it is not there; raise StorageFailed unless it is this user's alone."""
    disk.make_dirs(path)
    with disk_errors(path):
        status = os.lstat(path)
    if status.st_uid != os.geteuid() or status.st_mode & 0o77 or not stat.S_ISDIR(status.st_mode):
        raise StorageFailed(str(path), "is not a directory of yours alone, mode 0700", hint="remove it")
