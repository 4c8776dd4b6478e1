"""A real disk under a process that dies at a chosen operation: nothing that it does from there on takes effect."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from arstore.store.disk import Disk

OPERATIONS_MAX = 200


class Died(BaseException):
    """The process is gone; no handler of it counts."""


class MortalDisk(Disk):
    """Dies at the `at`-th operation that changes the disk: before it, or halfway through where it is a write."""

    def __init__(self, at: int | None = None, *, torn: bool = False) -> None:
        self._left, self._torn = at, torn
        self._guard = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._left is None or self._left > 0

    def make_dirs(self, path: Path, mode: int = 0o700) -> None:
        self._step()
        super().make_dirs(path, mode)

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        if create:
            self._step()
        return super().open(path, create=create, direct=direct, mode=mode)

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        dies_here = self._left == 1
        try:
            self._step()
        except Died:
            if self._torn and dies_here:
                super().write_at(fd, memoryview(source)[: len(source) // 2 // 512 * 512], offset)
            raise
        super().write_at(fd, source, offset)

    def sync(self, fd: int) -> None:
        self._step()
        super().sync(fd)

    def sync_dir(self, path: Path) -> None:
        self._step()
        super().sync_dir(path)

    def truncate(self, fd: int, length: int) -> None:
        self._step()
        super().truncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        self._step()
        return super().punch(fd, offset, length)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def _step(self) -> None:
        with self._guard:
            if self._left is not None:
                self._left = max(self._left - 1, 0)
                if not self._left:
                    raise Died


def deaths() -> Iterator[MortalDisk]:
    """Yield disks that die ever later, whole writes and torn ones, until one of them outlives what it is used for."""
    for at in range(1, OPERATIONS_MAX):
        yield MortalDisk(at, torn=True)
        yield (last := MortalDisk(at))
        if last.alive:
            return
    raise AssertionError("there was no end to the operations")


class DeadlyDisk(MortalDisk):
    """Ends the process itself, by SIGKILL: no handler of it runs at all."""

    def _step(self) -> None:
        try:
            super()._step()
        except Died:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(at: int, work: Callable[[Disk], object]) -> bool:
    """Do work in a process of its own that is killed at the `at`-th operation; say whether it came to that."""
    pid = os.fork()
    if not pid:
        try:
            work(DeadlyDisk(at))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
