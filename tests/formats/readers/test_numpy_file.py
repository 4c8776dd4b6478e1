"""NumPy files: .npy and .npz give spans, and objects are refused unread."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arstore.formats.readers import numpy_file
from arstore.formats.tensor import TensorSpan
from tests.support.readers import Marker, npy_bytes, npy_header, npz_bytes, read, refused

NUMPY_DTYPES = {
    "?": "BOOL", "i1": "I8", "u1": "U8", "<i2": "I16", "<u2": "U16", "<i4": "I32", "<u4": "U32", "<i8": "I64",
    "<u8": "U64", "<f2": "F16", "<f4": "F32", "<f8": "F64", "<c8": "C64", "<c16": "C128",
}  # fmt: skip


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
