"""Artifact: one stored version, read back as verified bytes and tensors in host memory."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ...formats.manifest import Manifest, Tensor
from ...formats.tensor import TensorSpan
from ..disk import Out, make_buffer
from ..errors import BadInput, Corrupt
from ..segments.blobs import BlobReader, Piece, ReadParts
from .names import Names, StoredVersion, Summary
from .tensor_names import TensorNames
from .tensors import aligned, tensor_from

if TYPE_CHECKING:
    import torch

FILE_PREFIX = "file:"

# Bytes of a file: its number in the manifest, first byte, end byte.
FileRange = tuple[int, int, int]


class Artifact:
    """One stored version. Bytes are read when a method asks for them, and every byte handed out was verified."""

    def __init__(self, parts: ReadParts, version: StoredVersion, manifest: Manifest) -> None:
        self.parts, self._version = parts, version
        self.manifest = manifest
        hint = f"put {self.summary.name} again from its source to heal it; 'arstore verify' lists what else is bad"
        self._reader = BlobReader(parts, version.text, self._is_gone, hint)
        self.bytes_read = 0  # sealed bytes read through this object so far

    @property
    def summary(self) -> Summary:
        return self._version.summary

    @property
    def tensor_bytes(self) -> int:
        """Bytes that a buffer for all `tensors` needs."""
        return _layout(TensorNames(self.manifest).values())[1]

    def tensors(
        self,
        names: Iterable[str] | None = None,
        *,
        into: "memoryview | bytearray | None" = None,
        skip_unreadable: bool = False,
    ) -> dict[str, "torch.Tensor"]:
        """Return verified tensors in host memory by name: all tensors, or those in `names`.

        If some can't be read (sparse, quantised, of a dtype that safetensors lacks, ...), all is refused unless
        `skip_unreadable` leaves them out.

        They lie in one buffer of huge pages, which is freed with the last tensor. With `into` they lie there instead:
        at least `tensor_bytes` writable bytes, which the caller leaves alone while the tensors are in use. Tensors
        that share their bytes in the file share memory here. Block-quantised types come as raw bytes.
        Raises NotFound for an unknown name, BadInput if it can't be read, if the files of the artifact differ in it or
        if `into` does not fit, Corrupt if a blob is bad.
        """
        known, text = TensorNames(self.manifest), self._version.text
        if names is None and not skip_unreadable:
            known.check_read(text, known.unread.keys())
        chosen = known if names is None else {name: known[known.find(f"{text}: {name}", name)] for name in names}
        starts, total = _layout(chosen.values())
        buffer = memoryview(make_buffer(total) if into is None else into).cast("B")
        if len(buffer) < total or buffer.readonly:
            raise BadInput("into", f"{len(buffer)} bytes, wanted {total} that can be written to")
        self.fill((place, buffer[start : start + place[2] - place[1]]) for place, start in starts.items())
        try:
            return {name: tensor_from(_slice(buffer, starts, tensor), tensor.span) for name, tensor in chosen.items()}
        except (RuntimeError, ValueError) as error:  # torch's, where shape and length in a manifest contradict
            raise Corrupt(f"{self._version.text}: tensor table", str(error)) from None

    def fill(self, ranges: Iterable[tuple[FileRange, Out]], *, cold: bool = False) -> None:
        """Read ranges of files into their buffers, on every core (`cold`: see blobs.py); raise Corrupt if bad."""
        pieces: list[Piece] = []
        for (file, start, stop), out in ranges:
            at = 0
            for number, first, last in self.manifest.pieces(file, start, stop):
                pieces.append(Piece(self.manifest.blobs[number], first, last, out[at : at + last - first]))
                at += last - first
        self.bytes_read += self._reader.read(pieces, cold=cold)

    def side_by_side(self) -> tuple[dict[FileRange, int], tuple[TensorSpan, ...]]:
        """Return the layout of one buffer that holds every tensor, then every file without tensors.

        Files with tensors that can't be read are there as well, so nothing is left out. The first part gives the place
        in the buffer of each range of file bytes. The second gives the tensors by place; a file counts as a tensor
        named `FILE_PREFIX` + path.
        """
        tensors = TensorNames(self.manifest)
        starts, total = _layout(tensors.values())
        spans = [replace(tensor.span, name=name, start=starts[_range(tensor)]) for name, tensor in tensors.items()]
        with_tensors = {tensor.file for tensor in self.manifest.tensors}
        with_tensors -= {unread.file for unread in self.manifest.unread}
        for number, file in enumerate(self.manifest.files):
            if number not in with_tensors:
                starts[number, 0, file.size] = total
                spans.append(TensorSpan(FILE_PREFIX + file.path, "U8", (file.size,), total, file.size))
                total += aligned(file.size)
        return starts, tuple(spans)

    def read_blob(self, number: int, out: memoryview) -> int:
        """Read one whole blob on this thread; return the sealed bytes read. Raises Corrupt if it is bad."""
        blob = self.manifest.blobs[number]
        return self._reader.read_here([Piece(blob, 0, blob.length, out)])

    def check_blobs(self) -> None:
        """Raise Corrupt if a blob is missing or in quarantine, NotFound if the version was removed."""
        self._reader.places(self.manifest.blobs)

    def _is_gone(self) -> bool:
        return self.summary.version not in dict(self.parts.catalog.versions(self.summary.name))


def open_artifact(parts: ReadParts, names: Names, name: str, now_s: int) -> Artifact:
    """Return a stored version by ref or id, and note that it was used.

    Raises NotFound, or Corrupt if its record is bad.
    """
    version = names.resolve(name)
    names.note_use(version, now_s)
    return Artifact(parts, version, names.manifest(version))


def _layout(tensors: Iterable[Tensor]) -> tuple[dict[FileRange, int], int]:
    """Return where in one buffer each range of file bytes goes, and the buffer's length."""
    starts: dict[FileRange, int] = {}
    total = 0
    for tensor in tensors:
        place = _range(tensor)
        if place not in starts:
            starts[place] = total
            total += aligned(tensor.span.length)
    return starts, total


def _range(tensor: Tensor) -> FileRange:
    return tensor.file, tensor.span.start, tensor.span.start + tensor.span.length


def _slice(buffer: memoryview, starts: dict[FileRange, int], tensor: Tensor) -> memoryview:
    start = starts[_range(tensor)]
    return buffer[start : start + tensor.span.length]
