"""Measure what one thread, and two, do at most of the work that bounds arstore: AES-256-GCM and BLAKE3, keyed.

The task is a JSON object: `bytes` of each measurement, `rounds`. The answer: for each kind of work, by the number of
threads, the bytes per second of each round. Every thread works on one block of its own, again and again, so that
caches serve it and memory bounds nothing.
"""

from collections.abc import Callable
from typing import Any

from benchmark.programs.answers import answer
from benchmark.programs.blocks import BLOCK, shared_out
from benchmark.programs.memory import touched
from benchmark.rows import AES, BLAKE3

_THREADS = (1, 2)
_NONCE = bytes(12)


def opening() -> Callable[[int, memoryview], None]:
    """Return the work of decrypting a sealed block into a thread's buffer."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key = AESGCM(bytes(32))
    sealed = key.encrypt(_NONCE, bytes(BLOCK), None)

    def decrypt(_: int, buffer: memoryview) -> None:
        key.decrypt_into(_NONCE, sealed, None, buffer)

    return decrypt


def hashing() -> Callable[[int, memoryview], None]:
    """Return the work of hashing a block, as arstore does: under a key, by one thread."""
    from blake3 import blake3

    key, plain = bytes(32), memoryview(touched(BLOCK))

    def digest(_: int, __: memoryview) -> None:
        blake3(plain, key=key, max_threads=1).digest()

    return digest


def measure(task: dict[str, Any]) -> dict[str, dict[int, list[float]]]:
    blocks = range(int(task["bytes"]) // BLOCK)
    works = {AES: opening(), BLAKE3: hashing()}
    rates: dict[str, dict[int, list[float]]] = {name: {threads: [] for threads in _THREADS} for name in works}
    for _ in range(task["rounds"]):
        for name, work in works.items():
            for threads in _THREADS:
                rates[name][threads].append(len(blocks) * BLOCK / shared_out(blocks, threads, work))
    return rates


if __name__ == "__main__":
    answer(measure)
