"""Checkpoint: a Llama-shaped model in bf16, made up from a seed, laid out as Hugging Face does: shards and a config."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARDS = 4
VOCABULARY = 32_000
MIN_BYTES = 256 << 20
_CHUNK = 4 << 20  # elements drawn at a time
_SEED = 2026


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama with grouped keys; with 2,048 and 22 layers it is TinyLlama."""

    hidden: int
    layers: int

    @property
    def inner(self) -> int:
        return self.hidden * 11 // 4 // 256 * 256

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield every tensor's name and shape, in order."""
        hidden, kv = self.hidden, self.hidden // 8
        yield "model.embed_tokens.weight", (VOCABULARY, hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield f"{at}input_layernorm.weight", (hidden,)
            yield f"{at}self_attn.q_proj.weight", (hidden, hidden)
            yield f"{at}self_attn.k_proj.weight", (kv, hidden)
            yield f"{at}self_attn.v_proj.weight", (kv, hidden)
            yield f"{at}self_attn.o_proj.weight", (hidden, hidden)
            yield f"{at}post_attention_layernorm.weight", (hidden,)
            yield f"{at}mlp.gate_proj.weight", (self.inner, hidden)
            yield f"{at}mlp.up_proj.weight", (self.inner, hidden)
            yield f"{at}mlp.down_proj.weight", (hidden, self.inner)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (VOCABULARY, hidden)


def shape_for(size: int) -> Shape:
    """Return the Llama that comes closest to `size` bytes, its two embeddings at most an eighth of it."""
    fitting = [width for width in (1024, 2048, 4096, 8192) if 8 * 2 * 2 * VOCABULARY * width <= size]
    hidden = max(fitting, default=512)
    bare, one = _bytes_of(Shape(hidden, 0)), _bytes_of(Shape(hidden, 1))
    return Shape(hidden, max(round((size - bare) / (one - bare)), SHARDS))


def write_checkpoint(folder: Path, size: int) -> tuple[Shape, int]:
    """Write a checkpoint of about `size` bytes; return its shape and the bytes of its tensors."""
    from safetensors.torch import save_file

    shape = shape_for(size)
    folder.mkdir()
    where: dict[str, str] = {}
    total = 0
    with ThreadPoolExecutor(2) as pool:
        for number, names in enumerate(_shards(shape), start=1):
            drawn = pool.map(lambda one: _draw(*one), names)
            shard = {name: tensor for (_, name, _), tensor in zip(names, drawn, strict=True)}
            path = folder / f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
            save_file(shard, path, metadata={"format": "pt"})
            where |= dict.fromkeys(shard, path.name)
            total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    return shape, total


def _shards(shape: Shape) -> list[list[tuple[int, str, tuple[int, ...]]]]:
    """Return the tensors of each shard: they are cut where the next one would begin beyond its share."""
    share = -(-_bytes_of(shape) // SHARDS)
    shards: list[list[tuple[int, str, tuple[int, ...]]]] = [[] for _ in range(SHARDS)]
    at = 0
    for number, (name, dims) in enumerate(shape.tensors()):
        shards[min(at // share, SHARDS - 1)].append((number, name, dims))
        at += 2 * _elements(dims)
    return shards


def _draw(number: int, name: str, dims: tuple[int, ...]) -> "torch.Tensor":
    """Return N(0, 0.02) in bf16, the same for the same number every time; norms are ones, as they begin."""
    import numpy as np
    import torch

    out = torch.empty(_elements(dims), dtype=torch.bfloat16)
    if "norm" in name:
        return out.fill_(1)
    draw = np.random.Generator(np.random.SFC64([_SEED, number]))
    chunk = np.empty(_CHUNK, dtype=np.float32)
    for start in range(0, len(out), _CHUNK):
        part = chunk[: min(_CHUNK, len(out) - start)]
        draw.standard_normal(dtype=np.float32, out=part)
        out[start : start + len(part)] = torch.from_numpy(part) * 0.02
    return out.reshape(dims)


def _bytes_of(shape: Shape) -> int:
    return sum(2 * _elements(dims) for _, dims in shape.tensors())


def _elements(dims: tuple[int, ...]) -> int:
    count = 1
    for size in dims:
        count *= size
    return count


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // 64,
        "num_key_value_heads": shape.hidden // 512,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 4096,
    }
