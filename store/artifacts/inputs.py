"""Inputs: what a user hands to `put`, files on disk or tensors in memory, with the tensors that are in each file."""

import fnmatch
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.errors import FormatError
from ...formats.manifest import check_path
from ...formats.readers.sniff import read_table
from ...formats.tensor import DTYPE_BITS, TensorSpan, UnreadTensor
from ..disk import name_text
from ..errors import BadInput, NotFound, StorageFailed, reason
from .sources import FileSource, MemorySource, Source

if TYPE_CHECKING:
    import torch

FILES_MAX_COUNT = 1_000_000


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to be stored: where it goes in the artifact, its bytes, and the tensors that were found in it.

    `unread` are tensors whose bytes are not their values.
    """

    path: str
    mode: int
    source: Source
    format: str
    spans: tuple[TensorSpan, ...]
    unread: tuple[UnreadTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one put stores. `single` is true if a file was given, and false for a directory."""

    single: bool
    directories: tuple[tuple[str, int], ...]
    files: tuple[InputFile, ...]

    def check_unchanged(self) -> None:
        """Raise StorageFailed unless every file is still the file that was seen first.

        It is called after all files were read. So the bytes that were read stood in the files at one moment.
        """
        for file in self.files:
            file.source.check_unchanged()


def take_inputs(
    path: str | Path | None, tensors: "Mapping[str, torch.Tensor] | None", opaque: Sequence[str], *, look_inside: bool
) -> Inputs:
    """Return the inputs at a path, or those that tensors make; raise BadInput unless exactly one is given."""
    if (path is None) == (tensors is None):
        raise BadInput("input", "wanted a path or tensors, one of them")
    return (
        inputs_from_tensors(tensors)
        if tensors is not None
        else inputs_from_path(Path(path or ""), opaque, look_inside=look_inside)
    )


def inputs_from_path(path: Path, opaque: Sequence[str], *, look_inside: bool) -> Inputs:
    """Return the files at `path` with their tensors. Every tensor table is read and checked before a byte is stored.

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
    unread: list[UnreadTensor] = []
    if look_inside and not any(fnmatch.fnmatchcase(relative, glob) for glob in opaque):
        try:
            form, spans = read_table(relative, source, unread)
        except FormatError as error:
            hint = f"to store it as bytes, unread, add --opaque '{relative}'"
            raise BadInput(str(path), str(error), hint=hint) from None
    return InputFile(_checked(relative), source.mode, source, form, spans, tuple(unread))


def _walk(top: Path) -> list[tuple[Path, list[str]]]:
    """Return every directory with the names of its files, sorted, so that equal trees give equal artifacts."""
    folders: list[tuple[Path, list[str]]] = []

    def failed(error: OSError) -> None:
        raise StorageFailed(str(error.filename), reason(error))

    for folder, subfolders, names in os.walk(top, onerror=failed):
        subfolders.sort()
        for name in subfolders:
            if (Path(folder) / name).is_symlink():
                raise BadInput(str(Path(folder) / name), "a link to a directory; put the directory itself")
        folders.append((Path(folder), sorted(names)))
    return folders


def _checked(relative: str) -> str:
    """Return the text of a path as it is stored."""
    try:
        return check_path(name_text(relative))
    except (FormatError, UnicodeDecodeError):
        raise BadInput(ascii(relative), "a path must be UTF-8, each part at most 255 bytes") from None
