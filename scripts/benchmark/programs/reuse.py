"""Load stored tensors into one buffer again and again, in turns with the least that such a load can do.

That is to decrypt as many bytes, from memory into the same buffer; beside it stand plain reads of as many. The task is
a JSON object: `store`, `name`, `paths` (files in the page cache to read from), `rounds`. The answer: `bytes`, how many
of them lie in `huge` pages, and the seconds of each round as `get`, `decrypt` and `read`.
"""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmark.programs.answers import answer_of_store
from benchmark.programs.blocks import BLOCK, THREADS, read_whole, shared_out
from benchmark.programs.memory import huge_bytes, touched

if TYPE_CHECKING:
    import arstore

_TAG_BYTES = 16

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
    """Do every read, shared out between the threads as they become free; return the seconds."""

    def read(task: Read, _: memoryview) -> None:
        fd, offset, at, length = task
        read_whole(fd, buffer[at : at + length], offset)

    return shared_out(tasks, THREADS, read)


def decrypting(buffer: memoryview) -> Callable[[], float]:
    """Seal what is in the buffer into memory of its own; return what decrypts it back and says its seconds."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key = AESGCM(os.urandom(32))
    starts = range(0, len(buffer), BLOCK)
    sealed = memoryview(touched(len(buffer) + len(starts) * _TAG_BYTES))

    def parts(number: int) -> tuple[bytes, memoryview, memoryview]:
        plain = buffer[number * BLOCK : (number + 1) * BLOCK]
        start = number * (BLOCK + _TAG_BYTES)
        return number.to_bytes(12, "big"), plain, sealed[start : start + len(plain) + _TAG_BYTES]

    def seal(number: int, _: memoryview) -> None:
        nonce, plain, cipher = parts(number)
        key.encrypt_into(nonce, plain, None, cipher)

    def decrypt(number: int, _: memoryview) -> None:
        nonce, plain, cipher = parts(number)
        key.decrypt_into(nonce, cipher, None, plain)

    shared_out(range(len(starts)), THREADS, seal)
    return lambda: shared_out(range(len(starts)), THREADS, decrypt)


def measure(store: "arstore.Store", task: dict[str, Any]) -> dict[str, object]:
    import numpy  # noqa: F401
    import torch  # noqa: F401

    total = store.get(task["name"]).tensor_bytes
    buffer = memoryview(touched(total))
    huge = huge_bytes()
    tasks = reads(task["paths"], total)
    decrypt = decrypting(buffer)
    times: dict[str, list[float]] = {"get": [], "decrypt": [], "read": []}
    for turn in range(task["rounds"] + 1):
        began = time.perf_counter()
        tensors = store.get(task["name"]).tensors(into=buffer)
        loaded = time.perf_counter() - began
        del tensors
        seconds = {"get": loaded, "decrypt": decrypt(), "read": read_all(tasks, buffer)}
        for name in times if turn else ():  # the first turn maps segments and fills the page cache
            times[name].append(seconds[name])
    return {"bytes": total, "huge": huge, **times}


if __name__ == "__main__":
    answer_of_store(measure)
