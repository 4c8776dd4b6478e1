"""Torch checkpoints (`.pt`, `.pth`, `.bin`): a zip archive of one pickle and a record for each storage.

Invariant: the pickle is never run (see weights_pickle) and no tensor bytes are read; a span lies inside the
record of its storage. Tensors that share a storage, as tied weights do, may have overlapping spans.

    FOLDER/data.pkl     the tree of values; a tensor refers to a storage by key
    FOLDER/byteorder    "little", or absent in files before torch 2.1
    FOLDER/data/KEY     the bytes of one storage
Records are stored, not compressed. Kept as bytes only, without a span: sparse, quantised or nested tensors,
dtypes that safetensors has no name for, tensors with a pending conjugation, storages that were compressed.
"""

from ..errors import FormatError
from ..tensor import DTYPE_BITS, NAME_MAX_BYTES, TENSORS_MAX_COUNT, Source, TensorSpan, UnreadTensor
from .torch_values import Mapping, StoredTensor, Unread
from .weights_pickle import OPCODES_MAX_COUNT, PICKLE_MAX_BYTES, read_pickle
from .zip_members import Member, looks_zipped, read_members

TENSOR_NAME = "tensor"  # of a checkpoint that is one bare tensor
NAMES_MAX_BYTES = 256 << 20
_DEPTH_MAX = 64
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_RECORD = "/data.pkl"


def read_table(source: Source, unread: list[UnreadTensor] | None = None) -> tuple[TensorSpan, ...]:
    """Return the tensors of a torch checkpoint by place in the file; names are its keys joined by dots.

    Tensors without a span are added to `unread`. Lists and tuples count as dicts with keys 0, 1, and so on. Raises
    FormatError for a legacy (not zip) file, a name that weights-only loading does not allow, big-endian bytes, a tensor
    that leaves its storage.
    """
    if looks_pickled(source):
        raise FormatError("legacy torch.save format: re-save with torch >= 1.6 or store it as bytes")
    if not looks_zipped(source):
        raise FormatError("file is no torch checkpoint: it does not start as a zip archive does")
    return read_archive(source, read_members(source), unread)


def looks_pickled(source: Source) -> bool:
    """Tell whether a file starts as a pickle of protocol 2 to 5 does; torch wrote bare pickles before 1.6."""
    return source.size >= 2 and source.read(0, 2) in _PICKLE_STARTS


def find_folders(members: tuple[Member, ...]) -> list[str]:
    """Return the top folders of an archive that hold a data.pkl: exactly one in a checkpoint."""
    names = (member.name for member in members if member.name.endswith(_RECORD))
    return [name.removesuffix(_RECORD) for name in names if name.count("/") == 1]


def read_archive(
    source: Source, members: tuple[Member, ...], unread: list[UnreadTensor] | None = None
) -> tuple[TensorSpan, ...]:
    """Do what `read_table` does, for a zip archive whose members are known."""
    folders = find_folders(members)
    if len(folders) != 1:
        raise FormatError(f"torch archive has {len(folders)} data.pkl records, wanted 1")
    prefix = f"{folders[0]}/"
    inside = (member for member in members if member.name.startswith(prefix))
    records = {member.name.removeprefix(prefix): member for member in inside}
    if "constants.pkl" in records:
        raise FormatError("torchscript archive: it holds code, not only weights; store it as bytes")
    order = records.get("byteorder")
    if order is not None and _read_record(source, order, 16) != b"little":
        raise FormatError("torch archive is not little-endian")
    tree = read_pickle(_read_record(source, records["data.pkl"], PICKLE_MAX_BYTES))
    walk = _Walk()
    walk.collect(tree)
    spans = []
    for name, tensor in walk.found.items():
        placed = tensor.why if isinstance(tensor, Unread) else _place(name, tensor, records)
        if isinstance(placed, TensorSpan):
            spans.append(placed)
        elif unread is not None:
            unread.append(UnreadTensor(name, placed))
    return tuple(sorted(spans, key=lambda span: (span.start, span.length, span.name)))


def _read_record(source: Source, record: Member, limit: int) -> bytes:
    """Return the bytes of a record; raise FormatError if it is compressed or longer than `limit`."""
    if not record.stored or record.length > limit:
        raise FormatError(f"torch record {record.name[:80]!r} is compressed or longer than {limit} bytes")
    return source.read(record.start, record.length)


class _Walk:
    """Collects the tensors of a tree under dotted names, its depth, width and names bounded.

    Values may be shared, so a small pickle can describe a huge tree: the walk counts visits, not values.
    """

    def __init__(self) -> None:
        self.found: dict[str, StoredTensor | Unread] = {}
        self._unnamed = 0  # keys on the path that are no text
        self._path: list[str] = []
        self._visits_left = OPCODES_MAX_COUNT
        self._names_left = NAMES_MAX_BYTES

    def collect(self, value: object) -> None:
        """Collect the tensors in `value`; raise FormatError for two of one name and past the limits."""
        self._visits_left -= 1
        if self._visits_left < 0 or len(self._path) > _DEPTH_MAX:
            raise FormatError(f"torch file nests deeper than {_DEPTH_MAX} or shares values too often to list")
        if isinstance(value, StoredTensor | Unread):
            self._add(Unread("stands under a key that is no text") if self._unnamed else value)
        elif isinstance(value, Mapping):
            for key, inner in value.pairs:
                # Other keys, such as tuples, have no agreed text, and making one of a hostile key could take for ever.
                # What they lead to is kept as bytes only.
                unnamed = not (key is None or isinstance(key, str | int | float))
                self._unnamed += unnamed
                self._descend("?" if unnamed else str(key), inner)
                self._unnamed -= unnamed
        elif isinstance(value, list | tuple):
            for place, inner in enumerate(value):
                self._descend(str(place), inner)

    def _descend(self, key: str, value: object) -> None:
        self._path.append(key)
        self.collect(value)
        self._path.pop()

    def _add(self, tensor: StoredTensor | Unread) -> None:
        name = ".".join(self._path) if self._path else TENSOR_NAME
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            raise FormatError("tensor name is not valid unicode") from None
        self._names_left -= length
        if length > NAME_MAX_BYTES or self._names_left < 0 or len(self.found) >= TENSORS_MAX_COUNT:
            raise FormatError(f"torch file has too many tensors or a name longer than {NAME_MAX_BYTES} bytes")
        if name in self.found and self._unnamed:
            return  # shown alike, and named already
        if name in self.found:
            raise FormatError(f"torch file has two tensors that are both named {name[:80]!r}")
        self.found[name] = tensor


def _place(name: str, tensor: StoredTensor, records: dict[str, Member]) -> TensorSpan | str:
    """Return where a tensor lies in the file, or why its bytes there are not its values."""
    where = f"tensor {name[:80]!r}"
    record = records.get(f"data/{tensor.storage.key}")
    if record is None:
        raise FormatError(f"{where} refers to a storage that the archive lacks")
    if tensor.why:
        return tensor.why
    if tensor.dtype is None or tensor.storage.dtype is None:
        return "has a dtype that safetensors has no name for"
    if not record.stored:
        return "is compressed in its file"
    storage_bytes = tensor.storage.count * _element_bytes(tensor.storage.dtype)
    if storage_bytes > record.length:
        raise FormatError(f"{where} has a storage of {storage_bytes} bytes, its record has {record.length}")
    shape, stride = tensor.shape, None if _is_row_major(tensor) else tensor.stride
    if tensor.dtype == "F4":  # torch counts pairs, safetensors counts elements
        if stride is not None or not shape:
            return "is of 4-bit floats that do not lie back to back"
        shape = (*shape[:-1], shape[-1] * 2)
    if 0 in shape:
        return TensorSpan(name, tensor.dtype, shape, record.start, 0)
    width = _element_bytes(tensor.dtype)
    last = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride, strict=True))
    begin, length = tensor.offset * width, (last + 1) * width
    if begin + length > storage_bytes:
        raise FormatError(f"{where} reaches to byte {begin + length} of a storage of {storage_bytes}")
    return TensorSpan(name, tensor.dtype, shape, record.start + begin, length, stride)


def _element_bytes(dtype: str) -> int:
    """Return the bytes of one torch element; F4 comes in pairs of one byte."""
    return max(1, DTYPE_BITS[dtype] // 8)


def _is_row_major(tensor: StoredTensor) -> bool:
    """Tell whether a tensor's elements lie back to back, last axis fastest; extents of one have no stride."""
    if 0 in tensor.shape:
        return True
    step = 1
    for extent, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True
