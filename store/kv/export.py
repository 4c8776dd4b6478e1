"""Export: the KV of a prefix, or of some of its layers and positions, as one safetensors file on disk."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...formats.errors import FormatError
from ...formats.kv_layout import array_shapes, slot_name
from ...formats.readers.safetensors import write_header
from ...formats.tensor import dense_bytes
from ..artifacts.artifact import Artifact
from ..artifacts.get import Written, write_whole
from ..artifacts.placing import place_dest, tensors_file
from ..artifacts.select import Selection
from ..errors import BadInput
from ..outputs import Outputs
from ..progress import Progress
from .prefix import Prefix, prefix_of


def write_kv(
    artifact: Artifact, dest: str | Path, selection: Selection | None, outputs: Outputs, progress: Progress
) -> Written:
    """Write the KV of a version, or of the selected layers, as one safetensors file to `dest`; see `place_dest`.

    Raises BadInput if anything but layers is selected. Raises Corrupt, with nothing new at `dest`, if a blob is bad.
    """
    dest, name = place_dest(dest, outputs), artifact.summary.name
    layers = selection.layers if selection else ()
    if selection and selection != Selection(layers=layers):
        raise BadInput(name, "is kv: of it layers can be selected", hint="see 'arstore kv get'")
    return write_prefix(prefix_of(artifact), tensors_file(dest, name, outputs), layers or None, None, outputs, progress)


def write_prefix(
    prefix: Prefix,
    dest: Path,
    layers: Sequence[int] | None,
    positions: tuple[int, int] | None,
    outputs: Outputs,
    progress: Progress,
) -> Written:
    """Write the KV of some layers and token positions of a prefix as one safetensors file, a layer at a time."""
    first, end = positions or (0, prefix.tokens_count)
    if prefix.shape is None or not 0 <= first < end <= prefix.tokens_count:
        raise BadInput(f"positions {first}:{end}", f"the prefix has {prefix.tokens_count} tokens")
    wanted = sorted(set(prefix.layers if layers is None else layers))
    try:
        shape = prefix.shape.narrow(layers=wanted)
        shapes = array_shapes(shape, prefix.layout, end - first, page=prefix.page_tokens)
        header = write_header([(slot_name(slot), shape.dtype, lengths) for slot, lengths in shapes.items()])
    except FormatError as error:
        raise BadInput("kv", str(error)) from None
    total = len(header) + sum(dense_bytes(shape.dtype, lengths) for lengths in shapes.values())

    def blocks() -> Iterator[memoryview]:
        yield memoryview(header)
        for _, loaded in prefix.stream_loaded(wanted, range, (first, end), None, ahead=2):
            yield from (loaded.buffer[span.place] for span in loaded.spans)

    written = write_whole(dest, blocks(), total, outputs.disk, progress)
    return Written(1, written, prefix.bytes_read)
