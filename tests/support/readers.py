"""Readers of users' formats: sources of bytes, and files made by the libraries or by hand."""

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.tensor import DTYPE_BITS, Source, TensorSpan, dense_bytes

FUZZ = settings(max_examples=200, deadline=None)


TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


TORCH_ONLY = {**TORCH_DTYPES, "C128": torch.complex128}


class BytesSource:
    """A file in memory that counts what is read of it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.read_bytes = 0

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        if offset + length > len(self._content):
            raise FormatError("file is cut short")
        self.read_bytes += length
        return self._content[offset : offset + length]


def read(read_table: Callable[[Source], tuple[TensorSpan, ...]], content: bytes) -> dict[str, TensorSpan]:
    """Return the table by name, after checking what holds of every table."""
    spans = read_table(BytesSource(content))
    check_spans(spans, len(content))
    return {span.name: span for span in spans}


def check_spans(spans: tuple[TensorSpan, ...], size: int) -> None:
    assert [span.start for span in spans] == sorted(span.start for span in spans)
    assert len({span.name for span in spans}) == len(spans)
    for span in spans:
        assert 0 <= span.start <= span.start + span.length <= size
        if span.stride is None and span.dtype in DTYPE_BITS:
            assert span.length == dense_bytes(span.dtype, span.shape)


def refused(read_table: Callable[[Source], object], content: bytes) -> str:
    """Return the message with which the content is refused: one line, lower-case in its first letter."""
    with pytest.raises(FormatError) as caught:
        read_table(BytesSource(content))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert message[0].islower()
    return message


def same_tensor(content: bytes, span: TensorSpan, wanted: torch.Tensor) -> bool:
    """Tell whether the bytes at a span decode to a tensor, bit for bit."""
    raw = bytearray(content[span.start : span.start + span.length])
    if span.shape != tuple(wanted.shape) or TORCH_ONLY[span.dtype] != wanted.dtype:
        return False
    if not span.length:
        return wanted.numel() == 0
    flat = torch.frombuffer(raw, dtype=wanted.dtype)
    found = flat.view(span.shape) if span.stride is None else flat.as_strided(span.shape, span.stride)
    return found.contiguous().view(-1).view(torch.uint8).equal(wanted.detach().contiguous().view(-1).view(torch.uint8))


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    count = int(np.prod(shape)) * width
    high = 2 if dtype == torch.bool else 256
    return torch.randint(0, high, (count,), dtype=torch.uint8).view(dtype).view(shape)


def edits() -> st.SearchStrategy[tuple[list[tuple[float, int]], float]]:
    """Byte changes at relative places, and the relative length to keep."""
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))
    return st.tuples(st.lists(change, max_size=6), st.one_of(st.just(1.0), st.floats(0, 1)))


def edit(content: bytes, changes: tuple[list[tuple[float, int]], float]) -> bytes:
    edited = bytearray(content)
    for place, value in changes[0]:
        edited[int(place * len(edited))] = value
    return bytes(edited[: round(changes[1] * len(edited))])


def line(dtype: str = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def gguf_text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_pair(key: str, kind: int, value: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<I", kind) + value


def gguf_info(name: str, extents: tuple[int, ...], number: int, offset: int) -> bytes:
    packed = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return gguf_text(name) + packed + struct.pack("<IQ", number, offset)


def gguf_bytes(
    infos: list[bytes], data: bytes = b"", *, pairs: tuple[bytes, ...] = (), version: int = 3, alignment: int = 32
) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join((*pairs, *infos))
    return header + bytes(-len(header) % alignment) + data


GGUF_PAIRS = (
    gguf_pair("general.architecture", 8, gguf_text("llama")),
    gguf_pair("general.alignment", 4, struct.pack("<I", 64)),
    gguf_pair("tokens", 9, struct.pack("<IQ", 8, 3) + gguf_text("a") + gguf_text("") + gguf_text("ccc")),
    gguf_pair("scores", 9, struct.pack("<IQ3f", 6, 3, 1, 2, 3)),
    gguf_pair("nested", 9, struct.pack("<IQ", 9, 2) + struct.pack("<IQB", 0, 1, 7) + struct.pack("<IQ", 8, 0)),
    *(gguf_pair(f"k{kind}", kind, bytes(width)) for kind, width in
      {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items()),
)  # fmt: skip


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(header: str, data_bytes: int = 0, *, version: int = 1, encoding: str = "latin-1") -> bytes:
    raw = header.encode(encoding)
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(raw).to_bytes(2 if version == 1 else 4, "little")
        + raw
        + bytes(data_bytes)
    )


def npz_bytes(save: Callable[..., None], arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


class Marker:
    """An object whose pickle creates a file when it is run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def torch_bytes(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def checkpoint(pickled: bytes, *records: int, **extra: bytes) -> bytes:
    """Return an archive of a pickle and storages of the given lengths."""
    storages = {f"x/data/{key}": bytes(length) for key, length in enumerate(records)}
    return zip_bytes({"x/data.pkl": pickled, **{f"x/{name}": told for name, told in extra.items()}, **storages})
