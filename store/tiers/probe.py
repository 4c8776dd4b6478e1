"""Probe: how fast a tier is, measured, and kept for the planner.

local   reads of 4 MiB past the page cache by two threads, of a file written for it; latency: single reads of 4 KiB
host    objects of 4 MiB staged as a run does it, by as many threads: read so, opened, put in place; the same by one
        thread alone; and how fast they are removed; latency: what an object of nearly nothing takes. The same of shared
device  bytes from this process's memory up to it, as staging does it
Each is the median of several rounds, so that one hiccup does not become a plan.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...formats.tensor import TensorSpan
from ..disk import Disk, Out, make_buffer
from ..workers import ThreadBuffers, run_all
from .arena import Arena
from .device import kind_of, parse_device, upload
from .extent import Extent
from .local import StoredObject

PROBE_NAME = "tiers.json"
_BYTES, _STEP, _FRAME, _PAGE, _ROUNDS, _LATENCIES = 128 << 20, 4 << 20, 1 << 20, 4096, 7, 64
WORKERS_COUNT = 3  # that a lane moves objects with: while one waits for the disk two open what they have read
_NONCE, _TAG_BYTES = bytes(12), 16
_SIZE_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured of one tier: bytes a second into or out of it, seconds of the smallest access.

    Of an arena also with one thread alone, and how fast what lies there goes.
    """

    bytes_per_s: float
    latency_s: float
    measured: str
    alone_bytes_per_s: float | None = None
    evict_bytes_per_s: float | None = None


Speeds = dict[str, Speed]


def probe(root: Path, arenas: Sequence[Arena], now: str, disk: Disk) -> Speeds:
    """Measure the local tier under a store's root, arenas and the device, and keep the result in the store."""
    with _probe_file(root, disk) as fd:
        found = {"local": _probe_local(fd, now), "device": _probe_device(now)}
        found |= {arena.tier: _probe_arena(arena, fd, now) for arena in arenas}
    disk.replace_file(root / PROBE_NAME, json.dumps({name: asdict(one) for name, one in found.items()}).encode())
    return found


def read_speeds(root: Path) -> Speeds:
    """Return what was measured last; nothing where nothing was, or where it can't be read."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        with (root / PROBE_NAME).open("rb") as file:
            value = json.loads(file.read(_SIZE_MAX))
        found = {
            name: Speed(
                float(one["bytes_per_s"]), float(one["latency_s"]), str(one["measured"]),
                *(float(one[more]) if one.get(more) else None for more in ("alone_bytes_per_s", "evict_bytes_per_s")),
            )
            for name, one in value.items()
        }  # fmt: skip
        if found.keys() >= {"local", "host"} and all(map(_is_sane, found.values())):
            return found
    return {}


def predict_s(speeds: Speeds, to: str, length_bytes: int) -> float | None:
    """Return how long so many bytes take from the store up to a tier; None where that was never measured."""
    way = ("local", *(("host",) if kind_of(to) == "device" else ()), kind_of(to))
    if not speeds.keys() >= set(way):
        return None
    return length_bytes / min(speeds[tier].bytes_per_s for tier in way)


def _is_sane(speed: Speed) -> bool:
    rates = (speed.bytes_per_s, speed.alone_bytes_per_s, speed.evict_bytes_per_s)
    return all(rate is None or 0 < rate < 1e15 for rate in rates) and 0 <= speed.latency_s < 1e3


@contextmanager
def _probe_file(root: Path, disk: Disk) -> Iterator[int]:
    """Make a file of noise on a store's disk, and yield it open past the page cache; nothing of it stays."""
    path = root / f".probe-{secrets.token_hex(8)}"
    page = memoryview(make_buffer(_STEP))
    page[:] = os.urandom(_STEP)
    fd = disk.open(path, create=True, direct=True)
    try:
        disk.remove(path)
        for at in range(0, _BYTES, _STEP):
            disk.write_at(fd, page, at)
        disk.sync(fd)
        yield fd
    finally:
        os.close(fd)


def _probe_local(fd: int, now: str) -> Speed:
    buffers = ThreadBuffers()

    def read(at: int) -> None:
        os.preadv(fd, [buffers.take(_STEP)], at)

    rate = _rate(lambda: run_all(read, range(0, _BYTES, _STEP), workers=2))
    page = memoryview(make_buffer(_PAGE))
    latency = _median(_seconds(partial(os.preadv, fd, [page], at)) for at in range(0, _BYTES, _BYTES // _LATENCIES))
    return Speed(rate, latency, now)


def _probe_device(now: str) -> Speed:
    device, source = parse_device("device"), memoryview(make_buffer(_BYTES))
    whole, nothing = Extent("probe", (), source), Extent("probe", (), source[:0])
    latency = _median(_seconds(lambda: upload(nothing, device)) for _ in range(_LATENCIES))
    return Speed(_rate(lambda: upload(whole, device)), latency, now)


def _probe_arena(arena: Arena, fd: int, now: str) -> Speed:
    """Measure staging into an arena, round by round; in the end all that came has gone."""
    buffers, key = ThreadBuffers(), AESGCM(os.urandom(32))
    frames = {length: key.encrypt(_NONCE, bytes(length - _TAG_BYTES), None) for length in (_PAGE, _FRAME)}
    base = secrets.token_hex(28)  # two probes are in nobody's way
    keys = [f"{base}{number:08x}" for number in range(_BYTES // _STEP)]  # more than a cache holds

    def stage(number: int, length: int) -> None:
        frame = min(length, _FRAME)
        plain = frame - _TAG_BYTES

        def read(at: int, out: Out) -> None:
            own = buffers.take(_STEP)
            os.preadv(fd, [own[:length]], number * _STEP)
            for start in range(0, length, frame):  # as long as opening what was read
                key.decrypt_into(_NONCE, frames[frame], None, own[:plain])
                out[start : start + plain] = own[:plain]

        source = StoredObject("probe", (TensorSpan("probe", "U8", (length,), 0, length),), read)
        with arena.filling(keys[number], wait=False):
            arena.fill(keys[number], source)

    def once(length: int, workers: int) -> tuple[float, float]:
        """Return the seconds in which one object comes, and goes."""
        from concurrent.futures import ThreadPoolExecutor  # one pool for both, so that making it is not timed

        with ThreadPoolExecutor(workers) as pool:
            come = _seconds(lambda: list(pool.map(stage, range(len(keys)), [length] * len(keys))))
            return come / len(keys), _seconds(lambda: list(pool.map(arena.remove, keys))) / len(keys)

    ways = ((_PAGE, WORKERS_COUNT), (_STEP, 1), (_STEP, WORKERS_COUNT))
    try:
        # In turns, so that what the machine does meanwhile is done to all of them. The first time is for the caches.
        rounds = [[once(*way) for way in ways] for _ in range(_ROUNDS + 1)][1:]
        latency, alone, together = (_median(one[way][0] for one in rounds) for way in range(3))
        gone = _median(one[2][1] for one in rounds)
        rates = [_STEP / max(seconds, 1e-9) for seconds in (together - latency, alone - latency, gone)]
        return Speed(rates[0], latency, now, rates[1], rates[2])
    finally:
        for one in keys:
            arena.remove(one)


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
