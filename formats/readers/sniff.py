"""Sniff: chooses the reader of a file by the end of its name and its first bytes.

Invariant: a file of no tensor format is "bytes" with an empty table, and never an error. A file that claims a tensor
format and breaks its rules is refused. Pickles that are not checkpoints are not parsed.
"""

from ..tensor import Source, TensorSpan, UnreadTensor

_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_PICKLE_ENDINGS = (".pkl", ".pickle")
# The version stands behind the magic, so that a text which starts with "GGUF" stays a text.
_GGUF_STARTS = tuple(b"GGUF" + version.to_bytes(4, "little") for version in (2, 3))


def read_table(
    path_name: str, source: Source, unread: list[UnreadTensor] | None = None
) -> tuple[str, tuple[TensorSpan, ...]]:
    """Return the format of a file ("safetensors", "torch", "npy", "npz", "gguf" or "bytes") and its tensors.

    Tensors whose bytes are not their values are added to `unread`.
    Raises FormatError if the file is of a tensor format and malformed, or a torch file that weights-only
    loading would not take.
    """
    # Imported here, because only puts need them and imports delay every command.
    from . import gguf, numpy_file, safetensors, zip_members

    name = path_name.lower()
    if name.endswith(".safetensors"):
        return "safetensors", safetensors.read_table(source)
    if name.endswith((".npy", ".npz")):
        return "npz" if zip_members.looks_zipped(source) else "npy", numpy_file.read_table(source, unread)
    if name.endswith(_PICKLE_ENDINGS):
        return "bytes", ()
    if name.endswith(".gguf") or source.read(0, min(8, source.size)) in _GGUF_STARTS:
        return "gguf", gguf.read_table(source)
    if name.endswith(_TORCH_ENDINGS):
        return _read_torch(source, unread)
    return "bytes", ()


def _read_torch(source: Source, unread: list[UnreadTensor] | None) -> tuple[str, tuple[TensorSpan, ...]]:
    """Read a file that is named as torch names its own; a `.bin` may as well be raw bytes."""
    from . import torch_file, zip_members

    if torch_file.looks_pickled(source):
        return "torch", torch_file.read_table(source, unread)
    if zip_members.looks_zipped(source):
        members = zip_members.read_members(source)
        if torch_file.find_folders(members):
            return "torch", torch_file.read_archive(source, members, unread)
    return "bytes", ()
