"""Sealed extents: verified at each reading, for a tier that others may write to, or that may go at any moment.

The table of a sealed extent is hashed under a key of the tenant. It holds the sum of every 4 MiB of the data: BLAKE3
under the same key. Reading copies first, then checks the copy. It never maps the file: if the memory goes away, a read
gives an error, but access to a map ends the process.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from ...formats.tensor import TensorSpan
from ..disk import FileSpan, Out, disk_errors, make_buffer
from ..errors import Corrupt
from ..workers import open_pool, run_all
from .extent import open_held
from .head import read_head
from .tier import Held

if TYPE_CHECKING:
    from concurrent.futures import Future

SUM_BYTES = 4 << 20
_WINDOW_SUMS = 16  # sums that are made side by side while the next window is read
_UNKNOWN = "0" * 64


def blank_sums(length_bytes: int) -> tuple[str, ...]:
    """Return placeholders for sums, of the right number and length, for a head whose data is not known yet."""
    return (_UNKNOWN,) * -(-length_bytes // SUM_BYTES)


def fill_summed(seal: bytes, source: Held, out: FileSpan) -> tuple[str, ...]:
    """Fill `out` with an object, on every core; return the sums of its data.

    Sums are made of a private copy. If bytes were read back from `out`, a byte that others wrote would be sealed too.
    """
    step = _WINDOW_SUMS * SUM_BYTES
    windows = [memoryview(make_buffer(min(step, source.length_bytes))) for _ in range(2)]
    sums: list[str] = []
    in_work: list[list[Future[str]]] = []  # the sums of each window that is not done, oldest first

    def write_and_sum(part: memoryview, at: int) -> str:
        out[at : at + len(part)] = part
        return _sum(seal, part)

    with open_pool() as pool:
        for number, first in enumerate(range(0, source.length_bytes, step)):
            if len(in_work) == len(windows):  # the oldest window is used again below
                sums += [part.result() for part in in_work.pop(0)]
            window = windows[number % 2][: min(step, source.length_bytes - first)]
            source.read(first, window)
            starts = range(0, len(window), SUM_BYTES)
            in_work.append([pool.submit(write_and_sum, window[at : at + SUM_BYTES], first + at) for at in starts])
        sums += [part.result() for parts in in_work for part in parts]
    return tuple(sums)


class SealedExtent:
    """A sealed extent, held in place while this is referenced."""

    def __init__(self, path: Path, key: str, seal: bytes) -> None:
        """Open an extent; raise NotFound if it is gone, Corrupt unless it is this key's and sealed by this tenant."""
        self._path, self._seal = path, seal
        self._file = open(open_held(path), "rb", buffering=0)  # noqa: SIM115  the last reference closes it
        with disk_errors(path):
            self._head, self._start = read_head(path, self._file, seal)
        if self._head.key != key or len(self._head.sums) != len(blank_sums(self.length_bytes)):
            raise Corrupt(str(path), "is the extent of another key, or has too few sums")

    @property
    def name(self) -> str:
        return self._head.name

    @property
    def spans(self) -> Sequence[TensorSpan]:
        return self._head.spans

    @property
    def length_bytes(self) -> int:
        return self._head.length_bytes

    def read(self, at: int, out: Out) -> None:
        """Fill `out` with the bytes from `at` on, on every core; raise Corrupt if a sum differs."""
        run_all(self._read_piece, _pieces(at, out))

    def _read_piece(self, piece: "_Piece") -> None:
        first = piece.number * SUM_BYTES
        whole = min(SUM_BYTES, self.length_bytes - first)
        out = piece.out
        copy = out if isinstance(out, memoryview) and len(out) == whole else memoryview(make_buffer(whole))[:whole]
        with disk_errors(self._path):
            got = os.preadv(self._file.fileno(), [copy], self._start + first)
        if got != whole or _sum(self._seal, copy) != self._head.sums[piece.number]:
            raise Corrupt(f"{self._head.name}: {self._path}", f"differs from its sum at byte {first}")
        if copy is not out:
            out[:] = copy[piece.skip : piece.skip + len(out)]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where the bytes of one sum go, without the first `skip` of them."""

    number: int
    skip: int
    out: Out


def _pieces(at: int, out: Out) -> Iterator[_Piece]:
    """Cut a reading at the bounds of the sums."""
    done = 0
    while done < len(out):
        number, skip = divmod(at + done, SUM_BYTES)
        length = min(SUM_BYTES - skip, len(out) - done)
        yield _Piece(number, skip, out[done : done + length])
        done += length


def _sum(seal: bytes, data: memoryview) -> str:
    return blake3(data, key=seal, max_threads=1).hexdigest()
