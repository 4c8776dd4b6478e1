"""Erase an artifact of many small tensors and one of a few large ones, in turns with what people do to files instead.

The task is a JSON object: `store`, `folder` (an empty one, on the same disk), `small` and `large` (each how many
objects, and how many bytes each has), `rounds`. The answer: the seconds of each round, for erasing `small` and `large`,
and for `unlink` and `overwrite` of files like the small objects; everything is durable when its clock stops.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arstore
from benchmark.programs.answers import answer_of_store
from benchmark.programs.blocks import sync


def put(store: arstore.Store, count: int, length: int) -> None:
    """Store `count` fresh tensors of `length` bytes as one artifact."""
    import numpy as np
    import torch

    drawn = np.random.default_rng().bytes(count * length)
    tensors = torch.frombuffer(bytearray(drawn), dtype=torch.uint8).reshape(count, length)
    store.put(tensors={f"tensor.{n:05d}": row for n, row in enumerate(tensors)}, name="gone", kind="intermediate")


def write_files(folder: Path, count: int, length: int) -> list[Path]:
    paths = [folder / f"{n:05d}" for n in range(count)]
    for path in paths:
        path.write_bytes(os.urandom(length))
    os.sync()
    return paths


def unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink()
    sync(paths[0].parent)


def overwrite(paths: list[Path]) -> None:
    """Do what `shred -n 1 -u` does: random bytes over the old ones, synced, then the name goes."""
    for path in paths:
        with path.open("r+b", buffering=0) as file:
            file.write(os.urandom(path.stat().st_size))
            os.fsync(file.fileno())
    unlink(paths)


def timed(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def measure(store: arstore.Store, task: dict[str, Any]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"small": [], "large": [], "unlink": [], "overwrite": []}
    for turn in range(task["rounds"] + 1):
        seconds = {}
        for name in ("small", "large"):
            put(store, *task[name])
            seconds[name] = timed(store.erase, "gone")
        for name, work in (("unlink", unlink), ("overwrite", overwrite)):
            seconds[name] = timed(work, write_files(Path(task["folder"]), *task["small"]))
        for name in found if turn else ():  # the first turn warms what is warm in the others
            found[name].append(seconds[name])
    return found


if __name__ == "__main__":
    answer_of_store(measure)
