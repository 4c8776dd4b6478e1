"""Get: an artifact back on disk, as its files or as one safetensors file of selected tensors.

Files appear complete or not at all. They are written under another name beside their place. When every byte of the
artifact has been checked, they are renamed.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ...formats.errors import FormatError
from ...formats.frames import WEIGHT_FRAME_BYTES
from ...formats.manifest import StoredFile
from ...formats.readers.safetensors import write_header
from ...formats.tensor import DTYPE_BITS, dense_bytes
from ..disk import Disk, file_name, make_buffer
from ..errors import BadInput
from ..outputs import Outputs
from ..progress import Progress
from ..workers import run_all, workers_count
from .artifact import Artifact
from .placing import check_tree, move_tree, place_dest, tensors_file
from .select import Selection, TensorPart, select

_BLOCK_BYTES = 64 << 20
_TASK_BYTES = 16 << 20
_WORKERS_MAX = 4  # each holds one blob of up to 64 MiB


@dataclass(frozen=True, slots=True)
class Written:
    """What a get to disk did. `bytes_read` counts sealed bytes."""

    files: int
    bytes_out: int
    bytes_read: int


def write_artifact(
    artifact: Artifact, dest: str | Path, selection: Selection | None, outputs: Outputs, progress: Progress
) -> Written:
    """Write the files of a version, or one safetensors file of the selected tensors, to `dest`; see `place_dest`.

    Raises Corrupt, with nothing new at `dest`, if a blob is bad.
    """
    dest = place_dest(dest, outputs)
    if selection:
        return write_selected(artifact, dest, selection, outputs, progress)
    return write_files(artifact, dest, outputs, progress)


def write_files(artifact: Artifact, dest: Path, outputs: Outputs, progress: Progress) -> Written:
    """Write the artifact's files, byte-identical, modes included, to `dest`.

    An artifact that was put as a file becomes the file `dest`, or a file in it where it is a directory.
    Raises Corrupt, with nothing new at `dest`, if a blob is bad.
    """
    manifest, disk = artifact.manifest, outputs.disk
    if not manifest.single and os.path.lexists(dest) and not dest.is_dir():
        raise BadInput(str(dest), "is a file; the artifact is a directory")
    inside = not manifest.single or dest.is_dir()
    check_tree(manifest, dest, outputs)
    private = disk.make_private_dir(dest)
    try:
        tree = private / "tree"  # in a directory of its own, so that nobody enters it before it is complete
        disk.make_dir(tree, 0o777)
        for path, _ in sorted(manifest.directories):
            disk.make_dir(tree / file_name(path), 0o700)
        _write_blobs(artifact, tree, disk, progress)
        for file in manifest.files:
            disk.set_mode(tree / file_name(file.path), file.mode)
        move_tree(tree if inside else tree / file_name(manifest.files[0].path), dest, disk)
        for path, mode in sorted(manifest.directories, reverse=True):
            disk.set_mode(dest / file_name(path), mode)
    finally:
        disk.remove(private)
    return Written(len(manifest.files), manifest.plain_bytes, artifact.bytes_read)


def write_selected(artifact: Artifact, dest: Path, wanted: Selection, outputs: Outputs, progress: Progress) -> Written:
    """Write the selected tensors as one safetensors file, reading only the frames they lie in."""
    # Wider types first, as the safetensors library writes them, so that every tensor is aligned.
    chosen = sorted(select(artifact.manifest, wanted), key=lambda part: -DTYPE_BITS.get(part.tensor.span.dtype, 0))
    for part in chosen:
        if part.tensor.span.dtype not in DTYPE_BITS or part.tensor.span.stride is not None:
            raise BadInput(
                part.name, f"{part.tensor.span.dtype} in its stored order has no place in a safetensors file"
            )
    try:
        header = write_header([(part.name, part.tensor.span.dtype, part.shape) for part in chosen])
    except FormatError as error:
        raise BadInput("selection", str(error)) from None
    dest = tensors_file(dest, artifact.summary.name, outputs)
    total = len(header) + sum(dense_bytes(part.tensor.span.dtype, part.shape) for part in chosen)
    written = write_whole(
        dest, _with_first(memoryview(header), _blocks(artifact, chosen)), total, outputs.disk, progress
    )
    return Written(1, written, artifact.bytes_read)


def write_whole(dest: Path, blocks: Iterable[memoryview], total: int, disk: Disk, progress: Progress) -> int:
    """Write one file of `total` bytes, which appears complete or not at all; return its length."""
    private = disk.make_private_dir(dest)
    try:
        at = 0
        for block in blocks:
            disk.write_file_at(private / "selected", block, at)
            at += len(block)
            progress(len(block), total)
        disk.set_mode(private / "selected", 0o644)
        disk.rename(private / "selected", dest)
    finally:
        disk.remove(private)
    return at


def _write_blobs(artifact: Artifact, tree: Path, disk: Disk, progress: Progress) -> None:
    """Write every file into a tree whose directories are there, with several threads."""
    blobs, files = artifact.manifest.blobs, artifact.manifest.files
    total = artifact.manifest.plain_bytes  # summed up once, or many files would take the square of their number
    artifact.check_blobs()  # a blob that is missing or in quarantine is refused before anything is written

    def write(task: tuple[int, int, list[int]]) -> int:
        number, offset, members = task
        buffer = memoryview(make_buffer(sum(blobs[member].length for member in members)))
        read, at = 0, 0
        for member in members:
            length = blobs[member].length
            read += artifact.read_blob(member, buffer[at : at + length])
            at += length
        disk.write_file_at(tree / file_name(files[number].path), buffer[:at], offset)
        progress(at, total)
        return read

    for file in files:
        disk.write_file_at(tree / file_name(file.path), b"", 0)
    artifact.bytes_read += sum(run_all(write, _tasks(artifact), workers=min(workers_count(), _WORKERS_MAX)))


def _tasks(artifact: Artifact) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (file number, offset, blob numbers) for each run of blobs that is written in one step."""
    for number, file in enumerate(artifact.manifest.files):
        yield from _file_tasks(artifact, number, file)


def _file_tasks(artifact: Artifact, number: int, file: StoredFile) -> Iterator[tuple[int, int, list[int]]]:
    offset, size, waiting = 0, 0, list[int]()
    for blob in file.blobs:
        waiting.append(blob)
        size += artifact.manifest.blobs[blob].length
        if size >= _TASK_BYTES:
            yield number, offset, waiting
            offset, size, waiting = offset + size, 0, []
    if waiting:
        yield number, offset, waiting


def _blocks(artifact: Artifact, chosen: Iterable[TensorPart]) -> Iterator[memoryview]:
    """Yield the bytes of parts in order, in blocks of whole rows of up to 64 MiB."""
    buffer = memoryview(make_buffer(_BLOCK_BYTES))
    for part in chosen:
        row_bytes = part.row_bytes
        if row_bytes > len(buffer):
            buffer = memoryview(make_buffer(row_bytes))
        # A block holds as many rows as one blob and begins where a blob does. So no frame is read for two blocks.
        step = max(_BLOCK_BYTES // max(row_bytes, 1), 1)
        for at in range(part.start - part.start % step, part.stop if row_bytes else 0, step):
            row, rows = max(at, part.start), min(at + step, part.stop) - max(at, part.start)
            start = part.tensor.span.start + row * row_bytes
            block = buffer[: rows * row_bytes]
            artifact.fill(
                ((part.tensor.file, start + first, start + last), block[first:last])
                for first, last in _needed(part, len(block))
            )
            yield _inner(part, rows, block) if part.axis else block


def _needed(part: TensorPart, length: int) -> list[tuple[int, int]]:
    """Return which bytes of a block of whole rows to read. Frames between two runs of an inner range are left out."""
    if not part.axis:
        return [(0, length)]
    shape = part.tensor.span.shape
    period = part.row_bytes // prod(shape[1 : part.axis])
    first, last = (period // shape[part.axis] * bound for bound in (part.inner_start, part.inner_stop))
    if period - (last - first) < WEIGHT_FRAME_BYTES:
        return [(first, length - period + last)]
    return [(at + first, at + last) for at in range(0, length, period)]


def _inner(part: TensorPart, rows: int, block: memoryview) -> memoryview:
    """Return the bytes of the selected range of an inner axis, from a block of whole rows."""
    import numpy as np

    span = part.tensor.span
    shape = (rows, *span.shape[1:], DTYPE_BITS[span.dtype] // 8)
    picked = [slice(None)] * len(shape)
    picked[part.axis] = slice(part.inner_start, part.inner_stop)
    array = np.frombuffer(block, dtype=np.uint8).reshape(shape)[tuple(picked)]
    return np.ascontiguousarray(array).reshape(-1).data


def _with_first(first: memoryview, rest: Iterator[memoryview]) -> Iterator[memoryview]:
    yield first
    yield from rest
