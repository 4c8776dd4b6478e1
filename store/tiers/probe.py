"""Probe: how fast a tier is, measured, and kept for the planner.

local   reads of 4 MiB past the page cache by two threads, of a file written for it; latency: single reads of 4 KiB
host    bytes into fresh memory of its file system by two threads; the same of shared
device  bytes from this process's memory up to it, as staging does it
Each is the median of several rounds, so that one hiccup does not become a plan.
"""

import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ...formats.tensor import TensorSpan
from ..disk import Disk, make_buffer
from ..errors import StorageFailed
from .arena import Arena
from .device import parse_device, upload
from .extent import Extent

PROBE_NAME = "tiers.json"
_BYTES, _STEP, _ROUNDS, _LATENCIES = 128 << 20, 4 << 20, 5, 64
_SIZE_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured of one tier: bytes a second into or out of it, seconds of the smallest access."""

    bytes_per_s: float
    latency_s: float
    measured: str


Speeds = dict[str, Speed]


def probe(root: Path, arenas: Sequence[Arena], now: str, disk: Disk) -> Speeds:
    """Measure the local tier under a store's root, arenas and the device, and keep the result in the store."""
    found = {arena.tier: _probe_memory(arena.directory, now, disk) for arena in arenas}
    found |= {"local": _probe_local(root, now, disk), "device": _probe_device(now)}
    disk.replace_file(root / PROBE_NAME, json.dumps({name: asdict(one) for name, one in found.items()}).encode())
    return found


def read_speeds(root: Path) -> Speeds:
    """Return what was measured last; nothing where nothing was, or where it can't be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        with (root / PROBE_NAME).open("rb") as file:
            value = json.loads(file.read(_SIZE_MAX))
        found = {
            name: Speed(float(o["bytes_per_s"]), float(o["latency_s"]), str(o["measured"])) for name, o in value.items()
        }
        if found.keys() >= {"local", "host"} and all(
            0 < one.bytes_per_s < 1e15 and 0 <= one.latency_s < 1e3 for one in found.values()
        ):
            return found
    return {}


def _probe_local(root: Path, now: str, disk: Disk) -> Speed:
    path = root / f".probe-{os.getpid()}"
    buffer = memoryview(make_buffer(2 * _STEP))
    try:
        fd = disk.open(path, create=True, direct=True)
        try:
            for at in range(0, _BYTES, _STEP):
                buffer[:_STEP] = os.urandom(_STEP) if not at else buffer[:_STEP]
                disk.write_at(fd, buffer[:_STEP], at)
            disk.sync(fd)
            with ThreadPoolExecutor(2) as pool:

                def read(at: int) -> None:
                    half = at // _STEP % 2 * _STEP
                    os.preadv(fd, [buffer[half : half + _STEP]], at)

                rate = _rate(lambda: list(pool.map(read, range(0, _BYTES, _STEP))))
            latency = _median(
                _seconds(lambda at=at: os.preadv(fd, [buffer[:4096]], at))  # type: ignore[misc]
                for at in range(0, _BYTES, _BYTES // _LATENCIES)
            )
        finally:
            os.close(fd)
    finally:
        disk.remove(path)
    return Speed(rate, latency, now)


def _probe_device(now: str) -> Speed:
    device, source = parse_device("device"), memoryview(make_buffer(_BYTES))
    spans = (TensorSpan("probe", "U8", (_BYTES,), 0, _BYTES),)
    small = Extent("probe", (), source[:0])
    whole = Extent("probe", spans, source)
    return Speed(
        _rate(lambda: upload(whole, device)),
        _median(_seconds(lambda: upload(small, device)) for _ in range(_LATENCIES)),
        now,
    )


def _probe_memory(directory: Path, now: str, disk: Disk) -> Speed:
    path = directory / f".probe-{os.getpid()}"
    import numpy as np

    source = np.ones(_STEP, np.uint8)

    def fill() -> None:
        fd = disk.open(path, create=True)
        try:
            disk.reserve(fd, _BYTES)
            memory = mmap.mmap(fd, _BYTES)
            view = np.frombuffer(memory, np.uint8)

            def copy(at: int) -> None:
                np.copyto(view[at : at + _STEP], source)

            with ThreadPoolExecutor(2) as pool:
                list(pool.map(copy, range(0, _BYTES, _STEP)))
        finally:
            os.close(fd)
            disk.remove(path)

    if not directory.is_dir():
        raise StorageFailed(str(directory), "is not there")
    return Speed(_rate(fill), 0.0, now)


def _rate(run: Callable[[], object]) -> float:
    run()
    return _BYTES / _median(_seconds(run) for _ in range(_ROUNDS))


def _median(found: Iterable[float]) -> float:
    from statistics import median  # it takes longer to load than most commands have to spare

    return median(found)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
