"""Transformers (5.x): the KV of a sequence out of a DynamicCache into a store, and back into one in another process.

Invariant: what is restored is the bytes that were saved, under an identity in which every input of theirs is counted.
A cache that can't be had back exactly (sliding windows, linear attention, quantised, static, offloaded, several
sequences) is refused, and so is one that is not what its identity says.

    identity = identity_of(store, model)
    save_cache(store, "chat/7", cache, tokens, identity)            # tokens: one for each position of the cache
    cache, count = restore_cache(store, tokens, identity)           # None, 0 where nothing of them is stored
    model.generate(tokens, cache=cache)                             # computes from token `count` on
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from ...formats.identity import make_identity
from ...formats.readers.model_config import fields_of_config, precision_of
from ..artifacts.commit import PutResult
from ..errors import BadInput
from ..store import Store

if TYPE_CHECKING:
    import torch

_LAYOUT = "HND"
# RoPE whose frequencies depend on how long the whole sequence is: KV of a prefix is not its alone.
_MOVING = ("dynamic", "longrope")
# What a PEFT config says of where it came from and how it is trained.
_PEFT_BESIDE = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "lora_dropout",
    "init_lora_weights",
    "auto_mapping",
    "peft_version",
)


def save_cache(
    store: Store, name: str, cache: Any, tokens: Any, identity: Mapping[str, object], **options: Any
) -> PutResult:
    """Store the KV of `tokens` as the newest version of a name, durably; blocks that are stored already stay.

    `options` are those of `Kv.put`. Raises BadInput, with nothing stored, for a cache that can't be had back exactly,
    or is not of these tokens and this identity.
    """
    if found := [kind for kind in _MOVING if f'"{kind}"' in str(identity.get("rope_scaling"))]:
        why = f"is of a model with {found[0]} RoPE, which turns a prefix otherwise once a sequence gets long"
        raise BadInput("cache", why)
    tensors = {}
    for number, layer in enumerate(_sound_layers(cache)):
        for side, tensor in (("key", layer.keys), ("value", layer.values)):
            if tensor.ndim != 4 or tensor.shape[0] != 1:
                why = f"has shape {list(tensor.shape)}, wanted [1, kv_heads, tokens, head_dim]: one sequence"
                raise BadInput(f"cache: layer {number} {side}", why)
            if precision_of(str(tensor.dtype)) != identity.get("precision"):
                why = f"is {precision_of(str(tensor.dtype))}, the identity says {identity.get('precision')}"
                raise BadInput(f"cache: layer {number} {side}", why)
            tensors[f"layers.{number}.{side}"] = tensor.detach()[0].cpu().contiguous()
    return store.kv.put(tensors, name=name, tokens=tokens, identity=_laid_out(identity), join=True, **options)


def restore_cache(
    store: Store, tokens: Any, identity: Mapping[str, object], *, device: "torch.device | str" = "cpu"
) -> tuple[Any, int]:
    """Return a DynamicCache of the longest stored prefix of `tokens`, and how many tokens it holds; None, 0 if none.

    At least the last token is left out, stored or not: an engine must run one to say what comes after it.
    Raises Corrupt if a blob is bad; called again, it finds the prefix that ends before it.
    """
    from transformers.cache_utils import DynamicCache

    hit = store.longest_prefix(tokens, _laid_out(identity))
    count = min(hit.tokens_count, len(tokens) - 1)
    if count < 1:
        return None, 0
    tensors = hit.tensors(positions=(0, count), layout=_LAYOUT)
    sides = ((tensors[f"layers.{n}.key"], tensors[f"layers.{n}.value"]) for n in hit.layers)
    return DynamicCache([tuple(side[None].to(device) for side in both) for both in sides]), count


def identity_of(store: Store, model: Any, /, **given: object) -> dict[str, str]:
    """Return the identity of the KV that a loaded model computes; fields that are `given` go before.

    Every field that applies is filled. What token ids don't say is for the caller to give: `contents` of images,
    `embeddings`, `salt`; positions count from 0, unpadded. The digest of the weights reads all of them, which takes a
    while and, from an accelerator, memory of the host: find it once, or give `store.identify(directory)["weights"]`.
    Raises BadInput for adapters that can't be told apart (merged into the weights, or prompts).
    """
    import torch
    import transformers

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = next(base.parameters()).device
    config = {**base.config.to_dict(), "architectures": [type(base).__name__]}
    if Path(str(base.name_or_path)).is_dir():
        config["_name_or_path"] = None  # where it lay is not what it is
    said = fields_of_config(config)
    fields = {
        **said,
        **_rope_precision(base, said.get("rope")),
        "precision": precision_of(str(base.dtype)),
        "layout": _LAYOUT,
        "start": 0,
        "engine": "transformers",
        "engine_version": transformers.__version__,
        "attention_backend": base.config._attn_implementation,
        "framework": f"torch {torch.__version__}",
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **_adapter_fields(store, base, getattr(model, "peft_config", None) or {}),
        **given,
    }
    if "weights" not in given:
        fields["weights"] = store.identify(tensors=dict(_own_tensors(base)))["weights"]
    return dict(make_identity(fields))


def _rope_precision(model: Any, rope: object) -> dict[str, object]:
    """Return the field rope of a model whose frequencies were cast: `model.to(dtype)` does that, loading does not.

    They are in no state dict and no config, and KV computed with them is other KV.
    """
    kept = model.state_dict().keys()
    casts = {
        precision_of(str(buffer.dtype))
        for name, buffer in model.named_buffers()
        if name not in kept and buffer.is_floating_point()
    } - {"fp32"}
    return {"rope": f"{rope} in {' and '.join(sorted(casts))}"} if casts else {}


def _laid_out(identity: Mapping[str, object]) -> dict[str, object]:
    return {**identity, "layout": _LAYOUT}


def _sound_layers(cache: Any) -> list[Any]:
    """Return the layers of a cache if each holds all that it is given, as it is given it."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if type(cache) is not DynamicCache or cache.offloading:
        kind = "an offloaded cache" if type(cache) is DynamicCache else f"a {type(cache).__name__}"
        raise BadInput("cache", f"is {kind}, wanted a DynamicCache")
    for number, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            raise BadInput(f"cache: layer {number}", f"is a {type(layer).__name__}, which can't be restored exactly")
        if not layer.is_initialized or not layer.get_seq_length():
            raise BadInput(f"cache: layer {number}", "is empty")
    return list(cache.layers)


def _tuned_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "adapter_layer_names")]


def _own_tensors(model: Any) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield the model's own tensors as its directory has them: no adapters, and a tied tensor once."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    foreign = {f".{part}." for layer in _tuned_layers(model) for part in layer.adapter_layer_names}
    for name, tensor in model.state_dict().items():
        if name not in tied and not any(part in name for part in foreign):
            yield name.replace(".base_layer.", ".").replace(".original_module.", "."), tensor


def _adapter_fields(store: Store, model: Any, configs: Mapping[str, Any]) -> dict[str, object]:
    """Return the fields of the adapters that PEFT has attached: what they hold and how they are used, not their names.

    No adapter at all is `none`, which is not the same as not saying.
    """
    layers = _tuned_layers(model)
    if configs and not layers:
        raise BadInput("adapter", "changes no layer (a prompt, a prefix), so that KV can't be named by it")
    if any(getattr(layer, "merged_adapters", ()) for layer in layers):
        raise BadInput("adapter", "is merged into the weights", hint="unmerge it, or merge_and_unload")
    used = dict.fromkeys(name for layer in layers if not layer.disable_adapters for name in layer.active_adapters)
    if not used:
        return {"adapter": "none"}
    digests = []
    parts = {f".{part}." for layer in layers for part in layer.adapter_layer_names}
    for name in used:
        ends = {part + name for part in parts}
        own = {
            key.replace(end, end[: -len(name)]): tensor
            for key, tensor in model.state_dict().items()
            for end in ends
            if key.endswith(end) or f"{end}." in key
        }
        said = {key: value for key, value in configs[name].to_dict().items() if key not in _PEFT_BESIDE}
        text = json.dumps(said, sort_keys=True, default=lambda one: sorted(map(str, one)))
        digests.append(store.identify(tensors=own)["weights"] + blake3(text.encode()).hexdigest(length=16))
    # One scale is named as it is; of several, which layer has which is part of what it is.
    found = [
        (n, name, scale)
        for n, layer in enumerate(layers)
        for name, scale in sorted(getattr(layer, "scaling", {}).items())
        if name in used
    ]
    scales = {scale for _, _, scale in found}
    if len(scales) > 1:
        digests.append(blake3(json.dumps(found).encode()).hexdigest(length=16))
    targets = {str(one) for name in used for one in _listed(configs[name].target_modules)}
    return {
        "adapter": "+".join(digests),
        "adapter_scale": scales.pop() if len(scales) == 1 else None,
        "adapter_targets": sorted(targets) or None,
    }


def _listed(targets: Any) -> list[Any]:
    return [targets] if isinstance(targets, str) else list(targets or ())
