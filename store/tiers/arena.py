"""Arena: objects as extents in one directory of a memory file system, filled once, found by any later process.

An extent is filled under a hidden name and renamed when every byte in it was verified. Its stager holds it from before
that on, so it goes from nobody's use to somebody's, never through a moment in which it could be taken away.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ..disk import Disk, FileSpan, disk_errors, locked, try_lock
from ..errors import Corrupt, Fenced, NoRoom, NotFound, StorageFailed, StoreError
from ..progress import BytesTold, ignore_bytes
from .extent import (
    KEY,
    Extent,
    Head,
    attach_extent,
    drop_extent,
    extent_path,
    forget_session,
    read_name,
    remove_extent,
    wipe,
)
from .filling import filling, partial_path, remove_partial, say_erased
from .sealed import SealedExtent, blank_sums, fill_summed
from .tier import Held, Resident


class Arena:
    """The extents of one tenant of one store, in a directory that only this user can enter; keeps what tier.py says.

    With a `seal`, the tenant's key for it, extents are sealed: each reading is verified. Without, they are mapped.
    """

    def __init__(
        self, tier: str, directory: Path, capacity_bytes: int, disk: Disk, *, seal: bytes | None = None
    ) -> None:  # fmt: skip
        """Make the directory if it is not there; raise StorageFailed if that can't be, or if it is open to others."""
        self.tier, self.directory, self.capacity_bytes, self._disk, self._seal = (
            tier, directory, capacity_bytes, disk, seal
        )  # fmt: skip
        make_own(directory, disk)

    def residents(self) -> list[Resident]:
        """Return what is staged whole, by key; what turns out to be no extent, too, so that it can be removed."""
        found = []
        for path in sorted(self.directory.glob("*.extent")):
            if KEY.fullmatch(path.stem):
                with contextlib.suppress(FileNotFoundError):
                    found.append(Resident(path.stem, *read_name(path, self._seal), path.stat().st_mtime))
        return found

    def find(self, key: str) -> bool:
        """Say whether something is staged whole."""
        return self._path(key).exists()

    def hold(self, key: str, until_s: float = 0.0) -> "Extent | SealedExtent | None":
        """Return an extent, held in place, and kept until then unless asked for; None if it is not there.

        One that is damaged is wiped.
        """
        path = self._path(key)
        try:
            extent = self._open(path, key)
        except NotFound:
            return None
        except Corrupt:
            extent = None
        if extent is None:  # only here: the error has kept it open
            if not self.remove(key):
                raise Corrupt(str(path), "is no extent, and a process uses it", hint="end that process")
            return None
        with disk_errors(path):
            if path.stat().st_mtime < until_s:
                self._disk.set_time(path, until_s)
        return extent

    def filling(self, key: str, *, wait: bool) -> AbstractContextManager[None]:
        """Be the one process that stages this key while the body runs; raise Fenced if another is, unless `wait`."""
        return filling(self.directory, key, self._disk, wait=wait)

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        """Remove what is over time first, until so many bytes fit; never what is in use.

        Raises NoRoom, with nothing removed, if they can't.
        """
        with locked(self.directory):  # or two that do this would take each other for users
            there = self.residents()
            free = [one for one in there if one.key not in keep and not self._is_used(one.key)]
            used = sum(one.length_bytes for one in there) + self._filling_bytes(keep)
            kept = used - sum(one.length_bytes for one in free)
            if kept + length_bytes > self.capacity_bytes:
                why = f"{length_bytes} bytes do not fit beside {kept} in use, of {self.capacity_bytes}"
                raise NoRoom(f"{self.tier} tier", why, hint="raise --budget, stage less, or 'arstore unstage'")
            for one in sorted(free, key=lambda one: one.expires_s):
                if used + length_bytes > self.capacity_bytes:
                    used -= one.length_bytes if self.remove(one.key) else 0
            if used + length_bytes > self.capacity_bytes:
                raise NoRoom(
                    f"{self.tier} tier", "what was to be removed came into use", hint="raise --budget, or wait"
                )

    def fill(
        self, key: str, source: Held, until_s: float = 0.0, told: BytesTold = ignore_bytes
    ) -> "Extent | SealedExtent":
        """Stage an object, published in one step when its last byte was verified; return it, held in place.

        If it fails, what it left is wiped. One that is there already stays, and its time is never made shorter.
        """
        if held := self.hold(key, until_s):
            return held
        head = Head(key, source.name, tuple(source.spans), source.length_bytes)
        if self._seal:
            head = replace(head, sums=blank_sums(head.length_bytes))
        partial = partial_path(self.directory, key)
        remove_extent(partial, self._disk)  # left by a stager that was killed
        fd = self._disk.open(partial, create=True)
        try:
            with self._room_errors():
                self._write(fd, head, source, told)
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
        """Say of which file system there is no room left, and what helps."""
        try:
            yield
        except NoRoom as error:
            hint = "raise what the file system may hold, stage less, or 'arstore unstage'"
            raise NoRoom(f"{self.tier} tier: {self.directory}", error.why, hint=hint) from None

    def _write(self, fd: int, head: Head, source: Held, told: BytesTold) -> None:
        packed = head.packed(self._seal)
        start, stop = len(packed), len(packed) + head.length_bytes
        self._disk.truncate(fd, stop)  # who makes room counts it
        out = FileSpan(self._disk, fd, start, stop, told)
        if self._seal:
            packed = replace(head, sums=fill_summed(self._seal, source, out)).packed(self._seal)
        else:
            source.read(0, out)
        self._disk.write_at(fd, packed, 0)

    def _open(self, path: Path, key: str, known: Head | None = None) -> "Extent | SealedExtent":
        return SealedExtent(path, key, self._seal) if self._seal else attach_extent(path, key, known)

    def remove(self, key: str, *, over: bool = False) -> bool:
        """Wipe an extent and give its memory back, see `remove_extent`."""
        return remove_extent(self._path(key), self._disk, over=over)

    def drop(self, key: str) -> bool:
        """Wipe what has been erased, or let nobody find it any more; return whether it is wiped.

        What is being staged its stager drops when it is done.
        """
        while True:
            try:
                with self.filling(key, wait=False):
                    return drop_extent(self._path(key), self._disk)
            except Fenced:
                if say_erased(self.directory, key, self._disk):
                    return False

    def sweep(self) -> None:
        """Wipe what killed stagers left, and what is over time and nobody uses."""
        for one in self.residents():
            self.remove(one.key, over=True)
        for key in self.partials():
            remove_partial(self.directory, key, self._disk)
        for lock in (*self.directory.glob("session-*.lock"), *self.directory.glob(".*.lock")):
            self._sweep_lock(lock)

    def _sweep_lock(self, lock: Path) -> None:
        """Remove a lock that nobody holds, and what belongs to it: everybody who did was killed."""
        with contextlib.suppress(StorageFailed):
            fd = self._disk.open(lock)
            try:
                if try_lock(fd) and os.fstat(fd).st_nlink:
                    if lock.name.startswith("session-"):
                        forget_session(lock.with_suffix(".json"), self._disk)
                    self._disk.remove(lock)
            finally:
                os.close(fd)

    def partials(self) -> list[str]:
        """Return the keys of what is being staged, or was by a stager that was killed."""
        return self._hidden("partial")

    def coming(self) -> set[str]:
        """Return the keys of what somebody is at work on, or was when he was killed."""
        return {*self._hidden("partial"), *self._hidden("lock")}

    def _hidden(self, suffix: str) -> list[str]:
        found = (path.name[1 : -len(suffix) - 1] for path in self.directory.glob(f".*.{suffix}"))
        return [key for key in found if KEY.fullmatch(key)]

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


def make_own(path: Path, disk: Disk) -> None:
    """Make a directory if it is not there; raise StorageFailed unless it is this user's alone."""
    disk.make_dirs(path)
    with disk_errors(path):
        found = os.lstat(path)
    if found.st_uid != os.geteuid() or found.st_mode & 0o77 or not stat.S_ISDIR(found.st_mode):
        raise StorageFailed(str(path), "is not a directory of yours alone, mode 0700", hint="remove it")
