"""Safetensors: read as the library reads it, and refused wherever the library refuses."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.readers import safetensors as safetensors_file
from arstore.formats.tensor import DTYPE_BITS, dense_bytes
from tests.support.readers import FUZZ, TORCH_DTYPES, edit, edits, line, random_tensor, read, refused, same_tensor


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
