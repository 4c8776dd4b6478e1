"""Put and get: what a user has on disk goes in, is stored once, and comes back byte for byte.

Every checkpoint here is made by the library that real ones are made with; only GGUF, whose library is no dependency,
is written by hand.
"""

import io
import json
import os
import pickle
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arstore import BadInput, Corrupt, NotFound, Store, create_store, open_store
from arstore.cli.main import run

Tensors: TypeAlias = dict[str, torch.Tensor]
# The names of one directory, and what is under each: bytes and a mode of a file, or another directory.
Tree: TypeAlias = dict[str, "tuple[bytes, int] | Tree"]

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def snapshot(path: Path) -> dict[str, tuple[int, bytes | None]]:
    """Return everything below a path (or the file itself) by relative name: its mode and, for a file, its bytes."""
    if not path.is_dir():
        return {"": (stat.S_IMODE(path.stat().st_mode), path.read_bytes())}
    found: dict[str, tuple[int, bytes | None]] = {}
    for inner in sorted(path.rglob("*")):
        state = inner.lstat()
        assert not stat.S_ISLNK(state.st_mode), f"{inner} is a link"
        content = None if inner.is_dir() else inner.read_bytes()
        found[inner.relative_to(path).as_posix()] = (stat.S_IMODE(state.st_mode), content)
    return found


def stored_counts(store: Store) -> tuple[int, int]:
    """Return how many versions and how many blobs the store holds."""
    found = store.stats()
    return found.artifacts, found.blobs


def raw(tensor: torch.Tensor) -> bytes:
    """Return the row-major bytes of a tensor, so that NaNs and negative zeros compare as what they are."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_equal_tensors(got: Tensors, wanted: Tensors) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert raw(got[name]) == raw(tensor), name


# ---- what goes in

SEED = 20


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal noise in bf16, as weights are: a standard deviation of 0.02."""
    generator = torch.Generator().manual_seed(SEED + seed)
    return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)


def layers(count: int = 4) -> Tensors:
    found = {f"model.layers.{n}.mlp.weight": noise(64, 96, seed=n) for n in range(count)}
    return {**found, "model.embed.weight": noise(100, 64, seed=90), "model.norm.weight": torch.ones(64)}


def sharded_directory(path: Path) -> Path:
    """Make a checkpoint directory as Hugging Face lays it out, with what else may lie in one."""
    path.mkdir()
    weights = layers()
    weight_map: dict[str, str] = {}
    for shard in range(2):
        name = f"model-{shard + 1:05d}-of-00002.safetensors"
        part = {key: weights[key] for key in list(weights)[shard::2]}
        safetensors.torch.save_file(part, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps({"architectures": ["TinyModel"], "hidden_size": 64}))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {f"word {n}": n for n in range(2000)}}}))
    (path / "original" / "empty").mkdir(parents=True)
    (path / "original" / "params.json").write_text("{}")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (path / "convert.sh").write_text("#!/bin/sh\n")
    (path / "convert.sh").chmod(0o755)
    (path / "config.json").chmod(0o440)
    (path / "original" / "empty").chmod(0o750)
    return path


def safetensors_file(path: Path) -> Path:
    safetensors.torch.save_file(layers(), path / "model.safetensors", metadata={"format": "pt"})
    return path / "model.safetensors"


def torch_pt(path: Path) -> Path:
    torch.save({"epoch": 3, "model": layers(), "optimizer": {"lr": 1e-4}}, path / "checkpoint.pt")
    return path / "checkpoint.pt"


def torch_bin(path: Path) -> Path:
    torch.save(layers(), path / "pytorch_model.bin")
    return path / "pytorch_model.bin"


def numpy_npy(path: Path) -> Path:
    np.save(path / "array.npy", np.arange(3000, dtype=np.float32).reshape(30, 100))
    return path / "array.npy"


def numpy_npz(path: Path) -> Path:
    np.savez(path / "arrays.npz", a=np.arange(100), b=np.ones((3, 4), np.float16))
    return path / "arrays.npz"


def numpy_compressed(path: Path) -> Path:
    np.savez_compressed(path / "arrays.npz", a=np.arange(100), b=np.ones((3, 4), np.float16))
    return path / "arrays.npz"


def gguf_file(path: Path) -> Path:
    (path / "model.gguf").write_bytes(gguf_bytes())
    return path / "model.gguf"


def random_file(path: Path) -> Path:
    (path / "a file").write_bytes(np.random.default_rng(SEED).bytes(5 * MIB + 3))
    return path / "a file"


def empty_file(path: Path) -> Path:
    (path / "nothing").touch(0o600)
    return path / "nothing"


def mixed_directory(path: Path) -> Path:
    top = path / "mixed"
    top.mkdir()
    for make in (safetensors_file, torch_bin, numpy_npy, numpy_npz, gguf_file, random_file, empty_file):
        (top / make.__name__).mkdir()
        make(top / make.__name__)
    return top


def empty_directory(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def directories_only(path: Path) -> Path:
    (path / "top" / "a" / "b").mkdir(parents=True)
    (path / "top" / "c").mkdir(mode=0o700)
    return path / "top"


def many_tensors(path: Path) -> Path:
    found = {f"t{n}": torch.full((n % 7,), n, dtype=torch.int32) for n in range(1500)}
    safetensors.torch.save_file(found, path / "many.safetensors")
    return path / "many.safetensors"


def in_a_new_directory(path: Path) -> Path:
    return sharded_directory(path / "checkpoint")


MAKERS = (
    safetensors_file, in_a_new_directory, torch_pt, torch_bin, numpy_npy, numpy_npz, numpy_compressed, gguf_file,
    random_file, empty_file, mixed_directory, empty_directory, directories_only, many_tensors,
)  # fmt: skip


def gguf_bytes() -> bytes:
    """Return a GGUF file of version 3: two metadata pairs, an F32 tensor, and a Q8_0 one of two blocks."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = struct.pack("<4sIQQ", b"GGUF", 3, 2, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("general.alignment") + struct.pack("<II", 4, 32)
    head += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 5, 0, 0)  # 160 bytes of F32
    head += text("blk.0.ffn.weight") + struct.pack("<IQIQ", 1, 64, 8, 160)  # 68 bytes of Q8_0
    data = np.random.default_rng(SEED).bytes(160 + 68)
    return head + bytes(-len(head) % 32) + data


# ---- out again, as it was


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_comes_back_byte_for_byte(store: Store, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    wanted = snapshot(source)

    put = store.put(source, name="a")
    assert put.bytes_in == sum(len(content) for _, content in wanted.values() if content is not None)
    artifact, written = store.get_to("a", tmp_path / "out")

    assert snapshot(tmp_path / "out") == wanted
    assert written.files == sum(content is not None for _, content in wanted.values())
    assert written.bytes_out == put.bytes_in == artifact.summary.plain_bytes


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_putting_it_again_stores_no_blob(store: Store, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    first = store.put(source, name="a")
    with open_store() as reopened:
        second = reopened.put(source, name="another")
    assert second.blobs_new == 0
    assert second.blobs_reused == len(store.get("a").manifest.blobs)
    assert second.bytes_stored <= 64 << 10  # the version record alone
    assert second.summary.id == first.summary.id


def test_a_large_tensor_is_split_at_rows(store: Store, tmp_path: Path) -> None:
    rows, row_bytes = 20_000, 1025 * 4
    big = torch.from_numpy(np.frombuffer(np.random.default_rng(1).bytes(rows * row_bytes), np.float32).copy())
    source = tmp_path / "big.safetensors"
    safetensors.torch.save_file({"big": big.reshape(rows, 1025), "small": torch.ones(3)}, source)
    store.put(source, name="big")

    lengths = sorted((blob.length for blob in store.get("big").manifest.blobs), reverse=True)[:2]
    assert sum(lengths) == rows * row_bytes
    assert lengths[0] <= 64 * MIB < lengths[0] + row_bytes  # as many whole rows as fit
    assert all(length % row_bytes == 0 for length in lengths)

    store.get_to("big", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert_equal_tensors(store.get("big").tensors(["big"]), {"big": big.reshape(rows, 1025)})


def test_links_of_a_hugging_face_cache_are_stored_as_files(store: Store, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--tiny"
    blobs, shot = cache / "blobs", cache / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    shot.mkdir(parents=True)
    safetensors.torch.save_file(layers(), blobs / "4f5e")
    (blobs / "c0de").write_text("{}")
    (shot / "model.safetensors").symlink_to("../../blobs/4f5e")
    (shot / "config.json").symlink_to("../../blobs/c0de")

    store.put(shot, name="tiny")
    assert_equal_tensors(store.get("tiny").tensors(), layers())
    store.get_to("tiny", tmp_path / "out")
    assert snapshot(tmp_path / "out") == {
        name: (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for name, path in (("config.json", blobs / "c0de"), ("model.safetensors", blobs / "4f5e"))
    }


# ---- stored once


def test_a_fine_tune_stores_only_what_changed(store: Store, tmp_path: Path) -> None:
    names = [f"model.layers.{n}.weight" for n in range(10)]
    base = {name: noise(512, 512, seed=n) for n, name in enumerate(names)}
    tuned = {**base, names[3]: noise(512, 512, seed=50), names[7]: noise(512, 512, seed=51)}
    shapes = {"base": (base, names, 2), "tuned": (tuned, names[::-1], 3)}
    for folder, (weights, order, shards) in shapes.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"hidden_size": 512}')
        for shard in range(shards):
            # Equal dtypes stay in the order they are given in, so the tuned shards hold theirs the other way round.
            part = {name: weights[name] for name in order[shard::shards]}
            header = {
                name: {"dtype": "BF16", "shape": [512, 512], "data_offsets": [n * MIB // 2, (n + 1) * MIB // 2]}
                for n, name in enumerate(part)
            }
            packed = json.dumps(header).encode()
            content = struct.pack("<Q", len(packed)) + packed + b"".join(map(raw, part.values()))
            (tmp_path / folder / f"model-{shard}.safetensors").write_bytes(content)

    first = store.put(tmp_path / "base", name="base")
    second = store.put(tmp_path / "tuned", name="tuned")
    assert first.blobs_new == 10 + 2 + 1  # tensors, headers of shards, config
    assert second.blobs_new == 2 + 3
    assert second.bytes_stored < 0.25 * first.bytes_stored
    assert_equal_tensors(store.get("tuned").tensors(), tuned)
    store.get_to("tuned", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "tuned")


def test_equal_tensors_of_one_file_are_stored_once(store: Store, tmp_path: Path) -> None:
    weight = noise(700, 700)
    copies = {name: weight.clone() for name in ("embed.weight", "lm_head.weight", "third")}
    safetensors.torch.save_file(copies, tmp_path / "tied.safetensors")
    put = store.put(tmp_path / "tied.safetensors", name="tied")
    assert put.blobs_new == 2  # header, weight
    assert put.bytes_stored < 0.4 * put.bytes_in
    assert_equal_tensors(store.get("tied").tensors(), copies)


def test_a_torch_file_shares_its_tensors_with_safetensors(store: Store, tmp_path: Path) -> None:
    weights = {f"layers.{n}.weight": noise(512, 512, seed=n) for n in range(4)}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    store.put(tmp_path / "model.safetensors", name="a")
    put = store.put(tmp_path / "pytorch_model.bin", name="b")
    assert put.blobs_reused == 4
    assert put.bytes_stored < 0.1 * put.bytes_in
    assert_equal_tensors(store.get("b").tensors(), weights)


# ---- tensors()


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
def test_a_buffer_that_can_not_hold_it_is_refused(store: Store, into: bytearray) -> None:
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


# ---- put(tensors=)


def test_tensors_in_memory_are_stored(store: Store, tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    source = {
        "plain": base, "transposed": base.t(), "skipping": base[::2, 1::3], "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4), "bf16": noise(5, 5), "flags": torch.tensor([True, False]),
        "trained": torch.ones(3, requires_grad=True), "expanded": base[0].expand(4, 10),
        "conjugated": torch.tensor([1 + 2j, 3 - 1j]).conj(), "fp8": torch.ones(4).to(torch.float8_e4m3fn),
    }  # fmt: skip
    put = store.put(tensors=source, name="t", kind="intermediate")
    assert put.summary.kind == "intermediate"
    wanted = {name: tensor.detach().resolve_conj() for name, tensor in source.items()}
    assert_equal_tensors(store.get("t").tensors(), wanted)
    store.get_to("t", tmp_path / "t.safetensors")
    assert_equal_tensors(safetensors.torch.load_file(tmp_path / "t.safetensors"), wanted)


UNSTORABLE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "complex128": lambda: torch.ones(2, dtype=torch.complex128),
    "without values": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has much to say of its rarer layouts
@pytest.mark.parametrize("kind", UNSTORABLE)
def test_tensors_that_have_no_plain_form_are_refused(store: Store, kind: str) -> None:
    with pytest.raises(BadInput):
        store.put(tensors={"good": torch.ones(2), "bad": UNSTORABLE[kind]()}, name="t")
    assert stored_counts(store) == (0, 0)


# ---- codecs


@pytest.mark.parametrize("codec", ["auto", "stored", "zstd", "plane"])
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_every_codec_gives_back_what_it_took(tmp_path: Path, codec: str, encrypted: bool) -> None:
    (tmp_path / "in").mkdir()
    source = mixed_directory(tmp_path / "in")
    large = {"noise": noise(2200, 2200), "zeros": torch.zeros(1500, 1500), "half": torch.rand(999, 33).half()}
    safetensors.torch.save_file(large, source / "large.safetensors")  # more than one frame, and not a whole one
    create_store(tmp_path / "other", encrypted=encrypted)
    with open_store(tmp_path / "other") as store:
        store.put(source, name="a", codec=codec)
        store.get_to("a", tmp_path / "out")
        assert snapshot(tmp_path / "out") == snapshot(source)
        assert_equal_tensors(store.get("a").tensors(large), large)
        assert not store.verify(deep=True).corrupt


def test_plane_stores_a_third_less_of_bf16_weights(store: Store) -> None:
    weights = {"w": noise(2048, 2048)}  # 8 MiB
    put = store.put(tensors=weights, name="w", codec="plane")
    assert put.bytes_stored < 0.72 * put.bytes_in
    plain = store.put(tensors={"w": noise(2048, 2048, seed=1)}, name="stored", codec="stored")
    assert plain.bytes_stored >= plain.bytes_in


# ---- hostile inputs


class Evil:
    """What unpickling this does is what the pickle says: here, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._marker),)


def header(table: object, content: bytes = b"", length: int | None = None) -> bytes:
    packed = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(packed) if length is None else length) + packed + content


def one(shape: list[int], offsets: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def evil_archive(marker: Path) -> bytes:
    """Return a torch checkpoint, as torch writes it today, whose pickle makes a directory when it is run."""
    out = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, out)
    again = io.BytesIO()
    with zipfile.ZipFile(out) as source, zipfile.ZipFile(again, "w") as target:
        for name in source.namelist():
            content = pickle.dumps(Evil(marker), 2) if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, content)
    return again.getvalue()


def object_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return out.getvalue()


HOSTILE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "no header": ("m.safetensors", lambda _: b"abc"),
    "header past the end": ("m.safetensors", lambda _: header({}, length=1000)),
    "header of 100 MB and a byte": ("m.safetensors", lambda _: header(b" " * 64, length=100_000_001)),
    "header length of 2**64 - 1": ("m.safetensors", lambda _: header({}, length=(1 << 64) - 1)),
    "header of other JSON": ("m.safetensors", lambda _: header([])),
    "header that is no JSON": ("m.safetensors", lambda _: header(b"{]")),
    "header nested 50,000 deep": ("m.safetensors", lambda _: header(b'{"a":' + b"[" * 50_000)),
    "name told twice": (
        "m.safetensors",
        lambda _: header(b'{"a":%b,"a":%b}' % ((json.dumps(one([1], [0, 1])).encode(),) * 2), b"x"),
    ),
    "overlap": ("m.safetensors", lambda _: header({"a": one([2], [0, 2]), "b": one([2], [1, 3])}, b"abc")),
    "hole": ("m.safetensors", lambda _: header({"a": one([1], [0, 1]), "b": one([1], [2, 3])}, b"abc")),
    "bytes left over": ("m.safetensors", lambda _: header({"a": one([1], [0, 1])}, b"abc")),
    "tensor past the end": ("m.safetensors", lambda _: header({"a": one([9], [0, 9])}, b"abc")),
    "negative extent": ("m.safetensors", lambda _: header({"a": one([-1], [0, 1])}, b"a")),
    "extents that overflow": ("m.safetensors", lambda _: header({"a": one([1 << 62, 4, 4], [0, 0])})),
    "wrong length": ("m.safetensors", lambda _: header({"a": one([2], [0, 4], "F32")}, b"abcd")),
    "unknown dtype": ("m.safetensors", lambda _: header({"a": one([1], [0, 1], "Q3")}, b"a")),
    "pickle that runs code": ("pytorch_model.bin", lambda marker: pickle.dumps(Evil(marker), 2)),
    "checkpoint that runs code": ("model.pt", evil_archive),
    "cut checkpoint": ("model.pt", lambda marker: evil_archive(marker)[:-30]),
    "cut gguf header": ("model.gguf", lambda _: gguf_bytes()[:50]),
    "cut gguf tensors": ("model.gguf", lambda _: gguf_bytes()[:-1]),
    "gguf of another name": ("model.dat", lambda _: gguf_bytes()[:-1]),
    "array of objects": ("array.npy", lambda _: object_array()),
    "cut array": ("array.npy", lambda _: object_array()[:20]),
    "no array": ("array.npz", lambda _: b"PK\x03\x04 and nothing more"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_inputs_are_refused_whole(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, make = HOSTILE[what]
    marker = tmp_path / "marker"
    top = tmp_path / "checkpoint"
    top.mkdir()
    (top / "a_good.safetensors").write_bytes(header({"a": one([1], [0, 1])}, b"x"))
    (top / name).write_bytes(make(marker))
    (top / "z_good.json").write_text("{}")

    for path in (top, top / name):
        assert run(["put", str(path), "bad"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        first, *rest = err.splitlines()
        assert first.startswith(f"arstore: error: put: {top / name}: ")
        assert len(rest) == 1
        assert rest[0].startswith("arstore: hint: ")
    assert stored_counts(store) == (0, 0)
    assert not list((store._parts.root / "segments").iterdir())

    # What is not read can't do harm: as bytes it goes in and comes out, never run.
    assert run(["put", str(top), "bad", "--opaque", name]) == 0
    assert run(["put", str(top / name), "kind", "--kind", "file"]) == 0
    assert run(["get", "bad", str(tmp_path / "out")]) == 0
    assert snapshot(tmp_path / "out") == snapshot(top)
    assert list(store.get("bad").tensors()) == ["a"]
    assert not marker.exists()


def test_the_evil_pickle_is_evil(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker"), 2))
    assert (tmp_path / "marker").exists()


# ---- where it goes


def test_a_file_goes_to_a_new_path_or_into_a_directory(store: Store, tmp_path: Path) -> None:
    source = safetensors_file(tmp_path)
    store.put(source, name="f")
    store.get_to("f", tmp_path / "made" / "for" / "it.bin")
    (tmp_path / "there").mkdir()
    store.get_to("f", tmp_path / "there")
    assert snapshot(tmp_path / "made") == {
        "for": (stat.S_IMODE((tmp_path / "made/for").stat().st_mode), None),
        "for/it.bin": snapshot(source)[""],
    }
    assert snapshot(tmp_path / "there") == {"model.safetensors": snapshot(source)[""]}


def test_what_is_there_is_replaced(store: Store, tmp_path: Path) -> None:
    source = safetensors_file(tmp_path)
    store.put(source, name="f")
    (tmp_path / "out").write_bytes(b"older and longer" * 100_000)
    store.get_to("f", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(source)

    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    (tmp_path / "over" / "original").mkdir(parents=True)
    (tmp_path / "over" / "config.json").write_text("older")
    (tmp_path / "over" / "kept.txt").write_text("not of the artifact")
    store.get_to("d", tmp_path / "over")
    store.get_to("d", tmp_path / "over")
    found = snapshot(tmp_path / "over")
    assert found.pop("kept.txt")[1] == b"not of the artifact"
    assert found == snapshot(tmp_path / "checkpoint")


def test_a_link_at_the_place_of_a_file_is_replaced_not_followed(store: Store, tmp_path: Path) -> None:
    store.put(safetensors_file(tmp_path), name="f")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").symlink_to("precious")
    store.get_to("f", tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("below", ["original", "original/empty"])
def test_a_link_below_the_place_leads_nothing_outside(store: Store, tmp_path: Path, below: str) -> None:
    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir(mode=0o711)
    (out / below).parent.mkdir(parents=True, exist_ok=True)
    (out / below).symlink_to(outside)
    before = outside.stat()
    with pytest.raises(BadInput, match="link"):
        store.get_to("d", out)
    assert list(outside.iterdir()) == []
    assert outside.stat().st_mode == before.st_mode


def test_a_directory_in_the_place_of_a_file_and_the_reverse_are_refused(store: Store, tmp_path: Path) -> None:
    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BadInput):
        store.get_to("d", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a file"
    (tmp_path / "out" / "config.json" / "deep").mkdir(parents=True)
    with pytest.raises(Exception, match=r"config\.json"):
        store.get_to("d", tmp_path / "out")
    assert (tmp_path / "out" / "config.json" / "deep").is_dir()


def test_here_and_other_file_systems_are_places_too(store: Store, tmp_path: Path) -> None:
    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    wanted = snapshot(tmp_path / "checkpoint")
    (tmp_path / "here").mkdir()
    before = Path.cwd()
    try:
        os.chdir(tmp_path / "here")
        store.get_to("d", ".")
    finally:
        os.chdir(before)
    assert snapshot(tmp_path / "here") == wanted
    if os.path.ismount("/dev/shm") and os.access("/dev/shm", os.W_OK):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
            (tmp_path / "mount").symlink_to(elsewhere)
            store.get_to("d", tmp_path / "mount")
            assert snapshot(Path(elsewhere)) == wanted


def flip(store: Store, content: bytes) -> None:
    """Change one bit of the record that holds `content`, which must lie in a segment as it is."""
    for path in (store._parts.root / "segments").iterdir():
        held = bytearray(path.read_bytes())
        if (at := held.find(content)) >= 0:
            held[at] ^= 1
            path.write_bytes(held)
            return
    raise AssertionError("no segment holds it")


@pytest.mark.parametrize("selected", [False, True], ids=["files", "tensors"])
def test_the_destination_is_untouched_where_a_blob_is_bad(tmp_path: Path, selected: bool) -> None:
    from arstore.store.artifacts.select import Selection

    create_store(tmp_path / "clear", encrypted=False)
    with open_store(tmp_path / "clear") as store:
        source = sharded_directory(tmp_path / "checkpoint")
        store.put(source, name="d", codec="stored")
        victim = layers()["model.layers.3.mlp.weight"]
        flip(store, raw(victim))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("older")
        (tmp_path / "file").write_text("older")
        dests = [tmp_path / "out", tmp_path / "new"] + [tmp_path / "file"] * selected
        selection = Selection(globs=("*",)) if selected else None
        before = snapshot(tmp_path)
        for dest in dests:
            with pytest.raises(Corrupt, match="d@1"):
                store.get_to("d", dest, selection)
        after = snapshot(tmp_path)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in changed if not name.startswith("clear/")}


# ---- any tree

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)
FILES = st.tuples(st.binary(max_size=300), st.sampled_from([0o644, 0o600, 0o755, 0o444, 0o777]))
TREES = st.recursive(
    st.dictionaries(NAMES, FILES, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(FILES, inner), max_size=4),
    max_leaves=12,
)


def make_tree(path: Path, tree: Tree) -> None:
    path.mkdir()
    for name, inner in tree.items():
        if isinstance(inner, dict):
            make_tree(path / name, inner)
        else:
            (path / name).write_bytes(inner[0])
            (path / name).chmod(inner[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_any_tree_comes_back(store: Store, tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "in", Path(scratch) / "out"
        make_tree(source, cast("Tree", tree))
        store.put(source, name="tree", kind="file")
        again = store.put(source, name="tree", kind="file")
        assert again.blobs_new == 0
        store.get_to("tree", out)
        assert snapshot(out) == snapshot(source)
