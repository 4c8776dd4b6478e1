"""Stage an artifact in the host tier again and again, in turns with what the machine can do at most.

The task is a JSON object: `store`, `name`, `paths` (the segment files), `room` (bytes of memory to have at hand before
each measurement), `rounds`. The answer: `bytes`, and the seconds of each round: `copy`, two threads copying as many
bytes into fresh huge pages; `warm`, staging from the page cache; `direct`, the segment files read past it; `cold`,
staging with nothing of them in it.
"""

import contextlib
import mmap
import os
import time
from pathlib import Path
from typing import Any

from benchmark.processes import warm
from benchmark.programs.answers import answer
from benchmark.programs.blocks import BLOCK, THREADS, drop, read_whole, shared_out
from benchmark.programs.memory import back, fresh, touched


def copy(source_memory: mmap.mmap) -> float:
    """Copy memory into fresh memory in huge pages."""
    import numpy as np

    length = len(source_memory)
    target, source = np.frombuffer(fresh(length), np.uint8), np.frombuffer(source_memory, np.uint8)

    def copy_block(at: int, _: memoryview) -> None:
        np.copyto(target[at : at + BLOCK], source[at : at + BLOCK])

    return shared_out(range(0, length, BLOCK), THREADS, copy_block)


def direct(paths: list[Path]) -> float:
    """Read the files past the page cache, by two threads; return the seconds."""
    with contextlib.ExitStack() as opened:
        blocks: list[tuple[int, int, int]] = []
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
            opened.callback(os.close, fd)
            size = os.fstat(fd).st_size
            blocks += [(fd, at, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]

        def read(block: tuple[int, int, int], buffer: memoryview) -> None:
            fd, at, length = block
            read_whole(fd, buffer[:length], at)

        return shared_out(blocks, THREADS, read)


def measure(task: dict[str, Any]) -> dict[str, object]:
    import arstore

    paths = [Path(path) for path in task["paths"]]
    found: dict[str, list[float]] = {"copy": [], "warm": [], "direct": [], "cold": []}
    total = 0

    def stage() -> float:
        nonlocal total
        with arstore.open_store(task["store"]) as store:  # a new one, that maps nothing yet
            back(task["room"])
            began = time.perf_counter()
            stage = store.prefetch([task["name"]])
            seconds = time.perf_counter() - began
            total = stage.staging.bytes
            stage.release()
        return seconds

    stage()
    source = touched(total)
    for turn in range(task["rounds"]):
        back(task["room"])
        found["copy"].append(copy(source))
        warm(paths)
        found["warm"].append(stage())
        # In turns: a disk that is lent by its host gives less to whoever comes second.
        for way in ("direct", "cold") if turn % 2 else ("cold", "direct"):
            drop(paths)
            found[way].append(direct(paths) if way == "direct" else stage())
    return {"bytes": total, **found}


if __name__ == "__main__":
    answer(measure)
