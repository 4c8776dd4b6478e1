"""Load stored tensors into one buffer again and again, in turns with plain reads of as many bytes into that buffer.

The task is a JSON object: `store`, `name`, `paths` (files in the page cache to read from), `rounds`. The answer:
`bytes`, how many of them lie in `huge` pages, and the seconds of each round as `get` and `read`.
"""

import itertools
import json
import os
import sys
import time
from typing import Any

from benchmark.programs.blocks import BLOCK, shared_out
from benchmark.programs.memory import huge_bytes, touched

_THREADS = 2

# One read: file descriptor, offset in the file, where in the buffer, length.
Read = tuple[int, int, int, int]


def reads(paths: list[str], total: int) -> list[Read]:
    """Return block reads of `total` bytes over the files, one after the other."""
    found: list[Read] = []
    at = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        for offset in range(0, size, BLOCK):
            length = min(BLOCK, size - offset, total - at)
            if length > 0:
                found.append((fd, offset, at, length))
                at += length
    if at < total:
        raise SystemExit(f"the files hold {at} bytes, wanted {total}")
    return found


def read_all(tasks: list[Read], buffer: memoryview) -> float:
    """Do every read, shared out between two threads as they become free; return the seconds."""

    def read(task: Read, _: memoryview) -> None:
        fd, offset, at, length = task
        if os.preadv(fd, [buffer[at : at + length]], offset) != length:
            raise SystemExit("a read came back short")

    return shared_out(tasks, _THREADS, read)


def measure(task: dict[str, Any]) -> dict[str, object]:
    import numpy  # noqa: F401
    import torch  # noqa: F401

    import arstore

    with arstore.open_store(task["store"]) as store:
        total = store.get(task["name"]).tensor_bytes
        buffer = memoryview(touched(total))
        tasks = reads(task["paths"], total)
        gets: list[float] = []
        plain: list[float] = []
        for turn in itertools.count():
            began = time.perf_counter()
            tensors = store.get(task["name"]).tensors(into=buffer)
            loaded = time.perf_counter()
            del tensors
            reading = read_all(tasks, buffer)
            if turn:  # the first turn maps segments and fills the page cache
                gets.append(loaded - began)
                plain.append(reading)
            if turn == task["rounds"]:
                return {"bytes": total, "huge": huge_bytes(), "get": gets, "read": plain}
    raise AssertionError


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
