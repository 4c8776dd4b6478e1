"""The host tier: verified tensors in shared memory, filled once, mapped by any later process of this user and tenant.

An extent is one file on a memory file system: filled under a hidden name, renamed when every byte in it was verified,
never changed after. Whoever uses it holds its shared lock, which the kernel drops with the process. Removing one takes
the lock alone, and overwrites it before it is unlinked. Its time stamp is when it may be removed without being asked.

    0     8     "ARHOST1" and a zero
    8     8     length of the table, u64 LE
    16    32    BLAKE3 of the table
    48    ..    table: JSON {"name", "bytes", "tensors": [[name, dtype, shape, start, length, stride?], …]}
    ...         zeros to the next 4,096, then the data
Valid iff magic and hash are right, every tensor lies inside the data, and the file ends with it.
"""

import contextlib
import json
import mmap
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from ...formats.tensor import TensorSpan
from ..disk import Disk, disk_errors, try_lock, wait_lock
from ..errors import Corrupt, Fenced, NoRoom, NotFound, StorageFailed

PAGE_BYTES = 4096
_MAGIC = b"ARHOST1\0"
_HEAD_BYTES = 48
_TABLE_MAX_BYTES = 1 << 30
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Resident:
    """One staged artifact: its key, its name when it was staged, its bytes, and when it may go, seconds since 1970."""

    key: str
    name: str
    length_bytes: int
    expires_s: float


@dataclass(frozen=True, slots=True)
class Extent:
    """A mapped extent. Writes go to private copies of pages; others never see them."""

    name: str
    spans: tuple[TensorSpan, ...]
    view: memoryview  # of the data

    def bytes_of(self, span: TensorSpan) -> memoryview:
        return self.view[span.start : span.start + span.length]


class HostTier:
    """The extents of one tenant of one store, in a directory that only this user can enter."""

    def __init__(self, directory: Path, capacity_bytes: int, disk: Disk) -> None:
        self._directory, self.capacity_bytes, self._disk = directory, capacity_bytes, disk
        for path in (directory.parent, directory):
            disk.make_dirs(path)
            found = os.lstat(path)
            if found.st_uid != os.geteuid() or found.st_mode & 0o77 or path.is_symlink():
                raise StorageFailed(str(path), "is not a directory of yours alone, mode 0700", hint="remove it")

    @property
    def directory(self) -> Path:
        return self._directory

    def residents(self) -> list[Resident]:
        """Return what is staged whole, by key."""
        found = []
        for path in sorted(self._directory.glob("*.extent")):
            if _NAME.fullmatch(path.stem):
                with contextlib.suppress(FileNotFoundError, Corrupt):
                    stat = path.stat()
                    found.append(Resident(path.stem, _read_name(path), stat.st_size, stat.st_mtime))
        return found

    def find(self, key: str) -> bool:
        """Say whether something is staged whole."""
        return self._path(key).exists()

    def keep(self, key: str, until_s: float) -> None:
        """See that an extent is not removed before then without being asked for."""
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < until_s:
                self._disk.set_time(path, until_s)

    @contextlib.contextmanager
    def filling(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Be the one process that stages this key while the body runs; give False if it was staged meanwhile.

        Raises Fenced if another process is staging it and `wait` is not given.
        """
        fd = self._disk.open(self._directory / f".{key}.lock", create=True)
        try:
            if wait:
                wait_lock(fd)
            elif not try_lock(fd):
                raise Fenced(key[:16], "another process is staging it", hint="wait for it with --wait")
            yield not self.find(key)
        finally:
            os.close(fd)

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        """Remove what is over time, then what was used longest ago, until so many bytes fit; never what is in use.

        Raises NoRoom, with nothing removed that was not over time, if they can't.
        """
        now, there = time.time(), self.residents()
        for one in there:
            if one.expires_s <= now and one.key not in keep:
                self.remove(one.key)
        there = [one for one in self.residents() if one.key not in keep]
        kept = sum(one.length_bytes for one in self.residents()) - sum(one.length_bytes for one in there)
        if kept + length_bytes > self.capacity_bytes:
            why = f"{length_bytes} bytes do not fit beside {kept} in use, of {self.capacity_bytes}"
            raise NoRoom("host tier", why, hint="raise --budget, stage less, or 'arstore unstage'")
        used = kept + sum(one.length_bytes for one in there)
        for one in sorted(there, key=lambda one: one.expires_s):
            if used + length_bytes <= self.capacity_bytes:
                return
            used -= one.length_bytes if self.remove(one.key) else 0
        if used + length_bytes > self.capacity_bytes:
            raise NoRoom("host tier", "what could be removed is in use", hint="raise --budget, or wait")

    @contextlib.contextmanager
    def fill(self, key: str, name: str, spans: Sequence[TensorSpan], until_s: float) -> Iterator[memoryview]:
        """Give the memory of a new extent; when the body ends, what it filled is published in one step.

        If it fails, what it left is wiped. Spans start from the data's first byte.
        """
        length = max((span.start + span.length for span in spans), default=0)
        table = json.dumps({"name": name, "bytes": length, "tensors": [_packed(span) for span in spans]}).encode()
        start = -(-(_HEAD_BYTES + len(table)) // PAGE_BYTES) * PAGE_BYTES
        partial = self._directory / f".{key}.partial"
        self._wipe(partial)  # left by a stager that was killed
        fd = self._disk.open(partial, create=True)
        try:
            self._disk.reserve(fd, start + length)
            with mmap.mmap(fd, start + length) as memory, memoryview(memory) as view:
                with contextlib.suppress(OSError, ValueError):
                    memory.madvise(mmap.MADV_HUGEPAGE)
                with view[start:] as out:
                    yield out
                view[:_HEAD_BYTES] = _MAGIC + len(table).to_bytes(8, "little") + blake3(table).digest()
                view[_HEAD_BYTES : _HEAD_BYTES + len(table)] = table
            self._disk.set_time(partial, until_s)
            self._disk.rename(partial, self._path(key))
        except BaseException:
            self._wipe(partial)
            raise
        finally:
            os.close(fd)

    def attach(self, key: str) -> Extent:
        """Map an extent, uncopied, held in place until its last tensor is gone; raise NotFound if it is not there."""
        return attach_extent(self._path(key))

    def remove(self, key: str) -> bool:
        """Wipe an extent and give its memory back; False if somebody uses it."""
        return self._wipe(self._path(key))

    def remove_if_over(self, key: str) -> bool:
        """Remove an extent whose time is over."""
        path = self._path(key)
        return not path.exists() or (path.stat().st_mtime <= time.time() and self.remove(key))

    def sweep(self) -> None:
        """Wipe what killed stagers left half filled."""
        for partial in self._directory.glob(".*.partial"):
            key = partial.name[1:].removesuffix(".partial")
            with contextlib.suppress(Fenced), self.filling(key, wait=False):
                self._wipe(partial)

    def _wipe(self, path: Path) -> bool:
        try:
            fd = self._disk.open(path)
        except StorageFailed:
            if path.exists():
                raise
            return True
        try:
            if not try_lock(fd):
                return False
            wipe(fd, path, self._disk)
        finally:
            os.close(fd)
        return True

    def _path(self, key: str) -> Path:
        assert _NAME.fullmatch(key)
        return self._directory / f"{key}.extent"


def wipe(fd: int, path: Path, disk: Disk) -> None:
    """Overwrite an extent whose lock is held alone, and unlink it."""
    disk.remove(path)  # first: nobody finds it any more; the open file keeps its pages until they are overwritten
    length = os.fstat(fd).st_size
    if length:
        with mmap.mmap(fd, length) as memory:
            for at in range(0, length, 1 << 24):
                memory[at : at + (1 << 24)] = bytes(min(1 << 24, length - at))


def attach_extent(path: Path) -> Extent:
    """Map an extent by its file; raise NotFound if it is gone, Corrupt if it is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise NotFound(path.name[:16], "is not staged (any more)", hint="stage it with 'arstore prefetch'") from None
    try:
        with disk_errors(path):
            if not try_lock(fd, shared=True):
                raise NotFound(path.name[:16], "is being removed")
            if not os.fstat(fd).st_nlink:
                raise NotFound(path.name[:16], "was removed just now")
            length = os.fstat(fd).st_size
            # Copy on write, so that tensors are writable; the map keeps the file open, and so its lock.
            memory = mmap.mmap(fd, length, access=mmap.ACCESS_COPY) if length >= PAGE_BYTES else None
    finally:
        os.close(fd)
    if memory is None:
        raise Corrupt(str(path), "is no extent")
    return _parse(path, memoryview(memory))


def _parse(path: Path, view: memoryview) -> Extent:
    table, start = _read_table(path, view)
    try:
        spans = tuple(_parse_span(*row) for row in table["tensors"])
        data = view[start : start + table["bytes"]]
        fits = all(span.start >= 0 and span.start + span.length <= len(data) for span in spans)
        if len(data) != table["bytes"] or not fits:
            raise ValueError("a tensor lies outside of it")
        return Extent(str(table["name"]), spans, data)
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(str(path), f"is no extent ({error})") from None


def _read_table(path: Path, head: "memoryview | bytes") -> tuple[dict[str, Any], int]:
    length = int.from_bytes(head[8:16], "little")
    packed = bytes(head[_HEAD_BYTES : _HEAD_BYTES + min(length, _TABLE_MAX_BYTES)])
    if head[:8] != _MAGIC or len(packed) != length or head[16:48] != blake3(packed).digest():
        raise Corrupt(str(path), "is no extent")
    return json.loads(packed), -(-(_HEAD_BYTES + length) // PAGE_BYTES) * PAGE_BYTES


def _read_name(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        head += file.read(min(int.from_bytes(head[8:16], "little"), _TABLE_MAX_BYTES))
    return str(_read_table(path, head)[0].get("name"))


def _packed(span: TensorSpan) -> list[Any]:
    packed = [span.name, span.dtype, list(span.shape), span.start, span.length]
    return packed if span.stride is None else [*packed, list(span.stride)]


def _parse_span(
    name: str, dtype: str, shape: list[int], start: int, length: int, stride: list[int] | None = None
) -> TensorSpan:
    return TensorSpan(name, dtype, tuple(shape), start, length, tuple(stride) if stride is not None else None)
