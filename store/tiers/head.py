"""Head of an extent: what stands before its data, as bytes and as a value.

    0     8     "ARHOST1" and a zero
    8     8     length of the table, u64 LE
    16    32    BLAKE3 of the table, keyed if the extent is sealed (sealed.py)
    48    ..    table: JSON {"key", "name", "bytes", "tensors": [[name, dtype, shape, start, length, stride?], …]}, and
                "sums" if it is sealed
    ...         zeros to the next 4,096, then the data
Valid iff magic and hash are right, the file is named after the key, every tensor lies inside the data, and the file
ends with the data.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from ...formats.tensor import TensorSpan
from ..errors import Corrupt

PAGE_BYTES = 4096
_MAGIC = b"ARHOST1\0"
_HEAD_BYTES = 48
_TABLE_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an extent: what stands before its data."""

    key: str
    name: str
    spans: tuple[TensorSpan, ...]
    length_bytes: int
    sums: tuple[str, ...] = ()  # only of a sealed extent, see sealed.py

    def packed(self, seal: bytes | None = None) -> bytes:
        """Return the bytes up to the page that the data begins on. Its table is hashed under `seal`, if given."""
        table_fields = {
            "key": self.key,
            "name": self.name,
            "bytes": self.length_bytes,
            "tensors": list(map(_packed, self.spans)),
        }
        table = json.dumps(table_fields | ({"sums": self.sums} if seal else {})).encode()
        head = _MAGIC + len(table).to_bytes(8, "little") + _digest(table, seal) + table
        return head.ljust(_data_start(len(table)), b"\0")


def parse_head(path: Path, head: "memoryview | bytes", file_bytes: int, seal: bytes | None = None) -> tuple[Head, int]:
    """Return the head of an extent and where its data starts. Raises Corrupt unless the file ends with the data."""
    length = int.from_bytes(head[8:16], "little")
    packed = bytes(head[_HEAD_BYTES : _HEAD_BYTES + min(length, _TABLE_MAX_BYTES)])
    if head[:8] != _MAGIC or len(packed) != length or head[16:48] != _digest(packed, seal):
        raise Corrupt(str(path), "is no extent" + (", or not of this tenant" if seal else ""))
    try:
        table = dict(json.loads(packed))
        spans = tuple(_parse_span(*row) for row in table["tensors"])
        data_bytes, start = table["bytes"], _data_start(length)
        if start + data_bytes != file_bytes or not all(0 <= s.start <= s.place.stop <= data_bytes for s in spans):
            raise ValueError("it is not whole")
        return Head(str(table["key"]), str(table["name"]), spans, data_bytes, tuple(table.get("sums", ()))), start
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Corrupt(str(path), f"is no extent ({error})") from None


def read_head(path: Path, file: BinaryIO, seal: bytes | None = None) -> tuple[Head, int]:
    """Return the head of an extent that is open for reading, and where its data starts."""
    head = file.read(_HEAD_BYTES)
    head += file.read(min(int.from_bytes(head[8:16], "little"), _TABLE_MAX_BYTES))
    return parse_head(path, head, os.fstat(file.fileno()).st_size, seal)


def read_name(path: Path, seal: bytes | None = None) -> tuple[str, int]:
    """Return the name and the length of an extent.

    If the file is none or can't be read, return the beginning of the file's name and the file's length.
    """
    with path.open("rb") as file:
        with contextlib.suppress(Corrupt, OSError):
            head, _ = read_head(path, file, seal)
            return head.name, head.length_bytes
        return path.name[:16], os.fstat(file.fileno()).st_size


def _digest(table: bytes, seal: bytes | None) -> bytes:
    return (blake3(table, key=seal) if seal else blake3(table)).digest()


def _data_start(table_bytes: int) -> int:
    return -(-(_HEAD_BYTES + table_bytes) // PAGE_BYTES) * PAGE_BYTES


def _packed(span: TensorSpan) -> list[Any]:
    packed = [span.name, span.dtype, list(span.shape), span.start, span.length]
    return packed if span.stride is None else [*packed, list(span.stride)]


def _parse_span(
    name: str, dtype: str, shape: list[int], start: int, length: int, stride: list[int] | None = None
) -> TensorSpan:
    return TensorSpan(name, dtype, tuple(shape), start, length, tuple(stride) if stride is not None else None)
