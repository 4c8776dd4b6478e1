"""Blocks of work shared out between threads, and files that the page cache forgets."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmark.programs.memory import touched

BLOCK = 4 << 20
THREADS = 2  # of everything that stands beside arstore

T = TypeVar("T")


def shared_out(tasks: Sequence[T], threads: int, work: Callable[[T, memoryview], None]) -> float:
    """Do every task, shared out between threads with a buffer each; return the seconds that it took."""
    queue, guard = iter(tasks), threading.Lock()

    def run(buffer: memoryview) -> None:
        while True:
            with guard:
                task = next(queue, None)
            if task is None:
                return
            work(task, buffer)

    workers = [threading.Thread(target=run, args=(memoryview(touched(BLOCK)),)) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def read_whole(fd: int, out: memoryview, offset: int) -> None:
    """Fill `out` from a file; a read that comes back short ends the program."""
    if os.preadv(fd, [out], offset) != len(out):
        raise SystemExit("a read came back short")


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def drop(paths: Iterable[Path]) -> None:
    """Have the page cache forget files that nobody maps."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
