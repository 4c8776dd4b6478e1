"""What a user hands to `put`: files on disk or tensors in memory, as sources of bytes and tables of tensors."""

import contextlib
import errno
import fnmatch
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...formats.errors import FormatError
from ...formats.manifest import check_path
from ...formats.readers.sniff import read_table
from ...formats.tensor import DTYPE_BITS, TensorSpan
from ..errors import BadInput, NotFound, StorageFailed, reason
from .fingerprint import fingerprint, stat_at_rest

if TYPE_CHECKING:
    import torch

FILES_MAX_COUNT = 1_000_000
# What opening a socket, a device without a driver, a loop of links or an overlong name says.
_NO_FILE = (errno.ENXIO, errno.ENODEV, errno.ELOOP, errno.ENAMETOOLONG)


class Source(Protocol):
    """The bytes of one file, wherever they are."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, out: memoryview) -> None: ...

    def mapped(self, offset: int, length: int) -> contextlib.AbstractContextManager[memoryview]: ...

    def check_unchanged(self) -> None: ...


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to be stored: where it goes in the artifact, its bytes, and the tensors that were found in it."""

    path: str
    mode: int
    source: Source
    format: str
    spans: tuple[TensorSpan, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One artifact to be: `single` where a file was given and not a directory."""

    single: bool
    directories: tuple[tuple[str, int], ...]
    files: tuple[InputFile, ...]

    def check_unchanged(self) -> None:
        """Raise StorageFailed unless every file is still the one that was seen first.

        Called when all of them are read, it proves that what was read stood there at one moment.
        """
        for file in self.files:
            file.source.check_unchanged()


class FileSource:
    """A regular file, opened for each read and held to be the same file, unchanged, every time.

    `fingerprint` says which changes can go unseen.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _input_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = stat_at_rest(fd)
        finally:
            os.close(fd)
        if not found:
            raise _changed(path)
        if not stat.S_ISREG(found.st_mode):
            raise BadInput(str(path), "not a regular file or directory")
        self.mode = stat.S_IMODE(found.st_mode) & 0o777
        self._seen = fingerprint(found)

    @property
    def size(self) -> int:
        return self._seen[0]

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; raise FormatError if the file is shorter."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise FormatError(f"ends at byte {self.size}, wanted {length} bytes from {offset}")
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`; raise StorageFailed if the file is not the one that was seen first."""
        with _input_errors(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while out:
                    got = os.preadv(fd, [out], offset)
                    if not got:
                        break
                    out, offset = out[got:], offset + got
                self._check(os.fstat(fd))
            finally:
                os.close(fd)
        if out:
            raise _changed(self._path)

    @contextlib.contextmanager
    def mapped(self, offset: int, length: int) -> Iterator[memoryview]:
        """Give bytes of the file in place, uncopied; raise StorageFailed if it is not the one that was seen first.

        What is read may change under the reader: good for looking, not for storing. The length is checked just before;
        a file that is cut short within the milliseconds of the look ends the process.
        """
        with _input_errors(self._path):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._check(os.fstat(fd))
            start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            with (
                mmap.mmap(fd, offset + length - start, prot=mmap.PROT_READ, offset=start) as whole,
                memoryview(whole) as view,
                view[offset - start :] as part,
            ):
                yield part
            self._check(os.fstat(fd))
        finally:
            os.close(fd)

    def check_unchanged(self) -> None:
        """Raise StorageFailed if the file is not the one that was seen first."""
        with _input_errors(self._path):
            self._check(os.stat(self._path))

    def _check(self, found: os.stat_result) -> None:
        if fingerprint(found) != self._seen:
            raise _changed(self._path)


class MemorySource:
    """Pieces of memory, one after the other, as one file."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self._pieces = pieces
        self.size = sum(len(piece) for piece in pieces)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise FormatError(f"ends at byte {self.size}, wanted {length} bytes from {offset}")
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        at = 0
        for piece in self._pieces:
            start, stop = max(offset - at, 0), min(offset + len(out) - at, len(piece))
            if start < stop:
                out[at + start - offset : at + stop - offset] = piece[start:stop]
            at += len(piece)

    def check_unchanged(self) -> None:
        """Do nothing: the caller keeps its memory as it is."""

    @contextlib.contextmanager
    def mapped(self, offset: int, length: int) -> Iterator[memoryview]:
        at = 0
        for piece in self._pieces:
            if at <= offset and offset + length <= at + len(piece):
                yield piece[offset - at : offset - at + length]  # in place: a copy costs more than its digest
                return
            at += len(piece)
        yield memoryview(self.read(offset, length))


def take_inputs(
    path: str | Path | None, tensors: "Mapping[str, torch.Tensor] | None", opaque: Sequence[str], *, look_inside: bool
) -> Inputs:
    """Return what is at a path, or tensors; raise BadInput unless one of the two is given."""
    if (path is None) == (tensors is None):
        raise BadInput("input", "wanted a path or tensors, one of them")
    return (
        inputs_from_tensors(tensors)
        if tensors is not None
        else inputs_from_path(Path(path or ""), opaque, look_inside=look_inside)
    )


def inputs_from_path(path: Path, opaque: Sequence[str], *, look_inside: bool) -> Inputs:
    """Return what is at `path`, every tensor table read and checked before a byte is stored.

    Links to files are followed, as Hugging Face's cache needs; links to directories are refused. Files that match a
    glob in `opaque`, and all files unless `look_inside`, are taken as bytes.
    Raises NotFound if nothing is there, BadInput for anything that can't be stored or breaks its format.
    """
    if not os.path.lexists(path):
        raise NotFound(str(path), "no such file or directory")
    if not path.is_dir():
        return Inputs(True, (), (_input_file(path, path.name, opaque, look_inside),))
    directories: list[tuple[str, int]] = []
    files: list[InputFile] = []
    for folder, names in _walk(path):
        inside = folder.relative_to(path).as_posix()
        if inside != ".":
            directories.append((_checked(inside), stat.S_IMODE(folder.stat().st_mode) & 0o777))
        for name in names:
            relative = name if inside == "." else f"{inside}/{name}"
            files.append(_input_file(folder / name, relative, opaque, look_inside))
            if len(files) > FILES_MAX_COUNT:
                raise BadInput(str(path), f"more than {FILES_MAX_COUNT} files")
    return Inputs(False, tuple(directories), tuple(files))


def inputs_from_tensors(tensors: Mapping[str, "torch.Tensor"]) -> Inputs:
    """Return tensors in host memory as one safetensors file; raise BadInput for what the format can't hold."""
    from ...formats.readers.safetensors import read_table as read_safetensors
    from ...formats.readers.safetensors import write_header
    from .tensors import dtype_name, tensor_bytes

    named = sorted(tensors.items(), key=lambda pair: (-DTYPE_BITS[dtype_name(pair[1])], pair[0]))
    try:
        header = write_header([(name, dtype_name(tensor), tuple(tensor.shape)) for name, tensor in named])
        source = MemorySource([memoryview(header), *(tensor_bytes(tensor) for _, tensor in named)])
        spans = read_safetensors(source)
    except FormatError as error:
        raise BadInput("tensors", str(error)) from None
    return Inputs(True, (), (InputFile("tensors.safetensors", 0o644, source, "safetensors", spans),))


def _input_file(path: Path, relative: str, opaque: Sequence[str], look_inside: bool) -> InputFile:
    source = FileSource(path)
    form: str = "bytes"
    spans: tuple[TensorSpan, ...] = ()
    if look_inside and not any(fnmatch.fnmatchcase(relative, glob) for glob in opaque):
        try:
            form, spans = read_table(relative, source)
        except FormatError as error:
            hint = f"to store it as bytes, unread, add --opaque '{relative}'"
            raise BadInput(str(path), str(error), hint=hint) from None
    return InputFile(_checked(relative), source.mode, source, form, spans)


def _walk(top: Path) -> list[tuple[Path, list[str]]]:
    """Return every directory with the names of its files, sorted, so that equal trees give equal artifacts."""
    found: list[tuple[Path, list[str]]] = []

    def failed(error: OSError) -> None:
        raise StorageFailed(str(error.filename), reason(error))

    for folder, subfolders, names in os.walk(top, onerror=failed):
        subfolders.sort()
        for name in subfolders:
            if (Path(folder) / name).is_symlink():
                raise BadInput(str(Path(folder) / name), "a link to a directory; put the directory itself")
        found.append((Path(folder), sorted(names)))
    return found


def _checked(relative: str) -> str:
    try:
        relative.encode()
        return check_path(relative)
    except (FormatError, UnicodeEncodeError):
        raise BadInput(ascii(relative), "a path must be UTF-8, each part at most 255 bytes") from None


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
