"""GGUF: tensors lie where the file says, and what breaks the format is refused."""

import struct

import pytest
import torch

from arstore.formats.readers import gguf
from tests.support.readers import (
    GGUF_PAIRS,
    gguf_bytes,
    gguf_info,
    gguf_pair,
    gguf_text,
    random_tensor,
    read,
    refused,
    same_tensor,
)

GGML = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "IQ4_NL": 20, "I8": 24, "I16": 25,
    "I32": 26, "I64": 27, "F64": 28, "BF16": 30, "TQ1_0": 34, "MXFP4": 39,
}  # fmt: skip


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
