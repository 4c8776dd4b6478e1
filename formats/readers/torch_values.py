"""Torch values: what the names in a checkpoint's pickle stand for, that is storages, tensors, dicts or nothing.

Invariant: only the names that torch's own weights-only loading allows have a stand-in, and making one never
imports, calls or computes anything but what is in this module. Values of no interest are None.
"""

from dataclasses import dataclass, field

from ..errors import FormatError
from ..tensor import RANK_MAX

# By the first word of a storage class, and by the name of a dtype: the safetensors name of the element.
_STORAGE_ELEMENTS = {
    "BFloat16": "BF16", "Bool": "BOOL", "Byte": "U8", "Char": "I8", "ComplexDouble": "C128",
    "ComplexFloat": "C64", "Double": "F64", "Float": "F32", "Half": "F16", "Int": "I32", "Long": "I64",
    "Short": "I16",
}  # fmt: skip
_DTYPES = {
    "bfloat16": "BF16", "bool": "BOOL", "complex128": "C128", "complex64": "C64", "float16": "F16",
    "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4", "int16": "I16", "int32": "I32", "int64": "I64", "int8": "I8", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "uint8": "U8",
}  # fmt: skip
# Dtypes that safetensors has no name for, and the schemes of quantised tensors.
_UNMAPPED = (
    "bits16", "bits1x8", "bits2x4", "bits4x2", "bits8", "complex32", "int1", "int2", "int3", "int4", "int5",
    "int6", "int7", "qint32", "qint8", "quint2x4", "quint4x2", "quint8", "uint1", "uint2", "uint3", "uint4",
    "uint5", "uint6", "uint7", "per_channel_affine", "per_channel_affine_float_qparams",
    "per_channel_symmetric", "per_tensor_affine", "per_tensor_symmetric",
)  # fmt: skip
_REBUILDS = (
    "device_tensor_from_cpu_tensor", "device_tensor_from_numpy", "meta_tensor_no_storage", "nested_tensor",
    "parameter", "parameter_with_state", "qtensor", "sparse_tensor", "tensor", "tensor_v2", "tensor_v3",
    "wrapper_subclass",
)  # fmt: skip

_STORAGES: dict[str, str | None] = {
    "torch.storage.UntypedStorage": "U8",
    **{f"torch.{kind}Storage": name for kind, name in _STORAGE_ELEMENTS.items()},
    **{f"torch.cuda.{kind}Storage": name for kind, name in _STORAGE_ELEMENTS.items()},
    **{f"torch.{kind}Storage": None for kind in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")},
}
_ELEMENT_TYPES = {f"torch.{kind}": name for kind, name in _DTYPES.items()}
_MAPPINGS = {"collections.OrderedDict", "collections.Counter"}
_WRAPPED = "torch._tensor._rebuild_from_type_v2"
_PARAMETERS = {
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}  # fmt: skip
_OTHER_TENSORS = {
    f"torch._utils._rebuild_{name}": why
    for name, why in {
        "sparse_tensor": "is sparse",
        "qtensor": "is quantised",
        "nested_tensor": "is nested",
        "meta_tensor_no_storage": "has no values (meta)",
        "wrapper_subclass": "is of a class of its own",
        "device_tensor_from_numpy": "is stored as a NumPy array",
    }.items()
}
# Classes of old tensors; sparse ones exist for fewer types.
_TENSOR_KINDS = _STORAGE_ELEMENTS.keys() - {"ComplexDouble", "ComplexFloat"}
_TENSOR_CLASSES = {f"torch.{place}{kind}Tensor" for place in ("", "cuda.") for kind in _TENSOR_KINDS} | {
    f"torch.{place}{kind}Tensor" for place in ("sparse.", "cuda.sparse.") for kind in _TENSOR_KINDS - {"Bool"}
}

# The names that torch 2.13 allows in weights-only loading by default.
ALLOWED = (
    {
        "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set", "torch.Size",
        "torch.Tensor", "torch.device", "torch.serialization._get_layout", "torch.storage.TypedStorage",
        _WRAPPED,
    }
    | _MAPPINGS
    | _PARAMETERS
    | _STORAGES.keys()
    | _ELEMENT_TYPES.keys()
    | _TENSOR_CLASSES
    | {f"torch.{name}" for name in _UNMAPPED}
    | {f"torch._utils._rebuild_{name}" for name in _REBUILDS}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage by the key of its record: `count` elements of `dtype`, None if it has no safetensors name."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage, offset and stride in elements of `dtype`; None if it has no safetensors name.

    `why` says, if it is not empty, why its bytes are not its values.
    """

    storage: Storage
    dtype: str | None
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor that is not one run of values in a storage, and why not."""

    why: str


@dataclass(slots=True)
class Mapping:
    """A dict as its pairs: keys are never hashed, for a hostile key could make that take for ever."""

    pairs: list[tuple[object, object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Global:
    """A name on the allow list, standing for what it names."""

    path: str


def call(function: object, arguments: object) -> object:
    """Return the stand-in for what an allowed class or function makes of its arguments.

    Raises FormatError for anything but a `Global` and a tuple, and for arguments that name no tensor or dict.
    """
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise FormatError("torch pickle calls what is not a name on the weights-only list")
    path = function.path
    if path == _WRAPPED and len(arguments) == 4:  # (function, class, arguments, attributes)
        function, _, arguments, _ = arguments
        if not isinstance(function, Global) or not isinstance(arguments, tuple) or function.path == _WRAPPED:
            raise FormatError("torch pickle has a malformed tensor of a subclass")
        path = function.path
    first = arguments[0] if arguments else None
    if path in _MAPPINGS:
        # Shared, not copied: a hostile pickle could have one large dict copied a million times.
        return first if isinstance(first, Mapping) else Mapping()
    if path == "torch.Size":
        return first
    if path in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
        return _make_tensor(arguments, None, arguments[6:7])
    if path == "torch._utils._rebuild_tensor_v3":
        return _make_tensor(arguments, arguments[6:7], arguments[7:8])
    if path in _OTHER_TENSORS:
        return Unread(_OTHER_TENSORS[path])
    if not isinstance(first, StoredTensor | Unread):
        return None
    if path == "torch._utils._rebuild_device_tensor_from_cpu_tensor":
        same = isinstance(first, Unread) or first.dtype == _element_type(arguments[1:2])
        return first if same else Unread("is stored in another dtype than it has")
    return first if path in _PARAMETERS else None


def open_storage(identity: object) -> Storage:
    """Return the storage that a persistent id names: ("storage", class, key, location, count)."""
    if not isinstance(identity, tuple) or len(identity) != 5:
        raise FormatError("torch pickle has a persistent id that is not of a storage")
    mark, kind, key, _, count = identity
    if mark != "storage" or not isinstance(kind, Global) or kind.path not in _STORAGES:
        raise FormatError("torch pickle has a persistent id that is not of a storage")
    if not isinstance(key, str):
        raise FormatError("torch pickle has a storage whose key is not a string")
    return Storage(key, _STORAGES[kind.path], _whole_numbers((count,))[0])


def _make_tensor(
    arguments: tuple[object, ...], named: tuple[object, ...] | None, flags: tuple[object, ...]
) -> StoredTensor:
    """Return a tensor from (storage, offset, shape, stride, ...), its dtype from `named` where that is told.

    `flags` may hold a dict of pending operations (conjugate, negate), which make the bytes not the values.
    """
    if len(arguments) < 4:
        raise FormatError("torch pickle has a tensor without storage, offset, shape and stride")
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise FormatError("torch pickle has a tensor without a storage")
    dtype = storage.dtype if named is None else _element_type(named)
    pending = flags and isinstance(flags[0], Mapping) and flags[0].pairs
    extents, steps = _whole_numbers(shape), _whole_numbers(stride)
    if len(extents) != len(steps):
        raise FormatError(f"torch pickle has a tensor of {len(extents)} extents and {len(steps)} strides")
    why = "is yet to be conjugated or negated" if pending else ""
    return StoredTensor(storage, dtype, _whole_numbers((offset,))[0], extents, steps, why)


def _element_type(named: tuple[object, ...]) -> str | None:
    """Return the safetensors name of the dtype that is the one argument in `named`, None if it has none."""
    return _ELEMENT_TYPES.get(named[0].path) if named and isinstance(named[0], Global) else None


def _whole_numbers(values: object) -> tuple[int, ...]:
    """Return a tuple of at most RANK_MAX integers in [0, 2**63); raise FormatError for anything else."""
    if not isinstance(values, tuple) or len(values) > RANK_MAX:
        raise FormatError(f"torch pickle has a shape or stride that is not a tuple of at most {RANK_MAX}")
    numbers: list[int] = []
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise FormatError("torch pickle has a size, stride or offset that is not a whole number")
        numbers.append(value)
    return tuple(numbers)
