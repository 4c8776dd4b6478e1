"""The files that the guides work with: a small Llama, a fine-tune of it, tokens, and KV of them."""

import json
import random
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from tests.support.kv_made import made

HIDDEN, HEADS, KV_HEADS, LAYERS, VOCABULARY, INNER = 256, 4, 2, 4, 4096, 512
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def make_sample(home: Path) -> None:
    """Put the files into a home.

    `llama/` is a checkpoint of 7.5 MB in two shards, `llama-tuned/` differs from it in layer 3. `tokens.json` has 600
    tokens. `longer.json` has 700, the first 512 of them the same. `kv.safetensors` holds KV of the 600 tokens,
    `kv-longer.safetensors` of the 700.
    """
    weights = weights_of(random_seed=7)
    layer = {name: one for name, one in weights_of(random_seed=8).items() if ".layers.3." in name}
    for folder, tensors in (("llama", weights), ("llama-tuned", weights | layer)):
        save_checkpoint(home / folder, tensors)
    (home / "tp-plan.json").write_text(json.dumps({"layers.*.self_attn.q_proj": "colwise"}))
    (home / "notes.txt").write_text("learning rate 3e-4\n")
    chance = random.Random(7)
    tokens = [chance.randrange(3, VOCABULARY) for _ in range(600)]
    longer = tokens[:512] + [chance.randrange(3, VOCABULARY) for _ in range(188)]
    for name, ids in (("", tokens), ("-longer", longer)):
        arrays = made(ids, layers=LAYERS, heads=KV_HEADS, dim=HIDDEN // HEADS)
        rows = {side: torch.from_numpy(one.view(np.int16)).view(torch.bfloat16) for side, one in arrays.items()}
        safetensors.torch.save_file(rows, home / f"kv{name}.safetensors")
    (home / "tokens.json").write_text(json.dumps(tokens))
    (home / "longer.json").write_text(json.dumps(longer))


def weights_of(random_seed: int) -> dict[str, torch.Tensor]:
    """Return the tensors of the model, as transformers names them."""
    generator = torch.Generator().manual_seed(random_seed)
    width = HIDDEN // HEADS
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "lm_head": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        parts = {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV_HEADS * width, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * width, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    weights = {
        f"{name}.weight": (torch.randn(shape, generator=generator) * 0.02).bfloat16() for name, shape in shapes.items()
    }
    norms = ["model.norm"]
    norms += [f"model.layers.{n}.{name}_layernorm" for n in range(LAYERS) for name in ("input", "post_attention")]
    for name in norms:
        weights[f"{name}.weight"] = (1 + torch.randn(HIDDEN, generator=generator) * 0.1).bfloat16()
    return weights


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint directory as transformers does: two shards, their index, and the config."""
    folder.mkdir()
    half = [name for name in tensors if ".layers." not in name]
    shards = [
        {name: tensors[name] for name in half},
        {name: one for name, one in tensors.items() if name not in half},
    ]
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-00002.safetensors"
        safetensors.torch.save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        where |= dict.fromkeys(shard, file)
    total = sum(one.nbytes for one in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where})
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
