"""Artifact: its tensors are those of the libraries that wrote its files, in a buffer of the caller or a new one."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import BadInput, NotFound, Store
from tests.support.checkpoints import SEED, assert_equal_tensors, gguf_bytes, gguf_file, noise, raw, store

__all__ = ["store"]  # fixtures


def every_dtype() -> dict[str, torch.dtype]:
    names = {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
        "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
        "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
    }  # fmt: skip
    return {name: getattr(torch, text) for name, text in names.items() if hasattr(torch, text)}


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return a tensor of random bits: of floats, many are NaNs of one payload or another."""
    count = int(np.prod(shape)) * dtype.itemsize
    if not count:
        return torch.empty(shape, dtype=dtype)
    noise_bytes = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, count, dtype=np.uint8)
    return torch.from_numpy(noise_bytes).view(dtype).reshape(shape)


@pytest.mark.parametrize("name", every_dtype())
def test_tensors_are_those_of_the_safetensors_library(store: Store, tmp_path: Path, name: str) -> None:
    dtype = every_dtype()[name]
    shapes = {"matrix": (7, 6), "vector": (1001,), "scalar": (), "empty": (0,), "hollow": (3, 0, 2), "one": (1, 1, 1)}
    source = {key: random_bits(dtype, shape, seed=n) for n, (key, shape) in enumerate(shapes.items())}
    if name == "F4":  # torch counts pairs: a scalar is one, which safetensors has no shape for
        del source["scalar"]
    safetensors.torch.save_file(source, tmp_path / "model.safetensors")
    store.put(tmp_path / "model.safetensors", name="m")
    wanted = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert_equal_tensors(store.get("m").tensors(), wanted)


def test_a_type_that_torch_lacks_comes_as_raw_bytes(store: Store, tmp_path: Path) -> None:
    packed = json.dumps({"six": {"dtype": "F6_E2M3", "shape": [8, 2], "data_offsets": [0, 12]}}).encode()
    content = np.random.default_rng(SEED).bytes(12)
    (tmp_path / "six.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed + content)
    store.put(tmp_path / "six.safetensors", name="six")
    assert raw(store.get("six").tensors()["six"]) == content


def test_one_buffer_serves_one_artifact_after_the_other(store: Store) -> None:
    first = {"a": noise(300, 300, seed=1), "b": torch.arange(7)}
    second = {"a": noise(300, 300, seed=2), "c": torch.arange(5, dtype=torch.float64)}
    store.put(tensors=first, name="first")
    store.put(tensors=second, name="second")
    needed = max(store.get(name).tensor_bytes for name in ("first", "second"))
    buffer = bytearray(needed)
    for name, wanted in (("first", first), ("second", second), ("first", first)):
        got = store.get(name).tensors(into=buffer)
        assert_equal_tensors(got, wanted)
        assert raw(got["a"]) in bytes(buffer)  # the tensors lie in the buffer, not in a copy of it
        del got


def test_a_subset_needs_a_smaller_buffer_and_reads_less(store: Store) -> None:
    weights = {f"t{n}": noise(256, 256, seed=n) for n in range(8)}
    store.put(tensors=weights, name="w")
    whole = store.get("w")
    whole.tensors()
    part = store.get("w")
    assert_equal_tensors(part.tensors(["t5", "t2"]), {"t5": weights["t5"], "t2": weights["t2"]})
    assert part.bytes_read < 0.3 * whole.bytes_read
    small = bytearray(2 * 256 * 256 * 2)
    assert_equal_tensors(part.tensors(["t7", "t0"], into=small), {"t7": weights["t7"], "t0": weights["t0"]})
    assert store.get("w").tensors([]) == {}


@pytest.mark.parametrize("into", [bytearray(100), bytearray(), bytes(1 << 20)], ids=["small", "none", "read-only"])
def test_a_buffer_that_can_not_hold_the_artifact_is_refused(store: Store, into: bytearray) -> None:
    store.put(tensors={"a": torch.ones(100)}, name="a")
    with pytest.raises(BadInput):
        store.get("a").tensors(into=into)


def test_a_missing_tensor_is_named(store: Store) -> None:
    store.put(tensors={"a": torch.ones(2)}, name="a")
    with pytest.raises(NotFound, match=r"no\.such"):
        store.get("a").tensors(["a", "no.such"])


def test_strided_tensors_of_a_torch_file_keep_their_strides(store: Store, tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    source = {
        "transposed": base.t(), "skipping": base[::2, 1::3], "offset": base[2:4], "expanded": base[0].expand(4, 10),
        "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), "plain": torch.arange(5),
    }  # fmt: skip
    torch.save(source, tmp_path / "strided.pt")
    store.put(tmp_path / "strided.pt", name="s")
    got = store.get("s").tensors()
    assert_equal_tensors(got, torch.load(tmp_path / "strided.pt", weights_only=True))
    assert {name: tensor.stride() for name, tensor in got.items()} == {
        name: tensor.stride() for name, tensor in source.items()
    }


def test_column_major_numpy_arrays_keep_their_values(store: Store, tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4))
    np.save(tmp_path / "f.npy", array)
    store.put(tmp_path / "f.npy", name="f")
    assert np.array_equal(store.get("f").tensors()["array"].numpy(), array)


def test_tied_tensors_share_memory(store: Store, tmp_path: Path) -> None:
    weight = noise(64, 64)
    torch.save({"embed": weight, "head": weight, "other": noise(64, 64, seed=1)}, tmp_path / "tied.pt")
    store.put(tmp_path / "tied.pt", name="tied")
    got = store.get("tied").tensors()
    assert got["embed"].data_ptr() == got["head"].data_ptr() != got["other"].data_ptr()
    got["embed"][0, 0] = 7
    assert got["head"][0, 0] == 7
    assert_equal_tensors({"other": got["other"]}, {"other": noise(64, 64, seed=1)})


def test_equal_names_in_two_files_are_told_apart(store: Store, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for n in (1, 2):
        safetensors.torch.save_file(
            {"w": torch.full((3,), n), f"only{n}": torch.ones(1)}, tmp_path / f"two/{n}.safetensors"
        )
    store.put(tmp_path / "two", name="two")
    got = store.get("two").tensors()
    assert set(got) == {"1.safetensors:w", "2.safetensors:w", "only1", "only2"}
    assert got["2.safetensors:w"].tolist() == [2, 2, 2]


def test_tensors_of_a_gguf_file(store: Store, tmp_path: Path) -> None:
    content = gguf_bytes()
    store.put(gguf_file(tmp_path), name="g")
    got = store.get("g").tensors()
    assert got["token_embd.weight"].dtype == torch.float32
    assert got["token_embd.weight"].shape == (5, 8)
    assert raw(got["token_embd.weight"]) == content[-228:-68]
    assert raw(got["blk.0.ffn.weight"]) == content[-68:]  # quantised: its blocks as they are
