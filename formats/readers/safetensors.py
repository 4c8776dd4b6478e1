"""Safetensors: the table of one file, and the header of one to be written.

Invariant: nothing is accepted that the safetensors library refuses, and the tensors cover the bytes after
the header exactly: no hole, no overlap, nothing left over.

A file is valid if and only if
    0   8     length N of the header, little-endian, at most 100,000,000
    8   N     utf-8 JSON object, its first byte "{"; trailing JSON white space is allowed
    .   ...   the bytes of the tensors
and the object maps each tensor's name to {dtype, shape, data_offsets: [begin, end)} counted from the end of
the header, and optionally "__metadata__" to an object of strings (or null).

Stricter than the library, on purpose: a key told twice or an unknown field (two readers would see two files),
a tensor or dtype in serde's array or map form or white space before "{" (the specification has neither), and
more than 64 extents, an extent of 2**63 or more, or a name above 4096 bytes (no tensor library holds them).
"""

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn, cast

from ..errors import FormatError
from ..tensor import DTYPE_BITS, NAME_MAX_BYTES, RANK_MAX, TENSORS_MAX_COUNT, Source, TensorSpan, dense_bytes

HEADER_MAX_BYTES = 100_000_000

_LENGTH_BYTES = 8
_INTEGER_MAX = (1 << 63) - 1
_ELEMENTS_MAX_BITS = (1 << 64) - 1  # the library counts the bits of a tensor in 64 bits
_METADATA = "__metadata__"
_DTYPES = DTYPE_BITS.keys() - {"C128"}  # numpy has it, safetensors does not


def read_table(source: Source) -> tuple[TensorSpan, ...]:
    """Return the tensors of a safetensors file by place in the file.

    Raises FormatError if the file is not valid as the module docstring has it.
    """
    if source.size < _LENGTH_BYTES:
        raise FormatError(f"safetensors file of {source.size} bytes is cut short, wanted at least 8")
    header_length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
    if header_length > HEADER_MAX_BYTES:
        raise FormatError(f"safetensors header of {header_length} bytes, at most {HEADER_MAX_BYTES} are allowed")
    data_start = _LENGTH_BYTES + header_length
    if data_start > source.size:
        raise FormatError(f"safetensors header of {header_length} bytes is cut short")
    header = _parse_header(source.read(_LENGTH_BYTES, header_length))
    spans = [_read_tensor(name, fields, data_start) for name, fields in header.items() if name != _METADATA]
    spans.sort(key=lambda span: (span.start, span.length, span.name))
    end = data_start
    for span in spans:
        if span.start != end:
            fault = "overlaps the one before it" if span.start < end else "leaves a hole before it"
            raise FormatError(f"tensor {span.name[:80]!r} {fault}")
        end += span.length
    if end != source.size:
        raise FormatError(f"safetensors tensors end at byte {end}, the file at {source.size}")
    return tuple(spans)


def write_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return length and JSON header of a file whose bytes are the given tensors back to back, in this order.

    Each tensor is (name, dtype, shape). The header is padded with spaces to 8 bytes. Ordered by descending
    dtype alignment and then by name, the result is the library's own. Raises FormatError for a tensor
    that `read_table` would refuse.
    """
    header: dict[str, object] = {}
    if metadata is not None:
        header[_METADATA] = dict(sorted(metadata.items()))
    end = 0
    for name, dtype, shape in tensors:
        if name in header or name == _METADATA:
            raise FormatError(f"tensor name {name[:80]!r} is taken")
        _check_name(name)
        begin, end = end, end + _tensor_bytes(name, dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    try:
        encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise FormatError("safetensors metadata is not valid unicode") from None
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > HEADER_MAX_BYTES:
        raise FormatError(f"safetensors header of {len(encoded)} bytes, at most {HEADER_MAX_BYTES} are allowed")
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded


def _parse_header(raw: bytes) -> dict[str, object]:
    """Return the header object, its metadata checked and its tensors not yet."""
    if not raw.startswith(b"{"):
        raise FormatError("safetensors header does not start with '{'")
    # A hundred million bytes can spell far more containers than tensors; each costs memory once parsed.
    if raw.count(b"[") + raw.count(b"{") > 3 * TENSORS_MAX_COUNT:
        raise FormatError(f"safetensors header has more than {TENSORS_MAX_COUNT} tensors")
    try:
        header = json.loads(
            raw.decode(),
            object_pairs_hook=_refuse_twins,
            parse_int=_parse_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except UnicodeDecodeError:
        raise FormatError("safetensors header is not utf-8") from None
    except json.JSONDecodeError as error:
        raise FormatError(f"safetensors header is not json: {error.msg.lower()} at {error.pos}") from None
    except RecursionError:
        raise FormatError("safetensors header is nested too deeply") from None
    if not isinstance(header, dict):
        raise FormatError("safetensors header is not a json object")
    if len(header) > TENSORS_MAX_COUNT:
        raise FormatError(f"safetensors header has more than {TENSORS_MAX_COUNT} tensors")
    _check_metadata(header.get(_METADATA))
    return header


def _refuse_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object as a dict, unless a key in it is told twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatError("safetensors header tells a key twice")
    return found


def _parse_integer(digits: str) -> int:
    """Return a JSON integer of the header, which must lie in [0, 2**63)."""
    if digits.startswith("-") or len(digits) > 19 or int(digits) > _INTEGER_MAX:
        raise FormatError(f"safetensors header has the number {digits[:40]}, wanted 0 to 2**63 - 1")
    return int(digits)


def _refuse_number(literal: str) -> NoReturn:
    """Refuse a JSON number that is not an integer; no field of the header takes one."""
    raise FormatError(f"safetensors header has the number {literal[:40]}, wanted an integer")


def _check_metadata(metadata: object) -> None:
    """Raise FormatError unless `__metadata__` is absent, null, or an object of valid strings."""
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise FormatError("safetensors __metadata__ is not an object of strings")
    for key, text in metadata.items():
        if not _is_unicode(key) or not _is_unicode(text):
            raise FormatError("safetensors __metadata__ is not valid unicode")


def _read_tensor(name: str, fields: object, data_start: int) -> TensorSpan:
    """Return the span of one header line; `data_start` is the byte that its offsets count from."""
    _check_name(name)
    where = f"tensor {name[:80]!r}"
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str):
        raise FormatError(f"{where} has a dtype that is not a string")
    if not _all_integers(shape) or not _all_integers(offsets):
        raise FormatError(f"{where} has a shape or data_offsets that is not a list of integers")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where} has data_offsets that are not [begin, end]")
    length = _tensor_bytes(name, dtype, tuple(shape))
    if offsets[1] - offsets[0] != length:
        raise FormatError(f"{where} has {offsets[1] - offsets[0]} bytes, its dtype and shape need {length}")
    return TensorSpan(name, dtype, tuple(shape), data_start + offsets[0], length)


def _check_name(name: str) -> None:
    """Raise FormatError unless a tensor's name is valid unicode of at most NAME_MAX_BYTES."""
    if not _is_unicode(name) or len(name.encode()) > NAME_MAX_BYTES:
        raise FormatError(f"tensor name is not unicode of at most {NAME_MAX_BYTES} bytes")


def _tensor_bytes(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor, refusing what overflows in the library, extent by extent as it counts."""
    where = f"tensor {name[:80]!r}"
    if dtype not in _DTYPES:
        raise FormatError(f"{where} has the unknown dtype {dtype[:40]!r}")
    if len(shape) > RANK_MAX:
        raise FormatError(f"{where} has {len(shape)} extents, at most {RANK_MAX} are allowed")
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > _ELEMENTS_MAX_BITS:
            raise FormatError(f"{where} has a shape that overflows 64 bits")
    bits = elements * DTYPE_BITS[dtype]
    if bits > _ELEMENTS_MAX_BITS or bits % 8:
        raise FormatError(f"{where} has a shape that overflows 64 bits or does not fill whole bytes")
    return dense_bytes(dtype, shape)


def _all_integers(values: object) -> bool:
    """Tell whether a parsed JSON value is a list of integers; bools are not integers."""
    return isinstance(values, list) and all(type(value) is int for value in cast("list[object]", values))


def _is_unicode(text: str) -> bool:
    """Tell whether a string can be written as utf-8; JSON escapes can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
