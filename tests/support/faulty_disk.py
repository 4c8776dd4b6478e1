"""A disk that fails, dies and forgets on demand, in the place of the real one.

Every operation passes two points, one before it takes effect and one after; `arm` picks the point where the process
or the power goes, or the operation that fails. Until then all effects are real, on real files.

What would survive is kept beside them: for each file its durable bytes and the writes since its last sync, for each
name the state it had before a change that its directory was not synced after. When the power goes a seeded part of
that is undone: a write is lost, kept, torn at 512-byte sectors, or kept with a damaged end.

Syncs are only booked, for the real ones would take most of a test's time. LMDB writes past this seam and is
taken as it is: real and durable. A whole directory that is removed is not restored.
"""

import fcntl
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from arstore.store.disk import Disk, disk_errors

SECTOR_BYTES = 512
_FILLS = ("make_dirs", "write_at", "replace_file")


class Crash(BaseException):
    """The process is dead: nothing that it does from here on reaches the disk."""


@dataclass(slots=True)
class _Contents:
    """One file: what is durable of it, and what was done since (a write at an offset, or a cut to a length)."""

    durable: bytearray
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def settle(self) -> None:
        for offset, written in self.pending:
            _apply(self.durable, offset, written)
        self.pending.clear()


class FaultyDisk(Disk):
    """The disk of one machine, under the directory `world`. It outlives the processes that crash on it."""

    def __init__(self, world: Path) -> None:
        self.world = world
        self._survived = world.with_name(f"{world.name}.survived")
        self._guard = threading.RLock()
        self._files: dict[tuple[int, int], _Contents] = {}
        self._names: dict[Path, bytes | None] = {}  # what a name led to when its directory was last synced
        self.disarm()
        self.crashed = False

    # ---- what is to happen

    def disarm(self) -> None:
        self.operations: list[str] = []
        self.failed: str | None = None
        self._points = 0
        self._crash_at: int | None = None
        self._loss: int | None = None
        self._fail_at: int | None = None
        self._error, self._lasting = 0, False

    def arm_crash(self, at: int, loss: int | None) -> None:
        """Die at the `at`-th point from here. `loss`: None loses nothing, 0 all that was not synced, else a seed."""
        self.disarm()
        self._crash_at, self._loss = at, loss

    def arm_failure(self, at: int, error: int, *, lasting: bool = False) -> None:
        """Fail the `at`-th operation from here with an errno; with `lasting`, all that need room from there on."""
        self.disarm()
        self._fail_at, self._error, self._lasting = at, error, lasting

    def cut_power(self, loss: int) -> None:
        """Die now."""
        with self._guard:
            self._loss = loss
            self._die()

    def restart(self) -> None:
        """Put in the place of `world` what survived the crash, for the next process to find."""
        assert self.crashed, "nothing has crashed"
        for link in Path("/proc/self/fd").iterdir():
            # What the dead process held open must not go on holding locks.
            with suppress(OSError):
                target = os.readlink(link)
                ours = target.startswith(f"{self.world}/") and ".mdb" not in target
                # Maps hold descriptors too, for reading, and close them themselves.
                if ours and fcntl.fcntl(int(link.name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
                    os.close(int(link.name))
        shutil.rmtree(self.world)
        self._survived.rename(self.world)
        self.crashed = False
        self.disarm()

    # ---- the operations

    def make_dirs(self, path: Path, mode: int = 0o700) -> None:
        with self._operation("make_dirs"):
            for missing in (p for p in (path, *path.parents) if not p.exists()):
                self._names.setdefault(missing, None)
            super().make_dirs(path, mode)

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        with self._operation("open"):
            if create and not path.exists():
                self._names.setdefault(path, None)
            return super().open(path, create=create, direct=direct, mode=mode)

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        with self._guard:
            contents = self._contents(fd)
            prefix = len(source) // 2 // 4096 * 4096
            if prefix and self._next_stops():
                # A write that is cut off has begun.
                super().write_at(fd, memoryview(source)[:prefix], offset)
                contents.pending.append((offset, bytes(memoryview(source)[:prefix])))
            with self._operation("write_at"):
                super().write_at(fd, source, offset)
                contents.pending.append((offset, bytes(source)))

    def sync(self, fd: int) -> None:
        with self._guard:
            contents = self._contents(fd)
            if self._next_fails():
                # The kernel forgets what it could not write, and will call the next sync a success.
                self._lose(contents)
            with self._operation("sync"):
                contents.settle()

    def sync_dir(self, path: Path) -> None:
        with self._operation("sync_dir"):
            assert path.is_dir()
            for name in [name for name in self._names if name.parent == path]:
                del self._names[name]

    def truncate(self, fd: int, length: int) -> None:
        with self._guard:
            contents = self._contents(fd)
            with self._operation("truncate"):
                super().truncate(fd, length)
                contents.pending.append((length, None))

    def replace_file(self, path: Path, content: bytes, mode: int = 0o600) -> None:
        with self._operation("replace_file"):
            self._remember(path)
            try:
                super().replace_file(path, content, mode)
            finally:
                self._forget_unlinked()

    def rename(self, source: Path, target: Path) -> None:
        with self._operation("rename"):
            self._remember(source)
            self._remember(target)
            super().rename(source, target)
            self._forget_unlinked()

    def remove(self, path: Path) -> None:
        with self._operation("remove"):
            if path.is_file():
                self._remember(path)
            super().remove(path)
            self._forget_unlinked()

    # ---- points and failures

    @contextmanager
    def _operation(self, name: str) -> Iterator[None]:
        with self._guard:
            self._point()
            failing = self._next_fails() or (self._lasting and self.failed is not None and name in _FILLS)
            self.operations.append(name)
            if failing:
                self.failed = self.failed or name
                with disk_errors(name):
                    raise OSError(self._error, os.strerror(self._error))
            yield
            self._point()

    def _point(self) -> None:
        if self.crashed:
            raise Crash
        if self._points == self._crash_at:
            self._die()
            raise Crash
        self._points += 1

    def _next_fails(self) -> bool:
        return not self.crashed and len(self.operations) == self._fail_at

    def _next_stops(self) -> bool:
        return self._next_fails() or (not self.crashed and self._points == self._crash_at)

    # ---- what survives

    def _contents(self, fd: int) -> _Contents:
        found = os.fstat(fd)
        key = (found.st_dev, found.st_ino)
        if key not in self._files:
            self._files[key] = _Contents(bytearray(Path(f"/proc/self/fd/{fd}").read_bytes()))
        return self._files[key]

    def _remember(self, path: Path) -> None:
        if path in self._names:
            return
        self._names[path] = None
        if path.exists():
            found = path.stat()
            known = self._files.get((found.st_dev, found.st_ino))
            self._names[path] = bytes(known.durable) if known else path.read_bytes()

    def _forget_unlinked(self) -> None:
        """Forget files that are gone: their inode numbers will be those of others."""
        if not self.crashed:
            there = {(found.st_dev, found.st_ino) for found in (path.lstat() for path in self.world.rglob("*"))}
            self._files = {key: contents for key, contents in self._files.items() if key in there}

    def _lose(self, contents: _Contents) -> None:
        _settle_in_part(contents, random.Random(len(self.operations)))

    def _die(self) -> None:
        """Copy the world as it would be found afterwards; what still runs of the dead process can't touch the copy."""
        self.crashed = True
        shutil.copytree(self.world, self._survived)
        chance = random.Random(self._loss)
        files: dict[tuple[int, int], _Contents] = {}
        for path in sorted(self.world.rglob("*")):
            found = path.stat()
            contents = self._files.get((found.st_dev, found.st_ino))
            if contents is None or not path.is_file():
                continue
            copy = self._survived / path.relative_to(self.world)
            if self._loss is not None:
                if self._loss:
                    _settle_in_part(contents, chance)
                copy.write_bytes(contents.durable)
                contents.pending.clear()
            files[copy.stat().st_dev, copy.stat().st_ino] = contents
        self._files = files
        if self._loss is not None:
            for path, before in self._names.items():
                if not self._loss or chance.random() < 0.5:
                    _restore(self._survived / path.relative_to(self.world), before)
            self._names.clear()


def _settle_in_part(contents: _Contents, chance: random.Random) -> None:
    """Make a part of what is pending durable, and forget the rest."""
    for offset, written in contents.pending:
        fate = chance.choice(("lost", "kept", "torn", "damaged"))
        if fate == "lost" or written == b"" or (written is None and fate != "kept"):
            continue
        if written is None or fate == "kept":
            _apply(contents.durable, offset, written)
        elif fate == "torn":
            for at in range(0, len(written), SECTOR_BYTES):
                if chance.random() < 0.5:
                    _apply(contents.durable, offset + at, written[at : at + SECTOR_BYTES])
        else:
            end = bytearray(written)
            for _ in range(8):
                end[-1 - chance.randrange(min(len(end), SECTOR_BYTES))] ^= 1 << chance.randrange(8)
            _apply(contents.durable, offset, bytes(end))
    contents.pending.clear()


def _apply(image: bytearray, offset: int, written: bytes | None) -> None:
    if written is None:
        del image[offset:]
    image.extend(bytes(max(offset + len(written or b"") - len(image), 0)))
    if written is not None:
        image[offset : offset + len(written)] = written


def _restore(path: Path, before: bytes | None) -> None:
    if before is not None:
        path.write_bytes(before)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
