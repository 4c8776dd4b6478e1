"""Sources: where the bytes of one file to be stored come from, a file on disk or pieces of memory."""

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ...formats.errors import FormatError
from ..errors import BadInput, NotFound, StorageFailed, reason
from ..user_file import open_at_once
from .fingerprint import fingerprint, stat_at_rest

# Errors of opening a socket, a device without a driver, a loop of links, or a name that is too long.
_NO_FILE = (errno.ENXIO, errno.ENODEV, errno.ELOOP, errno.ENAMETOOLONG)


class Source(Protocol):
    """The bytes of one file, wherever they are."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, out: memoryview) -> None: ...

    def mapped(self, offset: int, length: int) -> contextlib.AbstractContextManager[memoryview]: ...

    def check_unchanged(self) -> None: ...


class FileSource:
    """A regular file. It is opened for each read, and each time it must be the same file, unchanged.

    `fingerprint.py` says which changes can go unseen.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _input_errors(path):
            fd = open_at_once(path)
        try:
            status = stat_at_rest(fd)
        finally:
            os.close(fd)
        if not status:
            raise _changed(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(str(path), "not a regular file or directory")
        self.mode = stat.S_IMODE(status.st_mode) & 0o777
        self._seen = fingerprint(status)

    @property
    def size(self) -> int:
        return self._seen[0]

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise FormatError if the file is shorter."""
        return _read_exactly(self, offset, length)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`; raise StorageFailed if the file is not the file that was seen first."""
        with self.opened() as fd, _input_errors(self._path):
            while out:
                got = os.preadv(fd, [out], offset)
                if not got:
                    raise _changed(self._path)
                out, offset = out[got:], offset + got

    @contextlib.contextmanager
    def mapped(self, offset: int, length: int) -> Iterator[memoryview]:
        """Give bytes of the file without copying them; raise StorageFailed if it is not the file that was seen first.

        The bytes may change while they are read, so they can be compared but not stored. The length is checked just
        before. A file that is cut short during the read ends the process.
        """
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with (
            self.opened() as fd,
            mmap.mmap(fd, offset + length - start, prot=mmap.PROT_READ, offset=start) as whole,
            memoryview(whole) as view,
            view[offset - start :] as part,
        ):
            yield part

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Give a descriptor; raise StorageFailed, before or after, if it is not the file that was seen first."""
        with _input_errors(self._path):
            fd = open_at_once(self._path)
        try:
            self._check(os.fstat(fd))
            yield fd
            self._check(os.fstat(fd))
        finally:
            os.close(fd)

    def check_unchanged(self) -> None:
        """Raise StorageFailed if the file is not the file that was seen first."""
        with _input_errors(self._path):
            self._check(os.stat(self._path))

    def _check(self, status: os.stat_result) -> None:
        if fingerprint(status) != self._seen:
            raise _changed(self._path)


class MemorySource:
    """Pieces of memory, which make one file in their order."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = pieces
        self.size = sum(len(piece) for piece in pieces)

    def read(self, offset: int, length: int) -> bytes:
        return _read_exactly(self, offset, length)

    def read_into(self, offset: int, out: memoryview) -> None:
        at = 0
        for piece in self._pieces:
            start, stop = max(offset - at, 0), min(offset + len(out) - at, len(piece))
            if start < stop:
                out[at + start - offset : at + stop - offset] = piece[start:stop]
            at += len(piece)

    def check_unchanged(self) -> None:
        """Do nothing, because the caller promises not to change its memory."""

    @contextlib.contextmanager
    def mapped(self, offset: int, length: int) -> Iterator[memoryview]:
        at = 0
        for piece in self._pieces:
            if at <= offset and offset + length <= at + len(piece):
                yield piece[offset - at : offset - at + length]  # not copied, because a copy costs more than the digest
                return
            at += len(piece)
        yield memoryview(self.read(offset, length))


def _changed(path: Path) -> StorageFailed:
    return StorageFailed(str(path), "changed while it was read", hint="run the put again when it is at rest")


class _input_errors:
    """Turn an OSError while reading a user's file into one line that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFound(str(self._path), "no such file or directory") from None
        if isinstance(error, OSError) and error.errno in _NO_FILE:
            raise BadInput(str(self._path), reason(error)) from None
        if isinstance(error, OSError):
            raise StorageFailed(str(self._path), reason(error)) from None


def _read_exactly(source: Source, offset: int, length: int) -> bytes:
    if offset < 0 or length < 0 or offset + length > source.size:
        raise FormatError(f"ends at byte {source.size}, wanted {length} bytes from {offset}")
    out = bytearray(length)
    source.read_into(offset, memoryview(out))
    return bytes(out)
