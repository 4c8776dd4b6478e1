"""Probe: measures how fast each tier is, and keeps the result for the planner.

local   two threads read 4 MiB at a time past the page cache, from a file written for this; latency: one read of 4 KiB
host    as many threads as a run has stage objects of 4 MiB as a run does: they read, decrypt and put in place. The same
        is measured with one thread, and so is removing. Latency: staging an object of 4 KiB. shared is measured alike
device  bytes go up from this process's memory, as staging does it
Each figure is the median of several rounds, so that one slow round does not spoil a plan.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...formats.tensor import TensorSpan
from ..disk import Disk, Out, make_buffer
from ..workers import ThreadBuffers, open_pool, run_all
from .arena import Arena
from .device import parse_device, upload
from .extent import Extent
from .local import StoredObject
from .speeds import Speed, Speeds, pack_speeds, speeds_path

_BYTES, _STEP, _FRAME, _PAGE, _ROUNDS, _LATENCIES = 128 << 20, 4 << 20, 1 << 20, 4096, 7, 64
WORKERS_COUNT = 3  # threads of one lane: while one waits for the disk, two decrypt what they have read
_NONCE, _TAG_BYTES = bytes(12), 16


def probe(root: Path, arenas: Sequence[Arena], now: str, disk: Disk) -> Speeds:
    """Measure the local tier under a store's root, arenas and the device, and keep the result in the store."""
    with _probe_file(root, disk) as fd:
        speeds = {"local": _probe_local(fd, now), "device": _probe_device(now)}
        speeds |= {arena.tier: _probe_arena(arena, fd, now) for arena in arenas}
    disk.replace_file(speeds_path(root), pack_speeds(speeds))
    return speeds


@contextmanager
def _probe_file(root: Path, disk: Disk) -> Iterator[int]:
    """Yield a file of random bytes on a store's disk, open past the page cache. It is gone after the body."""
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
    """Measure staging into an arena and removing, round by round. All that was staged is removed in the end."""
    buffers, cipher = ThreadBuffers(), AESGCM(os.urandom(32))
    frames = {length: cipher.encrypt(_NONCE, bytes(length - _TAG_BYTES), None) for length in (_PAGE, _FRAME)}
    base = secrets.token_hex(28)  # random, so that two probes at once don't meet
    keys = [f"{base}{number:08x}" for number in range(_BYTES // _STEP)]  # together more than a cache holds

    def stage(number: int, length: int) -> None:
        frame = min(length, _FRAME)
        plain = frame - _TAG_BYTES

        def read(at: int, out: Out) -> None:
            own = buffers.take(_STEP)
            os.preadv(fd, [own[:length]], number * _STEP)
            for start in range(0, length, frame):  # takes as long as decrypting what was read
                cipher.decrypt_into(_NONCE, frames[frame], None, own[:plain])
                out[start : start + plain] = own[:plain]

        source = StoredObject("probe", (TensorSpan("probe", "U8", (length,), 0, length),), read)
        with arena.filling(keys[number], wait=False):
            arena.fill(keys[number], source)

    def time_once(length: int, workers: int) -> tuple[float, float]:
        """Return the seconds that staging one object takes, and the seconds that removing it takes."""
        with open_pool(workers) as pool:  # one pool for both, so that making it is not timed
            stage_s = _seconds(lambda: list(pool.map(stage, range(len(keys)), [length] * len(keys))))
            return stage_s / len(keys), _seconds(lambda: list(pool.map(arena.remove, keys))) / len(keys)

    ways = ((_PAGE, WORKERS_COUNT), (_STEP, 1), (_STEP, WORKERS_COUNT))
    try:
        # The ways take turns, so that other work on the machine slows all of them. The first round warms the caches.
        rounds = [[time_once(*way) for way in ways] for _ in range(_ROUNDS + 1)][1:]
        latency, alone, together = (_median(times[way][0] for times in rounds) for way in range(3))
        remove_s = _median(times[2][1] for times in rounds)
        rates = [_STEP / max(seconds, 1e-9) for seconds in (together - latency, alone - latency, remove_s)]
        return Speed(rates[0], latency, now, rates[1], rates[2])
    finally:
        for key in keys:
            arena.remove(key)


def _rate(run: Callable[[], object]) -> float:
    run()
    return _BYTES / _median(_seconds(run) for _ in range(_ROUNDS))


def _median(seconds: Iterable[float]) -> float:
    from statistics import median  # loaded here because it takes longer than most commands have to spare

    return median(seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
