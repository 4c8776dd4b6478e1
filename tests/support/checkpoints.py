"""Model files of every kind that a put takes, made by the libraries that users have, and how to compare tensors.

Every checkpoint here is made by the library that real ones are made with; only GGUF, whose library is no dependency,
is written by hand.
"""

import json
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import Store, create_store, open_store

Tensors: TypeAlias = dict[str, torch.Tensor]
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


def header(table: object, content: bytes = b"", length: int | None = None) -> bytes:
    packed = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(packed) if length is None else length) + packed + content
