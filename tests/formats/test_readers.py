"""Readers of users' files: real files give their tensors back, hostile ones a FormatError and nothing else.

Files come from the real libraries; only GGUF, whose library is no dependency, is written here.
"""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.readers import gguf, numpy_file, sniff, torch_file, torch_values, zip_members
from arstore.formats.readers import safetensors as safetensors_file
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


class HollowSource:
    """A file of a head, a hole of zeros that is never materialised, and a tail."""

    def __init__(self, head: bytes, hole: int, tail: bytes) -> None:
        self._head, self._tail, self._tail_start = head, tail, len(head) + hole
        self.size = self._tail_start + len(tail)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= length < 1 << 20
        if offset + length > self.size:
            raise FormatError("file is cut short")
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        if offset >= self._tail_start:
            return self._tail[offset - self._tail_start :][:length]
        head, tail = self._head[offset:], self._tail[: max(0, offset + length - self._tail_start)]
        return head + bytes(length - len(head) - len(tail)) + tail


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


# --- safetensors


def safetensors_bytes(header: object, data_bytes: int = 0) -> bytes:
    """Return a file of a header, given as JSON value, text or bytes, and zeros."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + bytes(data_bytes)


def deserialize(content: bytes) -> Any:
    return safetensors.deserialize(content)  # type: ignore[no-untyped-call]


def library_accepts(content: bytes) -> bool:
    try:
        deserialize(content)
    except BaseException as error:  # a panic of the library is no Exception
        if type(error).__name__ not in ("SafetensorError", "PanicException"):
            raise
        return False
    return True


def line(dtype: str = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_safetensors_of_every_torch_dtype() -> None:
    tensors = {name: random_tensor(dtype, 3, 4) for name, dtype in TORCH_DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 7), "ünïcode.🙂": torch.ones(2)}
    content = safetensors.torch.save(tensors, metadata={"format": "pt", "näme": "ünï"})
    table = read(safetensors_file.read_table, content)
    assert table.keys() == tensors.keys()
    assert all(same_tensor(content, table[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS.keys() - {"C128"}))
def test_safetensors_dtypes_are_those_of_the_library(dtype: str) -> None:
    length = dense_bytes(dtype, (2, 4))
    content = safetensors_bytes({"a": line(dtype, (2, 4), (0, length))}, length)
    assert library_accepts(content)
    assert read(safetensors_file.read_table, content)["a"].length == length


def test_safetensors_accepts_what_is_odd_but_valid() -> None:
    for content in (
        safetensors_bytes("{}"),
        safetensors_bytes('{"__metadata__":null} \n\t\r '),
        safetensors_bytes('{"__metadata__":{}}'),
        safetensors_bytes({"": line(), "\0": line("F32", (0, 1 << 62), (1, 1))}, 1),
        safetensors_bytes({"later": line("U8", (2,), (1, 3)), "first": line()}, 3),
        safetensors_bytes({"a": line(), "start": line("U8", (0,), (0, 0)), "end": line("U8", (0,), (1, 1))}, 1),
        safetensors_bytes('{"\\ud83d\\ude00":{"data_offsets":[0,1],"shape":[],"dtype":"U8"}}', 1),
        safetensors_bytes({"odd header": line("F64", (1,), (0, 8))}, 8),
    ):
        assert library_accepts(content)
        read(safetensors_file.read_table, content)


ONE = json.dumps(line())
REFUSED_BY_BOTH: list[tuple[str, Any, int]] = [
    ("not json", "{", 0),
    ("not an object", "[]", 0),
    ("not utf-8", b'{"\xff":1}', 0),
    ("trailing bytes", "{}\0", 0),
    ("byte order mark", "\ufeff{}", 0),
    ("unknown dtype", {"a": line("F7")}, 1),
    ("complex128", {"a": line("C128", (1,), (0, 16))}, 16),
    ("lower-case dtype", {"a": line("u8")}, 1),
    ("float extent", {"a": line("U8", (1.0,))}, 1),
    ("bool extent", {"a": line("U8", (True,))}, 1),
    ("text extent", {"a": line("U8", ("1",))}, 1),
    ("negative extent", {"a": line("U8", (-1, -1))}, 1),
    ("minus zero", '{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', 0),
    ("null shape", {"a": line("U8", None)}, 1),
    ("extent of 2**64", {"a": line("U8", (0, 1 << 64), (0, 0))}, 0),
    ("overflow before a zero", {"a": line("U8", (1 << 62, 8, 0), (0, 0))}, 0),
    ("overflow of bits", {"a": line("F64", (1 << 60,), (0, 0))}, 0),
    ("overflow that wraps to the size", {"a": line("U8", (1 << 32, 1 << 32), (0, 0))}, 0),
    ("half a byte", {"a": line("F4", (1,), (0, 1))}, 1),
    ("three offsets", {"a": line("U8", (1,), (0, 1, 2))}, 1),
    ("one offset", {"a": line("U8", (1,), (1,))}, 1),
    ("bool offset", {"a": line("U8", (1,), (0, True))}, 1),
    ("reversed offsets", {"a": line("U8", (1,), (1, 0))}, 1),
    ("wrong size", {"a": line("U16", (1,), (0, 1))}, 1),
    ("overlap", {"a": line("U8", (2,), (0, 2)), "b": line("U8", (2,), (1, 3))}, 3),
    ("twins in place", {"a": line(), "b": line()}, 1),
    ("hole", {"a": line(), "b": line("U8", (1,), (2, 3))}, 3),
    ("hole that leaves the file", {"a": line(), "b": line("U8", (1,), (2, 3))}, 2),
    ("offsets longer than the tensor", {"a": line("U8", (1,), (0, 2))}, 1),
    ("hole at the start", {"a": line("U8", (1,), (1, 2))}, 2),
    ("empty tensor inside another", {"a": line("U8", (2,), (0, 2)), "b": line("U8", (0,), (1, 1))}, 2),
    ("bytes left over", {"a": line()}, 2),
    ("bytes missing", {"a": line()}, 0),
    ("missing field", {"a": {"dtype": "U8", "shape": [1]}}, 1),
    ("tensor is a number", {"a": 1}, 0),
    ("metadata is a list", {"__metadata__": []}, 0),
    ("metadata of numbers", {"__metadata__": {"a": 1}}, 0),
    ("metadata of objects", {"__metadata__": {"a": {}}}, 0),
    ("half a surrogate pair", f'{{"\\ud800":{ONE}}}', 1),
    ("half a pair in metadata", '{"__metadata__":{"\\udc00":"x"}}', 0),
    ("control character", f'{{"\t":{ONE}}}', 1),
    ("not a number", {"a": line("U8", (float("nan"),))}, 1),
    ("leading zero", '{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}', 1),
    ("nested beyond measure", '{"a":' + "[" * 200_000, 0),
    ("nested objects", '{"a":' * 200_000, 0),
    ("dtype told twice", '{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
]  # fmt: skip
REFUSED_BY_US: list[tuple[str, Any, int]] = [
    ("white space first", " {}", 0),
    ("name told twice", f'{{"a":{ONE},"a":{ONE}}}', 1),
    ("name told twice by escape", f'{{"a":{ONE},"\\u0061":{ONE}}}', 1),
    ("metadata key told twice", '{"__metadata__":{"a":"b","a":"c"}}', 0),
    ("unknown field", {"a": {**line(), "extra": 1}}, 1),
    ("tensor as array", {"a": ["U8", [1], [0, 1]]}, 1),
    ("dtype as object", {"a": {**line(), "dtype": {"U8": None}}}, 1),
    ("extent of 2**63", {"a": line("U8", (0, 1 << 63), (0, 0))}, 0),
    ("65 extents", {"a": line("U8", (1,) * 65)}, 1),
    ("name of 4097 bytes", {"é" * 2048 + "x": line()}, 1),
]


@pytest.mark.parametrize(("what", "header", "data_bytes"), REFUSED_BY_BOTH, ids=lambda value: str(value)[:24])
def test_safetensors_refuses_as_the_library_does(what: str, header: object, data_bytes: int) -> None:
    content = safetensors_bytes(header, data_bytes)
    assert not library_accepts(content), what
    refused(safetensors_file.read_table, content)


@pytest.mark.parametrize(("what", "header", "data_bytes"), REFUSED_BY_US, ids=lambda value: str(value)[:24])
def test_safetensors_is_stricter_only_where_it_says_so(what: str, header: object, data_bytes: int) -> None:
    content = safetensors_bytes(header, data_bytes)
    assert library_accepts(content), what
    refused(safetensors_file.read_table, content)


def test_safetensors_refuses_long_and_short_headers() -> None:
    too_long = (100_000_001).to_bytes(8, "little") + b"{}"
    assert "at most 100000000" in refused(safetensors_file.read_table, too_long)
    assert "cut short" in refused(safetensors_file.read_table, (3).to_bytes(8, "little") + b"{}")
    refused(safetensors_file.read_table, bytes(8))
    content = safetensors.numpy.save({"a": np.arange(4, dtype="f4"), "b": np.ones((2, 2), "u1")})
    for length in range(len(content)):
        refused(safetensors_file.read_table, content[:length])


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 8, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, -1, 1.0, True, None]),
    st.sampled_from(["U8", "F32", "F4", "F6_E2M3", "C128", "", [], {}, [0, 1], [1, 2], [0, 4], "\ud800"]),
)
LINES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["U8", "F4", "I16", "F32", "F6_E3M2"]), VALUES),
            "shape": st.one_of(st.lists(st.sampled_from([0, 1, 2, 4, 1 << 62]), max_size=3), VALUES),
            "data_offsets": st.one_of(st.lists(st.integers(0, 9), min_size=2, max_size=2), VALUES),
        },
        optional={"extra": VALUES},
    ),
    VALUES,
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), LINES, max_size=3)


def check_against_library(content: bytes) -> None:
    """Whatever we accept, the library accepts, with the same tensors at the same bytes."""
    try:
        table = read(safetensors_file.read_table, content)
    except FormatError:
        return
    theirs = dict(deserialize(content))
    assert theirs.keys() == table.keys()
    for name, span in table.items():
        assert (span.dtype, list(span.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert bytes(theirs[name]["data"]) == content[span.start : span.start + span.length]


@FUZZ
@given(HEADERS, st.integers(0, 16))
def test_safetensors_never_accepts_what_the_library_refuses(header: dict[str, Any], data_bytes: int) -> None:
    check_against_library(safetensors_bytes(header, data_bytes))


TOKENS = st.sampled_from(
    ['"', "{", "}", "[", "]", ",", ":", "0", "1", "6", "-", ".0", "e0", " ", "\\u0061", "\\ud800", "\n", "null",
     '"a":', "F32"]
)  # fmt: skip


@FUZZ
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), TOKENS, st.integers(0, 4)), min_size=1, max_size=2))
def test_safetensors_text_never_accepted_against_the_library(changes: list[tuple[float, str, int]]) -> None:
    content = safetensors.numpy.save({"a": np.ones((2, 3), "<i2"), "b": np.ones(2, "<f4")}, {"format": "np"})
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].decode().rstrip()
    for place, token, dropped in changes:
        at = int(place * len(text))
        text = text[:at] + token + text[at + dropped :]
    check_against_library(safetensors_bytes(text) + content[8 + length :])


@FUZZ
@given(edits())
def test_safetensors_bytes_never_accepted_against_the_library(changes: Any) -> None:
    tensors = {"a": np.arange(6, dtype="i2").reshape(2, 3), "b": np.ones(2, "f4"), "c": np.ones(0, "u1")}
    check_against_library(edit(safetensors.numpy.save(tensors, {"format": "np"}), changes))


def test_write_header_is_what_the_library_writes() -> None:
    tensors = {"x": np.ones((2, 3), "f4"), "b": np.ones((), "i8"), "ü": np.ones(3, "u1"), "a": np.ones(0, "f4")}
    content = safetensors.numpy.save(tensors, {"format": "np"})
    table = read(safetensors_file.read_table, content)
    ordered = deserialize(content)
    lines = [(name, table[name].dtype, table[name].shape) for name, _ in ordered]
    lines.sort(key=lambda told: (table[told[0]].start, table[told[0]].length, told[0]))
    header = safetensors_file.write_header(lines, {"format": "np"})
    assert content.startswith(header)
    assert len(header) % 8 == 0


def test_write_header_refuses_what_could_not_be_read() -> None:
    write = safetensors_file.write_header
    assert library_accepts(write([]))
    assert library_accepts(write([("a", "F4", (2, 2))], {}) + bytes(2))
    for tensors in (
        [("a", "F32", ()), ("a", "F32", ())],
        [("__metadata__", "F32", ())],
        [("a", "Q4_K", (256,))],
        [("a", "C128", (1,))],
        [("a", "F4", (1,))],
        [("a", "F32", (-1,))],
        [("a", "F32", (1 << 62, 1 << 62))],
        [("\ud800", "F32", ())],
        [("x" * 4097, "F32", ())],
    ):
        with pytest.raises(FormatError):
            write(tensors)
    with pytest.raises(FormatError):
        write([], {"a": "\ud800"})


# --- gguf

GGML = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "IQ4_NL": 20, "I8": 24, "I16": 25,
    "I32": 26, "I64": 27, "F64": 28, "BF16": 30, "TQ1_0": 34, "MXFP4": 39,
}  # fmt: skip


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


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("padding", range(0, 64, 16))
def test_gguf_tensors_lie_where_the_file_says(version: int, padding: int) -> None:
    weights = random_tensor(torch.float32, 2, 3, 4)
    data = bytes(64) + weights.numpy().tobytes() + bytes(32 + 144)
    infos = [gguf_info("blk.0.weight", (4, 3, 2), 0, 64), gguf_info("q", (256,), GGML["Q4_0"], 192)]
    pairs = (*GGUF_PAIRS, gguf_pair("padding", 8, gguf_text("x" * padding)))
    content = gguf_bytes(infos, data, pairs=pairs, version=version, alignment=64)
    table = read(gguf.read_table, content)
    assert same_tensor(content, table["blk.0.weight"], weights)
    assert (table["q"].dtype, table["q"].shape, table["q"].length) == ("Q4_0", (256,), 144)
    assert table["q"].start % 64 == 0


@pytest.mark.parametrize(
    ("dtype", "length"),
    [("F32", 2048), ("F16", 1024), ("BF16", 1024), ("F64", 4096), ("I8", 512), ("I16", 1024), ("I32", 2048),
     ("I64", 4096), ("Q4_0", 288), ("Q8_0", 544), ("Q4_K", 288), ("Q6_K", 420), ("IQ4_NL", 288),
     ("TQ1_0", 108), ("MXFP4", 272)],
)  # fmt: skip
def test_gguf_lengths_by_type(dtype: str, length: int) -> None:
    content = gguf_bytes([gguf_info("a", (256, 2), GGML[dtype], 0)], bytes(length))
    span = read(gguf.read_table, content)["a"]
    assert (span.dtype, span.shape, span.length) == (dtype, (2, 256), length)
    refused(gguf.read_table, content[:-1])


def test_gguf_without_extents_or_tensors() -> None:
    assert read(gguf.read_table, gguf_bytes([])) == {}
    table = read(gguf.read_table, gguf_bytes([gguf_info("s", (), 0, 0), gguf_info("e", (0, 4), 0, 32)], bytes(32)))
    assert (table["s"].shape, table["s"].length, table["e"].shape, table["e"].length) == ((), 4, (4, 0), 0)


@pytest.mark.parametrize(
    ("wanted", "content"),
    [
        ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)),
        ("version 1", gguf_bytes([], version=1)),
        ("version 0", gguf_bytes([], version=0)),
        ("does not start", b"GGJT" + bytes(40)),
        ("at most 4000000", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0)),
        ("cut short", b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60)),
        ("key of", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40)),
        ("name of", b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 5000) + bytes(5000)),
        ("cut short", gguf_bytes([], pairs=(gguf_pair("a", 8, struct.pack("<Q", 1 << 63)),))),
        ("cut short", gguf_bytes([], pairs=(gguf_pair("a", 9, struct.pack("<IQ", 0, 1 << 63)),))),
        ("value type", gguf_bytes([], pairs=(gguf_pair("a", 13, b""),))),
        ("nests", gguf_bytes([], pairs=(gguf_pair("a", 9, struct.pack("<IQ", 9, 1) * 6),))),
        ("twice", gguf_bytes([], pairs=(GGUF_PAIRS[1], GGUF_PAIRS[1]))),
        ("uint32", gguf_bytes([], pairs=(gguf_pair("general.alignment", 10, bytes(8)),))),
        ("power of two", gguf_bytes([], pairs=(gguf_pair("general.alignment", 4, bytes(4)),))),
        ("power of two", gguf_bytes([], pairs=(gguf_pair("general.alignment", 4, struct.pack("<I", 48)),))),
        ("5 extents", gguf_bytes([gguf_info("a", (1,) * 5, 0, 0)], bytes(4))),
        ("2**63", gguf_bytes([gguf_info("a", ((1 << 64) - 1, 0), 0, 0)])),
        ("ends at", gguf_bytes([gguf_info("a", (1 << 62, 1 << 62), 0, 0)])),
        ("unknown ggml type 4", gguf_bytes([gguf_info("a", (256,), 4, 0)], bytes(999))),
        ("unknown ggml type 9", gguf_bytes([gguf_info("a", (256,), 9, 0)], bytes(999))),
        ("whole Q4_0 blocks", gguf_bytes([gguf_info("a", (33, 32), 2, 0)], bytes(9999))),
        ("whole Q4_0 blocks", gguf_bytes([gguf_info("a", (), 2, 0)], bytes(99))),
        ("not aligned", gguf_bytes([gguf_info("a", (1,), 0, 4)], bytes(99))),
        ("overlaps", gguf_bytes([gguf_info("a", (9,), 0, 0), gguf_info("b", (9,), 0, 32)], bytes(99))),
        ("name twice", gguf_bytes([gguf_info("a", (1,), 0, 0), gguf_info("a", (1,), 0, 32)], bytes(99))),
        ("not utf-8", gguf_bytes([struct.pack("<Q", 1) + b"\xff"])),
    ],
)
def test_gguf_refuses(wanted: str, content: bytes) -> None:
    assert wanted in refused(gguf.read_table, content)


# --- numpy

NUMPY_DTYPES = {
    "?": "BOOL", "i1": "I8", "u1": "U8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32", "<i8": "I64",
    "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64", "<c16": "C128",
}  # fmt: skip


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


def same_array(content: bytes, span: TensorSpan, wanted: np.ndarray[Any, Any]) -> bool:
    raw = content[span.start : span.start + span.length]
    flat = np.frombuffer(raw, wanted.dtype)
    if span.stride is None:
        return bool(span.shape == wanted.shape and flat.tobytes() == wanted.tobytes())
    strides = tuple(step * wanted.itemsize for step in span.stride)
    return bool(np.lib.stride_tricks.as_strided(flat, span.shape, strides).tobytes() == wanted.tobytes())


@pytest.mark.parametrize("numpy_dtype", NUMPY_DTYPES)
def test_npy_of_every_dtype_and_order(numpy_dtype: str) -> None:
    ramp = np.arange(24).astype(numpy_dtype)
    arrays = (ramp, ramp.reshape(2, 3, 4), np.asfortranarray(ramp.reshape(2, 3, 4)), ramp[0], ramp[:0].reshape(0, 5))
    for array in arrays:
        content = npy_bytes(np.asarray(array))
        span = read(numpy_file.read_table, content)["array"]
        assert span.dtype == NUMPY_DTYPES[numpy_dtype]
        assert same_array(content, span, np.asarray(array))
    assert read(numpy_file.read_table, npy_bytes(np.asfortranarray(ramp.reshape(4, 6))))["array"].stride == (1, 4)
    assert read(numpy_file.read_table, npy_bytes(ramp.reshape(4, 6)[:, :1].copy("F")))["array"].stride is None


def test_npy_without_a_plain_tensor_gives_no_span() -> None:
    for dtype in (">f4", "S3", "U3", "V2", "M8[s]", "m8[ns]", [("a", "<i4"), ("b", "<f4")], "<f16"):
        array: np.ndarray[Any, Any] = np.zeros(3, dtype)
        assert read(numpy_file.read_table, npy_bytes(array)) == {}


def test_npy_versions_and_trailing_arrays() -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }"
    for version, encoding in ((1, "latin-1"), (2, "latin-1"), (3, "utf-8")):
        content = npy_header(header, 24, version=version, encoding=encoding)
        assert read(numpy_file.read_table, content)["array"].shape == (2, 3)
    two = npy_bytes(np.ones(3)) + npy_bytes(np.ones(4))
    assert read(numpy_file.read_table, two)["array"].shape == (3,)


def test_npy_of_objects_is_refused_unread(tmp_path: Path) -> None:
    array = np.array([Marker(tmp_path / "ran")], object)
    for content in (npy_bytes(array), npz_bytes(np.savez, {"fine": np.ones(2), "bad": array})):
        message = refused(numpy_file.read_table, content)
        assert "holds python objects, which only pickle can read" in message
    structured = np.zeros(1, [("a", "<i4"), ("b", [("c", "O")])])
    assert "python objects" in refused(numpy_file.read_table, npy_bytes(structured))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", b"\x93NUMPX\x01\x00" + bytes(64),
        npy_header("{}"),
        npy_header("[]"),
        npy_header("{'descr': '<f4', 'fortran_order': False}"),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': [1]}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 16)}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': " + str((1,) * 65) + "}", 4),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 6000 + ",)}", 4),
        npy_header("__import__('os').getpid()"),
        npy_header("{[]: 1}"),
        npy_header("-" * 9000 + "1"),
        npy_header("(" * 9000),
        npy_header("[" * 150 + "1" + "]" * 150),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': ()}" + " " * 20_000, 4, version=2),
        npy_header("{}", version=4),
        npy_header("\xff{}", version=3),
    ],
)  # fmt: skip
def test_npy_refuses(content: bytes) -> None:
    refused(numpy_file.read_table, content)


def test_npy_cut_short_anywhere_is_refused() -> None:
    content = npy_bytes(np.arange(4, dtype="<u2"))
    for length in range(len(content)):
        refused(numpy_file.read_table, content[:length])


def test_npz_stored_members_are_spans_and_compressed_ones_are_not() -> None:
    arrays = {
        "w": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "dir/ü": np.ones(3, "<f2"),
    }
    content = npz_bytes(np.savez, arrays)
    table = read(numpy_file.read_table, content)
    assert table.keys() == arrays.keys()
    assert all(same_array(content, table[name], arrays[name]) for name in arrays)
    assert read(numpy_file.read_table, npz_bytes(np.savez_compressed, arrays)) == {}
    assert read(numpy_file.read_table, npz_bytes(np.savez, {})) == {}
    refused(numpy_file.read_table, content[:-1])
    refused(numpy_file.read_table, content + b"\0")


# --- zip


def test_zip64_archive_over_four_gigabytes() -> None:
    array = npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (5368709120,), }")
    length = len(array) + (5 << 30)
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 5, 20)
    local += b"a.npy" + struct.pack("<HHQQ", 1, 16, length, length) + array
    second = len(local) + (5 << 30)
    scalar = npy_bytes(np.array(7, "u1"))
    tail = (
        struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(scalar), len(scalar), 5, 0) + b"b.npy" + scalar
    )
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, 0, told, told, 5, len(extra), 0, 0, 0, 0, start)
        + name + extra
        for name, told, start, extra in (
            (b"a.npy", 0xFFFFFFFF, 0, struct.pack("<HH2xHHQQ", 0x9999, 2, 1, 16, length, length)),
            (b"b.npy", len(scalar), 0xFFFFFFFF, struct.pack("<HHQ", 1, 8, second)),
        )
    )  # fmt: skip
    place = second + len(tail)
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(directory), place)
    end += struct.pack("<4sIQI", b"PK\x06\x07", 0, place + len(directory), 1)
    end += struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), 0xFFFFFFFF, 0)
    large, small = numpy_file.read_table(HollowSource(local, 5 << 30, tail + directory + end))
    assert (large.name, large.start, large.length) == ("a", len(local), 5 << 30)
    assert (small.name, small.start, small.length) == ("b", place - 1, 1)


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_zip_members_of_any_kind_are_located() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("stored", b"x" * 10)
        archive.writestr("packed", b"x" * 1000, zipfile.ZIP_DEFLATED)
        archive.mkdir("folder")
        archive.comment = b"PK\x05\x06 in a comment is no end record" + bytes(30)
    content = file.getvalue()
    stored, packed, folder = zip_members.read_members(BytesSource(content[: -len(archive.comment) - 2] + b"\0\0"))
    assert content[stored.start : stored.start + stored.length] == b"x" * 10
    assert (stored.stored, packed.stored, folder.name, folder.length) == (True, False, "folder/", 0)


def test_zip_refuses_contradictions() -> None:
    content = zip_bytes({"a": b"12345", "b": b"12345"})
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 1)
    end = content.index(b"PK\x05\x06")

    def patched(place: int, value: bytes) -> bytes:
        return content[:place] + value + content[place + len(value) :]

    for broken, wanted in (
        (patched(30, b"c"), "differs from what the directory says"),
        (patched(8, b"\x08"), "differs from what the directory says"),
        (patched(second + 46, b"a"), "differs from what the directory says"),
        (patched(second + 42, bytes(4)), "overlap"),
        (patched(directory + 20, struct.pack("<II", 40, 40)), "overlap"),
        (patched(second + 20, struct.pack("<II", 99, 99)), "outside the file"),
        (patched(directory + 24, bytes(4)), "two sizes differ"),
        (patched(directory + 42, b"\xff\xff\xff\x7f"), "outside the file"),
        (patched(directory + 42, b"\xff\xff\xff\xff"), "lacks the zip64 field"),
        (patched(end + 4, b"\1"), "several disks"),
        (patched(end + 10, b"\3"), "several disks"),
        (patched(end + 8, b"\3\0\3"), "shorter than its count"),
        (patched(end + 8, b"\1\0\1"), "longer than its count"),
        (patched(end + 16, bytes(4)), "zip directory ends at"),
        (patched(end + 20, b"\1"), "does not end the file"),
        (b"stub" + content, "zip directory ends at"),
        (b"", "missing"),
    ):
        assert wanted in refused(zip_members.read_members, broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", b"1")
            archive.writestr("a", b"2")
    assert "listed twice" in refused(zip_members.read_members, file.getvalue())


# --- torch


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


def storage_pickle(offset: object = 0, shape: object = (2,), stride: object = (1,), count: object = 4) -> bytes:
    """Return the pickle of {"t": float tensor over storage 0}, its numbers as given."""

    class Build:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Persistent(), offset, shape, stride, False, OrderedDict())

    class Persistent:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(obj, Persistent) else None

    file = io.BytesIO()
    Pickler(file, 2).dump({"t": Build()})
    return file.getvalue()


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_torch_of_every_dtype(name: str) -> None:
    tensors = {"a": random_tensor(TORCH_ONLY[name], 3, 4), "empty": torch.empty(0, 2, dtype=TORCH_ONLY[name])}
    content = torch_bytes(tensors)
    table = read(torch_file.read_table, content)
    assert table["a"].dtype == name
    assert all(same_tensor(content, table[key], tensors[key]) for key in tensors)


def test_torch_views_and_nesting() -> None:
    base = torch.randn(4, 6)
    value = {
        "model": OrderedDict({"w": base, "tied": base, "t": base.t(), "rows": base[1:3], "columns": base[:, 2:4]}),
        "list": [torch.tensor(1.0), ("text", torch.nn.Parameter(torch.ones(2))), None, {3: torch.ones(1)}],
        "expanded": torch.ones(1).expand(3, 4),
        "single": torch.ones(5, 3)[:1].as_strided((1, 3), (99, 1)),
        "ignored": [1.5, b"bytes", {1, 2}, 1 + 2j, torch.float32, torch.Size([1]), torch.device("cpu"), Counter("ab")],
        None: torch.zeros(1), True: torch.ones(1),
    }  # fmt: skip
    content = torch_bytes(value)
    table = read(torch_file.read_table, content)
    model: Any = value["model"]
    wanted = {f"model.{key}": tensor for key, tensor in model.items()} | {
        "list.0": torch.tensor(1.0), "list.1.1": torch.ones(2), "list.3.3": torch.ones(1),
        "expanded": torch.ones(3, 4), "single": torch.ones(1, 3), "None": torch.zeros(1), "True": torch.ones(1),
    }  # fmt: skip
    assert table.keys() == wanted.keys()
    assert all(same_tensor(content, table[name], wanted[name]) for name in wanted)
    assert table["model.w"].start == table["model.tied"].start == table["model.t"].start
    assert table["model.w"].stride is table["model.rows"].stride is table["single"].stride is None
    assert (table["model.t"].stride, table["model.columns"].stride) == ((1, 6), (6, 1))
    assert (table["expanded"].length, table["model.columns"].length) == (4, 80)


def test_torch_model_and_optimizer() -> None:
    linear, norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)
    model = torch.nn.Sequential(linear, norm)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    content = torch_bytes({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    table = read(torch_file.read_table, content)
    assert same_tensor(content, table["model.0.weight"], linear.weight)
    assert same_tensor(content, table["model.1.running_var"], norm.state_dict()["running_var"])
    state = optimizer.state_dict()["state"]
    assert all(same_tensor(content, table[f"optimizer.state.{n}.exp_avg"], state[n]["exp_avg"]) for n in state)


def test_torch_bare_tensor_subclass_and_attributes() -> None:
    assert read(torch_file.read_table, torch_bytes(torch.ones(2)))["tensor"].shape == (2,)
    marked = torch.nn.Parameter(torch.ones(3))
    marked.note = "kept"  # type: ignore[attr-defined]
    tensor = torch.ones(4)
    tensor.note = torch.ones(9)  # type: ignore[attr-defined]
    content = torch_bytes({"p": marked, "t": tensor, "b": torch.nn.Buffer(torch.ones(2))})
    assert {name: span.shape for name, span in read(torch_file.read_table, content).items()} == {
        "p": (3,), "t": (4,), "b": (2,)
    }  # fmt: skip


def test_torch_tensors_whose_bytes_are_not_their_values_give_no_span() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = {
            "conjugate": torch.zeros(2, dtype=torch.complex64).conj(),
            "negative": torch.zeros(2, dtype=torch.complex64).conj().imag,
            "sparse": torch.eye(2).to_sparse(),
            "rows": torch.eye(2).to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "half complex": torch.zeros(2, dtype=torch.complex32),
            "meta": torch.empty(3, device="meta"),
            "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        }
        content = torch_bytes({**value, "plain": torch.ones(1)})
    assert read(torch_file.read_table, content).keys() == {"plain"}


def test_torch_packed_four_bit_floats_double_their_last_extent() -> None:
    packed = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).view(2, 3)
    content = torch_bytes({"a": packed})
    span = read(torch_file.read_table, content)["a"]
    assert (span.dtype, span.shape, span.length) == ("F4", (2, 6), 6)
    assert content[span.start : span.start + 6] == bytes(range(6))


def test_torch_reads_no_tensor_bytes() -> None:
    source = BytesSource(torch_bytes({"a": torch.zeros(1 << 20)}))
    assert len(torch_file.read_table(source)) == 1
    assert source.read_bytes < 70_000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_of_every_pickle_protocol(protocol: int) -> None:
    content = torch_bytes({"a": torch.ones(3), "b": {"c": [torch.ones(1)]}, "s": {1}}, pickle_protocol=protocol)
    assert read(torch_file.read_table, content).keys() == {"a", "b.c.0"}


def test_torch_allow_list_is_that_of_torch() -> None:
    if not torch.__version__.startswith("2.13."):
        pytest.skip("the list is that of torch 2.13")
    from torch._weights_only_unpickler import _get_allowed_globals

    assert set(_get_allowed_globals()) == torch_values.ALLOWED


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_torch_runs_no_code(protocol: int, tmp_path: Path) -> None:
    marker = Marker(tmp_path / "ran")
    for value in (marker, {"a": torch.ones(1), "b": [marker]}, OrderedDict(a=marker)):
        if protocol >= 2:
            message = refused(torch_file.read_table, torch_bytes(value, pickle_protocol=protocol))
            assert "refers to posix.mkdir, which weights-only loading does not allow" in message
    pickled = pickle.dumps({"b": marker}, protocol)
    refused(torch_file.read_table, checkpoint(pickled))
    if protocol >= 2:
        assert "legacy torch.save format" in refused(torch_file.read_table, pickled)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists()  # the marker does fire where a pickle is run


def test_torch_legacy_and_foreign_files() -> None:
    legacy = torch_bytes({"a": torch.ones(1)}, _use_new_zipfile_serialization=False)
    assert "re-save with torch >= 1.6" in refused(torch_file.read_table, legacy)
    for content in (b"", b"PK", b"raw bytes", zip_bytes({}), zip_bytes({"a": b""}), zip_bytes({"a/b/data.pkl": b""})):
        refused(torch_file.read_table, content)
    assert "refers to" in refused(torch_file.read_table, torch_bytes(torch.nn.Linear(1, 1)))
    empty = pickle.dumps({}, 2)
    assert "2 data.pkl" in refused(torch_file.read_table, zip_bytes({"a/data.pkl": empty, "b/data.pkl": empty}))
    assert "little-endian" in refused(torch_file.read_table, checkpoint(empty, byteorder=b"big"))
    assert "little-endian" in refused(torch_file.read_table, checkpoint(empty, byteorder=b""))
    torchscript = zip_bytes({"x/data.pkl": empty, "x/constants.pkl": empty})
    assert "torchscript" in refused(torch_file.read_table, torchscript)
    packed = zip_bytes({"x/data.pkl": empty}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(torch_file.read_table, packed)
    assert read(torch_file.read_table, checkpoint(empty)) == {}
    assert read(torch_file.read_table, zip_bytes({"x/data.pkl": storage_pickle(), "x/data/0": bytes(16)})).keys() == {
        "t"
    }


@pytest.mark.parametrize(
    ("numbers", "records", "wanted"),
    [
        ({"offset": 3}, (16,), "reaches to byte 20"),
        ({"stride": (4,)}, (16,), "reaches to byte 20"),
        ({"shape": (1 << 62, 1 << 62), "stride": (1 << 62, 1 << 62)}, (16,), "reaches to byte"),
        ({"shape": (1 << 63,)}, (16,), "not a whole number"),
        ({"shape": (-1,)}, (16,), "not a whole number"),
        ({"shape": (True,)}, (16,), "not a whole number"),
        ({"stride": (-1,)}, (16,), "not a whole number"),
        ({"offset": -1}, (16,), "not a whole number"),
        ({"offset": 1.0}, (16,), "not a whole number"),
        ({"stride": (1, 1)}, (16,), "1 extents and 2 strides"),
        ({"shape": (1,) * 65, "stride": (1,) * 65}, (16,), "at most 64"),
        ({"shape": [2]}, (16,), "not a tuple"),
        ({"count": 5}, (16,), "its record has 16"),
        ({"count": 1 << 64}, (16,), "not a whole number"),
        ({"count": 1}, (16,), "storage of 4"),
        ({}, (), "storage that the archive lacks"),
    ],
)
def test_torch_refuses_tensors_outside_their_storage(numbers: Any, records: tuple[int, ...], wanted: str) -> None:
    assert wanted in refused(torch_file.read_table, checkpoint(storage_pickle(**numbers), *records))
    assert read(torch_file.read_table, checkpoint(storage_pickle(), 16))["t"].shape == (2,)


@pytest.mark.parametrize(
    "pickled",
    [
        b"", b".", b"\x80\x02", b"\x80\x02.", b"\x80\x02}q\x00", b"\x80\x02h\x05.", b"\x80\x02t.", b"\x80\x02\x86.",
        b"\x80\x02X\xff\xff\xff\xffabc.", b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02}Nu.", b"\x80\x02}(Nu.", b"\x80\x02N(Ne.", b"\x80\x02]NNs.",
        b"\x80\x02K\x01)R.", b"\x80\x02ctorch\nSize\nNR.", b"\x80\x02NQ.", b"\x80\x02(NNNNNtQ.", b"\x80\x02K\x00Q.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtR.",
        b"\x80\x04\x8c\x02os]\x93.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02cos\nsystem\n.", b"\x80\x02ctorch\nload\n.", b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02c__builtin__\neval\n.", b"\x80\x02ctorch Size\nx\n.", b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.", b"\x80\x02\x82\x01.",
        b"\x80\x02(cos\nsystem\nS'x'\no.", b"\x80\x04\x8c\x01a\x92.", b"\x80\x02N2.", b"\x80\x020.",
    ],
)  # fmt: skip
def test_torch_refuses_malformed_pickles(pickled: bytes) -> None:
    refused(torch_file.read_table, checkpoint(pickled))


def test_torch_bombs_are_refused_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    shared: Any = [torch.ones(1)]
    for _ in range(60):
        shared = (shared, shared)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    dicts = b"\x80\x02" + b"}N" * 100_000 + b"}" + b"s" * 100_000 + b"."
    monkeypatch.setattr(torch_file, "OPCODES_MAX_COUNT", 20_000)
    assert "shares values" in refused(torch_file.read_table, torch_bytes(cycle))
    assert "shares values" in refused(torch_file.read_table, torch_bytes(shared))
    assert "nests" in refused(torch_file.read_table, checkpoint(deep))
    assert "nests" in refused(torch_file.read_table, checkpoint(dicts))
    slow_to_hash = b"\x80\x02})" + b"2\x86" * 60 + b"Ns."
    assert "pickle uses dup" in refused(torch_file.read_table, checkpoint(slow_to_hash))
    slow_to_hash = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns."
    assert read(torch_file.read_table, checkpoint(slow_to_hash)) == {}
    assert read(torch_file.read_table, torch_bytes({(1, 2): torch.ones(1), "a": torch.ones(1)})).keys() == {"a"}


def test_torch_storage_must_be_told_alike() -> None:
    whole = b"\x80\x02]q\x00(" + b"".join(
        b"(X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x000NK%ctQ" % told
        for told in ((b"Float", 4), (b"Half", 8))
    )
    assert "two dtypes or sizes" in refused(torch_file.read_table, checkpoint(whole + b"e.", 16))
    empty = torch.empty(0)
    content = torch_bytes({"a": empty, "b": empty.view(torch.int32)})
    assert {span.dtype for span in read(torch_file.read_table, content).values()} == {"F32", "I32"}


def test_torch_names_must_be_distinct_and_valid() -> None:
    twins = torch_bytes({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})
    assert "both named 'a.b'" in refused(torch_file.read_table, twins)
    assert "both named '1'" in refused(torch_file.read_table, torch_bytes({1: torch.ones(1), "1": torch.ones(1)}))
    assert "longer than 4096" in refused(torch_file.read_table, torch_bytes({"x" * 4097: torch.ones(1)}))
    assert "unicode" in refused(torch_file.read_table, torch_bytes({"\ud800": torch.ones(1)}))
    assert "refers to \\xe9" in refused(torch_file.read_table, checkpoint(b"\x80\x04\x8c\x02\xc3\xa9\x8c\x01x\x93."))


# --- sniff


def test_sniff_chooses_by_name_and_first_bytes() -> None:
    checkpoint_bytes, array = torch_bytes({"a": torch.ones(1)}), npy_bytes(np.ones(2))
    tensors, model = (safetensors.numpy.save({"a": np.ones(2)}), gguf_bytes([gguf_info("a", (1,), 0, 0)], bytes(4)))
    archive = npz_bytes(np.savez, {"a": np.ones(2)})
    cases: list[tuple[str, bytes, str, int]] = [
        ("model.safetensors", tensors, "safetensors", 1),
        ("MODEL.SafeTensors", tensors, "safetensors", 1),
        ("model.safetensors.index.json", b"{}", "bytes", 0),
        ("a.gguf", model, "gguf", 1),
        ("a.bin", model, "gguf", 1),
        ("model", model, "gguf", 1),
        ("notes.txt", b"GGUF is a format", "bytes", 0),
        ("a.npy", array, "npy", 1),
        ("a.npz", archive, "npz", 1),
        ("a.npz", npz_bytes(np.savez_compressed, {"a": np.ones(2)}), "npz", 0),
        ("a.npz", zip_bytes({}), "npz", 0),
        *((f"a{ending}", checkpoint_bytes, "torch", 1) for ending in (".pt", ".pth", ".bin", ".ckpt", ".PT")),
        ("a.zip", checkpoint_bytes, "bytes", 0),
        ("a.pkl", checkpoint_bytes, "bytes", 0),
        ("a.pkl", model, "bytes", 0),
        ("a.pickle", pickle.dumps(Marker(Path("/nowhere"))), "bytes", 0),
        ("a.bin", b"\x00\x01raw", "bytes", 0),
        ("a.bin", b"", "bytes", 0),
        ("a.pt", zip_bytes({"code/x.py": b""}), "bytes", 0),
        ("config.json", b"{}", "bytes", 0),
        ("", b"", "bytes", 0),
    ]
    for name, content, kind, count in cases:
        found, spans = sniff.read_table(name, BytesSource(content))
        assert (name, found, len(spans)) == (name, kind, count)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.safetensors", b""), ("a.gguf", b"{}"), ("a.npy", b""), ("a.npz", b"x"), ("a.bin", pickle.dumps({}, 2)),
        ("a.pt", pickle.dumps({}, 5)), ("a.pt", torch_bytes({"a": torch.ones(1)})[:-1]), ("m", b"GGUF\3\0\0\0"),
    ],
)  # fmt: skip
def test_sniff_refuses_broken_files_of_a_known_kind(name: str, content: bytes) -> None:
    refused(lambda source: sniff.read_table(name, source)[1], content)


# --- fuzz

SAMPLES: dict[str, bytes] = {
    "a.gguf": gguf_bytes(
        [gguf_info("a", (2, 3), 0, 0), gguf_info("b", (32,), 8, 64)], bytes(128), pairs=GGUF_PAIRS, alignment=64
    ),
    "a.npy": npy_bytes(np.asfortranarray(np.ones((2, 3), "<f4"))),
    "a.npz": npz_bytes(np.savez, {"a": np.ones(2), "b": np.ones((2, 2), ">i4")}),
    "b.npz": npz_bytes(np.savez_compressed, {"a": np.ones(2)}),
    "a.pt": torch_bytes({"a": torch.ones(2, 3), "b": [torch.ones(2, 3).t(), torch.nn.Parameter(torch.ones(1))]}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_fuzz_of_bytes_gives_a_table_or_a_refusal(name: str) -> None:
    @FUZZ
    @given(edits())
    def check(changes: Any) -> None:
        content = edit(SAMPLES[name], changes)
        try:
            _, spans = sniff.read_table(name, BytesSource(content))
        except FormatError:
            return
        check_spans(spans, len(content))

    check()


@pytest.mark.parametrize("name", SAMPLES)
def test_files_cut_short_anywhere(name: str) -> None:
    content = SAMPLES[name]
    for length in range(0, len(content), 1 + len(content) // 400):
        try:
            _, spans = sniff.read_table(name, BytesSource(content[:length]))
        except FormatError:
            continue
        assert spans == () or name == "a.gguf"  # a raw .pt of under four bytes is plain bytes


PICKLE_PARTS = st.lists(
    st.sampled_from(
        [b"\x80\x02", b"}", b"]", b")", b"(", b"t", b"\x85", b"\x86", b"\x87", b"u", b"s", b"a", b"e", b"N", b"R",
         b"Q", b"b", b"\x81", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"K\x02", b"\x88", b"X\x01\x00\x00\x00a",
         b"\x93", b"\x94", b"X\x07\x00\x00\x00storage", b"ctorch\nFloatStorage\n",
         b"ctorch._utils\n_rebuild_tensor_v2\n",
         b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
         b"(X\x07\x00\x00\x00storageq\x02ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ", b"K\x00",
         b"K\x02\x85", b"K\x01\x85", b"cos\nsystem\n", b"\x8f", b"\x90", b"G" + bytes(8)]
    ),
    max_size=40,
)  # fmt: skip


@FUZZ
@given(PICKLE_PARTS)
def test_fuzz_of_opcodes_gives_a_table_or_a_refusal(parts: list[bytes]) -> None:
    content = checkpoint(b"".join(parts) + b".", 16)
    try:
        spans = torch_file.read_table(BytesSource(content))
    except FormatError:
        return
    check_spans(spans, len(content))
