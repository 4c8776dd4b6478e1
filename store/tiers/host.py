"""The host tier: verified tensors in shared memory, filled once, mapped by any later process of this user and tenant.

An extent is filled under a hidden name and renamed when every byte in it was verified. Its stager holds it from before
that on, so it goes from nobody's use to somebody's, never through a moment in which it could be taken away.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...formats.tensor import TensorSpan, data_bytes
from ..disk import Disk, FileSpan, locked, try_lock, wait_lock
from ..errors import Corrupt, Fenced, NoRoom, NotFound, StorageFailed
from .extent import Extent, attach_extent, pack_head, read_name, remove_extent, wipe

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Resident:
    """One staged artifact: its key, its name when it was staged, its bytes, and when it may go, seconds since 1970."""

    key: str
    name: str
    length_bytes: int
    expires_s: float


class HostTier:
    """The extents of one tenant of one store, in a directory that only this user can enter."""

    def __init__(self, directory: Path, capacity_bytes: int, disk: Disk) -> None:
        self._directory, self.capacity_bytes, self._disk = directory, capacity_bytes, disk
        for path in (directory.parent, directory):
            disk.make_dirs(path)
            found = os.lstat(path)
            if found.st_uid != os.geteuid() or found.st_mode & 0o77 or not stat.S_ISDIR(found.st_mode):
                raise StorageFailed(str(path), "is not a directory of yours alone, mode 0700", hint="remove it")

    @property
    def directory(self) -> Path:
        return self._directory

    def residents(self) -> list[Resident]:
        """Return what is staged whole, by key; what turns out to be no extent, too, so that it can be removed."""
        found = []
        for path in sorted(self._directory.glob("*.extent")):
            if _NAME.fullmatch(path.stem):
                with contextlib.suppress(FileNotFoundError):
                    found.append(Resident(path.stem, *read_name(path), path.stat().st_mtime))
        return found

    def find(self, key: str) -> bool:
        """Say whether something is staged whole."""
        return self._path(key).exists()

    def hold(self, key: str, until_s: float) -> Extent | None:
        """Return an extent, held in place, and after that until then unless asked for; None if it is not staged.

        One that is damaged is wiped.
        """
        path = self._path(key)
        try:
            extent = attach_extent(path, key)
        except NotFound:
            return None
        except Corrupt:
            extent = None
        if extent is None:  # only here: the error has kept it mapped
            if not self.remove(key):
                raise Corrupt(str(path), "is no extent, and a process uses it", hint="end that process")
            return None
        if path.stat().st_mtime < until_s:
            self._disk.set_time(path, until_s)
        return extent

    @contextlib.contextmanager
    def filling(self, key: str, *, wait: bool) -> Iterator[None]:
        """Be the one process that stages this key while the body runs; raise Fenced if another is, unless `wait`."""
        path = self._directory / f".{key}.lock"
        while True:
            fd = self._disk.open(path, create=True)
            try:
                if wait:
                    wait_lock(fd)
                elif not try_lock(fd):
                    raise Fenced(key[:16], "another process is staging it", hint="wait for it with --wait")
                if os.fstat(fd).st_nlink:  # else who had it before removed it
                    try:
                        yield
                    finally:
                        self._disk.remove(path)
                    return
            finally:
                os.close(fd)

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        """Remove what is over time, then what would be so first, until so many bytes fit; never what is in use.

        Raises NoRoom, with nothing removed that was not over time, if they can't.
        """
        with locked(self._directory):  # or two that do this would take each other for users
            now = time.time()
            for one in self.residents():
                if one.expires_s <= now and one.key not in keep:
                    self.remove(one.key)
            there = self.residents()
            free = [one for one in there if one.key not in keep and not self._is_used(one.key)]
            used = sum(one.length_bytes for one in there) + self._filling_bytes(keep)
            kept = used - sum(one.length_bytes for one in free)
            if kept + length_bytes > self.capacity_bytes:
                why = f"{length_bytes} bytes do not fit beside {kept} in use, of {self.capacity_bytes}"
                raise NoRoom("host tier", why, hint="raise --budget, stage less, or 'arstore unstage'")
            for one in sorted(free, key=lambda one: one.expires_s):
                if used + length_bytes > self.capacity_bytes:
                    used -= one.length_bytes if self.remove(one.key) else 0
            if used + length_bytes > self.capacity_bytes:
                raise NoRoom("host tier", "what was to be removed came into use", hint="raise --budget, or wait")

    def fill(
        self, key: str, name: str, spans: Sequence[TensorSpan], until_s: float, write: Callable[[FileSpan], None]
    ) -> Extent:
        """Stage what `write` puts into a file, published in one step when it returns; return it, held in place.

        If it fails, what it left is wiped. Spans start from the data's first byte.
        """
        length = data_bytes(spans)
        head = pack_head(key, name, spans, length)
        partial = self._directory / f".{key}.partial"
        remove_extent(partial, self._disk)  # left by a stager that was killed
        fd = self._disk.open(partial, create=True)
        try:
            self._disk.truncate(fd, len(head) + length)  # who makes room counts it
            write(FileSpan(self._disk, fd, len(head), len(head) + length))
            self._disk.write_at(fd, head, 0)
            self._disk.set_time(partial, until_s)
            extent = attach_extent(partial, key)
            self._disk.rename(partial, self._path(key))
        except BaseException:
            if partial.exists():
                wipe(fd, partial, self._disk)
            raise
        finally:
            os.close(fd)
        return extent

    def remove(self, key: str, *, over: bool = False) -> bool:
        """Wipe an extent and give its memory back, see `remove_extent`."""
        return remove_extent(self._path(key), self._disk, over=over)

    def sweep(self) -> None:
        """Wipe what killed stagers left, and what is over time and nobody uses."""
        for one in self.residents():
            self.remove(one.key, over=True)
        for key in self.partials():
            with contextlib.suppress(Fenced), self.filling(key, wait=False):
                remove_extent(self._directory / f".{key}.partial", self._disk)

    def partials(self) -> list[str]:
        """Return the keys of what is being staged, or was by a stager that was killed."""
        return [path.name[1:].removesuffix(".partial") for path in self._directory.glob(".*.partial")]

    def _filling_bytes(self, keep: frozenset[str]) -> int:
        """Return the bytes that others are staging now."""
        total = 0
        for key in set(self.partials()) - keep:
            with contextlib.suppress(FileNotFoundError):
                total += (self._directory / f".{key}.partial").stat().st_size
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
        assert _NAME.fullmatch(key)
        return self._directory / f"{key}.extent"
