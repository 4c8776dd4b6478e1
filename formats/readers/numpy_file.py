"""Numpy's `.npy` and `.npz`: where the elements of each array lie in the file.

Invariant: a span is given only for arrays whose bytes are the tensor, little-endian and of a plain dtype;
other arrays are left to be kept as bytes, and arrays of python objects are refused: only pickle reads them.

.npy is valid if and only if
    0   6        \\x93NUMPY
    6   2        version: 1.0, 2.0 or 3.0
    8   2 or 4   length H of the header, little-endian: 2 bytes in version 1, 4 from version 2 on
    .   H        dict literal with exactly the keys descr, fortran_order, shape; latin-1, utf-8 in version 3
    .   ...      at least the elements; what follows them is ignored, as several arrays may share a file
"""

import ast
import re

from ..errors import FormatError
from ..tensor import NAME_MAX_BYTES, RANK_MAX, Source, TensorSpan, UnreadTensor, dense_bytes
from .zip_members import Member, looks_zipped, read_members

ARRAY_NAME = "array"
HEADER_MAX_BYTES = 10_000  # the limit of numpy itself, because a longer literal can exhaust the stack of the parser

_MAGIC = b"\x93NUMPY"
_EXTENT_MAX = 1 << 63
_DTYPES = {
    "b1": "BOOL", "i1": "I8", "u1": "U8", "i2": "I16", "u2": "U16", "i4": "I32", "u4": "U32", "i8": "I64",
    "u8": "U64", "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip


def read_table(source: Source, unread: list[UnreadTensor] | None = None) -> tuple[TensorSpan, ...]:
    """Return the array of an `.npy` file, named "array", or those of an `.npz`, as its first bytes tell.

    An array whose dtype has no plain tensor form gives no span, nor does a compressed member of an `.npz`. These are
    added to `unread`.
    Raises FormatError for a malformed archive or header, missing elements, or python objects.
    """
    unread = [] if unread is None else unread
    if looks_zipped(source):
        return _read_archive(source, unread)
    return tuple(_read_array(source, Member(ARRAY_NAME, 0, source.size, stored=True), unread))


def read_header(source: Source) -> tuple[object, tuple[int, ...], int]:
    """Return the dtype description and shape of an `.npy` file, and where its elements start; raise FormatError."""
    header, start = _read_header(source, Member(ARRAY_NAME, 0, source.size, stored=True), "array")
    descr, shape, _ = _check_header(header, "array")
    return descr, shape, start


def _read_archive(source: Source, unread: list[UnreadTensor]) -> tuple[TensorSpan, ...]:
    """Return the arrays that an `.npz` archive stores uncompressed, each named after its member."""
    spans: list[TensorSpan] = []
    for member in read_members(source):
        if not member.name.endswith(".npy"):
            continue
        name = member.name.removesuffix(".npy")
        if len(name.encode()) > NAME_MAX_BYTES:
            raise FormatError(f"array name is longer than {NAME_MAX_BYTES} bytes")
        if member.stored:
            spans += _read_array(source, Member(name, member.start, member.length, stored=True), unread)
        else:
            unread.append(UnreadTensor(name, "is compressed in its file"))
    return tuple(spans)


def _read_array(source: Source, place: Member, unread: list[UnreadTensor]) -> list[TensorSpan]:
    """Return the span of the array whose `.npy` bytes lie at `place`, or nothing if its dtype has none."""
    where = f"array {place.name[:80]!r}"
    header, header_length = _read_header(source, place, where)
    descr, shape, fortran = _check_header(header, where)
    if _holds_objects(descr):
        raise FormatError(f"{where} holds python objects, which only pickle can read")
    dtype = _dtype_of(descr)
    if dtype is None:
        unread.append(UnreadTensor(place.name, f"has dtype {str(descr)[:40]}, which is no plain little-endian one"))
        return []
    length = dense_bytes(dtype, shape)
    if header_length + length > place.length:
        raise FormatError(f"{where} is cut short: {place.length - header_length} bytes, wanted {length}")
    stride = _column_major(shape) if fortran else None
    return [TensorSpan(place.name, dtype, shape, place.start + header_length, length, stride)]


def _read_header(source: Source, place: Member, where: str) -> tuple[object, int]:
    """Return the parsed header literal and how many bytes precede the elements."""
    prefix = source.read(place.start, min(12, place.length))
    if len(prefix) < 10 or prefix[:6] != _MAGIC:
        raise FormatError(f"{where} does not start as an .npy file does")
    version = (prefix[6], prefix[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(f"{where} has .npy version {version[0]}.{version[1]}, wanted 1.0, 2.0 or 3.0")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(prefix[8 : 8 + width], "little")
    if length > HEADER_MAX_BYTES:
        raise FormatError(f"{where} has a header of {length} bytes, at most {HEADER_MAX_BYTES} are allowed")
    if 8 + width + length > place.length:
        raise FormatError(f"{where} is cut short in its header")
    raw = source.read(place.start + 8 + width, length)
    try:
        text = raw.decode("utf-8" if version == (3, 0) else "latin-1")
        # Python 2 wrote long extents as 3L.
        return ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text)), 8 + width + length
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise FormatError(f"{where} has a header that is not a python literal") from None


def _check_header(header: object, where: str) -> tuple[object, tuple[int, ...], bool]:
    """Return dtype description, shape and order of a parsed header; raise FormatError for any other form."""
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise FormatError(f"{where} has a header without exactly descr, fortran_order and shape")
    shape, fortran = header["shape"], header["fortran_order"]
    if not isinstance(fortran, bool):
        raise FormatError(f"{where} has a fortran_order that is not a bool")
    if not isinstance(shape, tuple) or len(shape) > RANK_MAX:
        raise FormatError(f"{where} has a shape that is not a tuple of at most {RANK_MAX}")
    if any(type(extent) is not int or not 0 <= extent < _EXTENT_MAX for extent in shape):
        raise FormatError(f"{where} has a shape whose extents are not all whole numbers from 0 on")
    return header["descr"], shape, fortran


def _holds_objects(descr: object) -> bool:
    """Tell whether a dtype description has python objects in it, at any depth of a structured dtype."""
    if isinstance(descr, str):
        return descr.lstrip("|<>=").startswith("O")
    if isinstance(descr, list):
        return any(isinstance(field, tuple) and any(map(_holds_objects, field[1:])) for field in descr)
    return isinstance(descr, tuple) and any(map(_holds_objects, descr))


def _dtype_of(descr: object) -> str | None:
    """Return the tensor dtype of a little-endian plain numpy dtype, None for every other."""
    if not isinstance(descr, str):
        return None
    if descr[:1] == "<" or (descr[:1] == "|" and descr[1:] in ("b1", "i1", "u1")):
        return _DTYPES.get(descr[1:])
    return None


def _column_major(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the stride in elements of a column-major array, None where it is row-major all the same."""
    if 0 in shape or sum(extent > 1 for extent in shape) < 2:
        return None
    stride, step = [], 1
    for extent in shape:
        stride.append(step)
        step *= extent
    return tuple(stride)
