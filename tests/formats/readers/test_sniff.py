"""Sniff: the reader is chosen by name and first bytes, and no bytes break one."""

import pickle
from pathlib import Path
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
from arstore.formats.readers import sniff, torch_file
from tests.support.readers import (
    FUZZ,
    GGUF_PAIRS,
    BytesSource,
    Marker,
    check_spans,
    checkpoint,
    edit,
    edits,
    gguf_bytes,
    gguf_info,
    npy_bytes,
    npz_bytes,
    refused,
    torch_bytes,
    zip_bytes,
)


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
