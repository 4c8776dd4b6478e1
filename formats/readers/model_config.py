"""Model config: what the config.json of a Hugging Face model says of its identity, and the digest of its weights.

Invariant: a value that may change what the model computes has a field of its own or is counted by the field `config`.
Values that can't are listed in `_BESIDE`. So a value that is not known here makes two models differ.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blake3 import blake3

from ..digest import Digest, derive, keyed_hash
from ..errors import FormatError
from ..identity import make_identity
from ..tensor import TensorSpan

CONFIG_MAX_BYTES = 16 << 20
# A directory names no revision of itself: the digest of its weights says more than a name could.
_NO_REVISION = "none"
_TEXT_MAX_BYTES = 2048

_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}
# What configs say of training, of output, of token ids and of their own file: nothing that changes KV.
_BESIDE = frozenset((
    "transformers_version", "use_cache", "output_hidden_states", "output_attentions", "return_dict",
    "return_dict_in_generate", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type",
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "tie_word_embeddings", "auto_map", "text_config",
    "torchscript", "use_bfloat16", "attn_implementation", "_attn_implementation_autoset", "architectures",
    "_name_or_path", "_commit_hash",
))  # fmt: skip


def parse_config(raw: bytes) -> dict[str, Any]:
    """Return the object of a config.json; raise FormatError if it is none, or says a key twice."""
    try:
        # Mamba's configs hold Infinity, which is no JSON; transformers itself spells it like this since version 5.
        config = json.loads(
            raw.decode(), object_pairs_hook=_refuse_twins, parse_constant=lambda text: {"__float__": text}
        )
    except UnicodeDecodeError:
        raise FormatError("is not utf-8") from None
    except RecursionError:
        raise FormatError("is nested too deeply") from None
    except ValueError as error:
        raise error if isinstance(error, FormatError) else FormatError(f"is not json: {error}") from None
    if not isinstance(config, dict):
        raise FormatError(f"holds {type(config).__name__}, wanted an object")
    return config


def fields_of_config(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the identity fields that a model's config fills. Nothing is guessed.

    Without a model_type the file is of another kind, and there are no fields. Raises FormatError for values that no
    model has.
    """
    if "model_type" not in config:
        return {}
    left = {**config, **_mapping(config, "text_config")}
    latent = bool(left.get("kv_lora_rank"))  # MLA: what it caches for a token does not depend on kv_heads and head_dim
    layers = left.pop("num_hidden_layers", None)
    if type(layers) is not int or layers < 1:
        left["num_hidden_layers"], layers = layers, None
    names = left.get("architectures") or [left.get("model_type")]
    heads, kv_heads = left.pop("num_attention_heads", None), left.pop("num_key_value_heads", None)
    head_dim, window = left.pop("head_dim", None), left.pop("sliding_window", None)
    kinds, quantised = left.pop("layer_types", None), left.pop("quantization_config", None)
    dtype = left.pop("dtype", None) or left.pop("torch_dtype", None)
    left.pop("torch_dtype", None)
    fields: dict[str, object] = {
        "model": _name_of(config),
        "revision": _NO_REVISION,
        "precision": precision_of(dtype) if isinstance(dtype, str) else None,
        "architecture": names[0] if isinstance(names, list) else None,
        "layers": None if layers is None else f"0-{layers - 1}",
        "heads": heads,
        "kv_heads": None if latent else kv_heads,
        "head_dim": None if latent else head_dim,
        "attention": "mla" if latent else "mha" if heads is not None else None,
        "window": window if left.pop("use_sliding_window", True) else None,
        "attention_chunk": left.pop("attention_chunk_size", None),
        "layer_kinds": None if kinds is None else brief_json(kinds),
        "quantisation": None if quantised is None else brief_json(quantised),
        **_rope(left),
    }
    counted = {name: value for name, value in left.items() if name not in _BESIDE and value is not None}
    for name, value in fields.items():
        if not _fits(name, value):  # other models use the same words for other things, so they are counted in `config`
            counted[f"field {name}"], fields[name] = value, None
    if latent:
        counted |= {"num_key_value_heads": kv_heads, "head_dim": head_dim}
    fields["config"] = blake3(_canonical(counted).encode()).hexdigest()
    return {name: value for name, value in fields.items() if value is not None}


def _fits(name: str, value: object) -> bool:
    try:
        make_identity({name: value})
    except FormatError:
        return False
    return True


def _name_of(config: Mapping[str, Any]) -> object:
    """Return the model's name on a hub if the config says one, not where it lay on a disk; else its type."""
    name = config.get("_name_or_path")
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)) else config.get("model_type")


def precision_of(dtype: str) -> str:
    """Return what identities call a torch dtype: bf16, fp32, float8_e4m3fn."""
    name = dtype.removeprefix("torch.")
    return _PRECISIONS.get(name, name)


def digest_weights(digest_key: bytes, tensors: Iterable[tuple[TensorSpan, Sequence[Digest]]]) -> str:
    """Return the digest of a model's weights as hex, given each tensor and the digests of the blobs it is cut into.

    It depends only on names, dtypes, shapes and bytes, not on files or their order. It is made under the tenant's key,
    as the digests of blobs are, so it can't be compared between tenants.
    """
    rows = {
        (span.name, span.dtype, str(list(span.shape)), str(list(span.stride or ())), b"".join(digests))
        for span, digests in tensors
    }
    parts = [part if isinstance(part, bytes) else part.encode() for row in sorted(rows) for part in row]
    return keyed_hash(derive(digest_key, "weights"), *parts).hex()


def brief_json(value: object) -> str:
    """Return canonical JSON of a value, or of its digest where that would fill an identity."""
    text = _canonical(value)
    if len(text.encode()) > _TEXT_MAX_BYTES:
        text = _canonical({"blake3": blake3(text.encode()).hexdigest()})
    return text


def _rope(left: dict[str, Any]) -> dict[str, object]:
    """Take every RoPE value out of a config; those of transformers 4 and 5 come out the same."""
    flat = {name: left.pop(name, None) for name in ("rope_theta", "partial_rotary_factor")}
    older, newer = _mapping(left, "rope_scaling"), _mapping(left, "rope_parameters")
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(left.get(name), dict):
            left.pop(name)
    whole = {**{name: value for name, value in flat.items() if value is not None}, **older, **newer}
    if not whole:
        return {}
    if not any(isinstance(value, dict) for value in whole.values()):  # one set of values for each kind of layer
        kind = whole.pop("type", "default")
        whole.setdefault("rope_type", kind)
    return {
        "rope": whole.get("rope_type"),
        "rope_theta": whole.get("rope_theta"),
        "rope_factor": whole.get("factor"),
        "rope_original_positions": whole.get("original_max_position_embeddings"),
        "rope_sections": whole.get("mrope_section"),
        "rope_partial": whole.get("partial_rotary_factor"),
        "rope_scaling": brief_json(whole),
    }


def _mapping(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _canonical(value: object) -> str:
    # Loaded configs hold dtypes and other objects, which their text stands for.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FormatError("says a key twice")
    return found
