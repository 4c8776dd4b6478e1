"""Workers: threads that share a list of tasks, and the memory that each thread uses again."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import TYPE_CHECKING, TypeVar

from .disk import make_buffer

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Task = TypeVar("Task")
Result = TypeVar("Result")

_HUGE_BYTES = 2 << 20


def workers_count() -> int:
    """Return how many threads keep the cores of this machine busy."""
    return max(2, min(len(os.sched_getaffinity(0)), 16))


def run_all(perform: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int | None = None) -> list[Result]:
    """Return what `perform` gives for each task, in order. Threads share the tasks; a single task runs in this thread.

    If a task fails, its exception is raised and tasks that have not begun are dropped.
    """
    tasks = list(tasks)
    if len(tasks) <= 1:
        return [perform(task) for task in tasks]
    with open_pool(min(workers or workers_count(), len(tasks))) as pool:
        return list(pool.map(perform, tasks))


@contextmanager
def open_pool(workers: int | None = None) -> Iterator["ThreadPoolExecutor"]:
    """Yield a pool of threads for tasks that come one by one. At the end, wait for the tasks that have begun."""
    from concurrent.futures import ThreadPoolExecutor  # loaded here so that commands without threads start faster

    pool = ThreadPoolExecutor(workers or workers_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class ThreadBuffers(threading.local):
    """Memory that a thread uses again, by name. Fresh memory costs more to touch than a frame costs to decrypt."""

    def take(self, length: int, name: str = "buffer") -> memoryview:
        """Return `length` bytes of this thread's memory of that name. They hold what the last use left there.

        The memory is page-aligned. It is freed when the thread ends or this object is freed.
        """
        memory: mmap | None = self.__dict__.get(name)
        if memory is None or len(memory) < length:
            # Whole huge pages, because reads from a disk into other pages run at half the speed.
            memory = self.__dict__[name] = make_buffer(-(-length // _HUGE_BYTES) * _HUGE_BYTES)
        return memoryview(memory)[:length]
