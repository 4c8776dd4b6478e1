"""What a model directory says of itself: every value that changes what it computes, however its files are cut."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arstore import BadInput, Store, open_store
from arstore.formats.errors import FormatError
from arstore.formats.identity import differing, make_identity
from arstore.formats.readers.model_config import fields_of_config, parse_config
from tests.support.command import cli

Tensors = dict[str, torch.Tensor]

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
    "rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    assert cli("init").code == 0
    with open_store(tmp_path / "store") as opened:
        yield opened


def weights() -> Tensors:
    generator = torch.Generator().manual_seed(3)
    shapes = {f"model.layers.{n}.{part}.weight": (64, 16) for n in range(2) for part in "qkv"} | {"norm": (64,)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def write_model(path: Path, tensors: Tensors, *, shards: int = 1, config: dict[str, Any] | None = CONFIG) -> Path:
    path.mkdir()
    names = sorted(tensors)
    for shard in range(shards):
        save_file({name: tensors[name] for name in names[shard::shards]}, path / f"model-{shard}.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_directory_says_what_it_is(store: Store, tmp_path: Path) -> None:
    found = store.identify(write_model(tmp_path / "m", weights()))
    assert len(bytes.fromhex(found.pop("weights"))) == len(bytes.fromhex(found.pop("config"))) == 32
    assert found == {
        "model": "llama", "revision": "none", "precision": "bf16", "architecture": "LlamaForCausalLM",
        "layers": "0-1", "heads": "4", "kv_heads": "2", "head_dim": "16", "attention": "mha", "rope": "linear",
        "rope_theta": "10000", "rope_factor": "2",
        "rope_scaling": '{"factor":2.0,"rope_theta":10000.0,"rope_type":"linear"}',
    }  # fmt: skip


def test_weights_are_the_same_however_their_files_are_cut(store: Store, tmp_path: Path) -> None:
    tensors = weights()
    whole = store.identify(write_model(tmp_path / "whole", tensors))
    assert store.identify(write_model(tmp_path / "shards", tensors, shards=3)) == whole
    assert store.identify(tensors=tensors) == {"weights": whole["weights"]}
    torch_file = write_model(tmp_path / "torch", {}, shards=0)
    # Tied, and a view into the middle of another tensor: bytes of the file that no blob holds alone.
    storage = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = torch.split(storage, [tensor.numel() for tensor in tensors.values()])
    views = {name: part.view(t.shape) for (name, t), part in zip(tensors.items(), parts, strict=True)}
    torch.save({**views, "all": storage}, torch_file / "pytorch_model.bin")
    assert store.identify(torch_file)["weights"] == store.identify(tensors={**tensors, "all": storage})["weights"]
    # Loaders take safetensors where both are there, and nothing of folders below.
    (torch_file / "1_Pooling").mkdir()
    save_file({"other": torch.ones(3)}, torch_file / "1_Pooling" / "model.safetensors")
    save_file(tensors, torch_file / "model.safetensors")
    assert store.identify(torch_file) == whole


CHANGES: dict[str, Callable[[Tensors], object]] = {
    "a bit": lambda tensors: tensors["norm"].view(torch.int16)[5].bitwise_xor_(1),
    "a name": lambda tensors: tensors.update(gain=tensors.pop("norm")),
    "a shape": lambda tensors: tensors.update(norm=tensors["norm"].view(8, 8)),
    "a dtype": lambda tensors: tensors.update(norm=tensors["norm"].view(torch.float16)),
    "one less": lambda tensors: tensors.pop("norm"),
    "two swapped": lambda tensors: tensors.update(
        {"model.layers.0.q.weight": tensors["model.layers.1.q.weight"],
         "model.layers.1.q.weight": tensors["model.layers.0.q.weight"]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_are_another_model(store: Store, tmp_path: Path, change: str) -> None:
    tensors = weights()
    first = store.identify(write_model(tmp_path / "first", tensors))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    CHANGES[change](tensors)
    second = store.identify(write_model(tmp_path / "second", tensors, shards=2))
    assert differing(make_identity(first), make_identity(second)) == ["weights"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "rope_factor"),
        ({"rope_theta": 5e5}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 1}}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "rope_scaling"),
        ({"torch_dtype": "float16"}, "precision"),
        ({"sliding_window": 4096}, "window"),
        ({"attention_chunk_size": 8192}, "attention_chunk"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_kinds"),
        ({"num_hidden_layers": 3}, "layers"),
        ({"num_key_value_heads": 4}, "kv_heads"),
        ({"head_dim": 32}, "head_dim"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantisation"),
        ({"quantization_config": {"modules_to_not_convert": ["layer"] * 9999}}, "quantisation"),
        ({"kv_lora_rank": 512}, "attention"),
        ({"model_type": "mistral"}, "model"),
        ({"_name_or_path": "meta-llama/Llama-3.1-8B"}, "model"),
        ({"text_config": {"head_dim": 32}}, "head_dim"),
        ({"rms_norm_eps": 1e-5}, "config"),
        ({"attn_logit_softcapping": 50.0}, "config"),
        ({"a value nobody has thought of": 1}, "config"),
    ],
)
def test_another_config_is_another_model(change: dict[str, Any], field: str) -> None:
    first = make_identity(fields_of_config(CONFIG))
    assert field in differing(first, make_identity(fields_of_config({**CONFIG, **change})))


def test_the_same_model_said_otherwise_is_the_same_model() -> None:
    first = make_identity(fields_of_config(CONFIG))
    newer = {name: value for name, value in CONFIG.items() if not name.startswith(("rope_", "torch_"))}
    newer |= {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}, "dtype": "bfloat16"}
    older = {**CONFIG, "rope_scaling": {"type": "linear", "factor": 2.0}}
    beside = {
        "use_cache": False,
        "transformers_version": "4.57.0",
        "_name_or_path": "/home/me/llama",
        "eos_token_id": 2,
    }
    for other in (newer, older, {**CONFIG, **beside}, {**CONFIG, "sliding_window": 4096, "use_sliding_window": False}):
        assert differing(first, make_identity(fields_of_config(other))) == []


def test_put_records_what_identify_finds(store: Store, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", weights(), shards=2)
    found = store.identify(path)
    assert store.put(path, name="m").summary.model == "llama"
    assert dict(store.show("m")[1].identity) == found
    store.put(path, name="m", identity={"model": "mine", "revision": "7", "weights": "by hand"})
    assert dict(store.show("m")[1].identity) == {**found, "model": "mine", "revision": "7", "weights": "by hand"}
    # What is no model directory gets no identity that nobody gave.
    plain = write_model(tmp_path / "plain", weights(), config=None)
    assert store.identify(plain) == {"weights": found["weights"]}
    for name, kind in (("plain", None), ("m", "intermediate"), ("m", "file")):
        store.put(tmp_path / name, name="other", kind=kind)
        assert store.show("other")[1].identity == ()


def test_two_tenants_can_not_compare_their_weights(store: Store, tmp_path: Path) -> None:
    store.tenants.add("other")
    with open_store(tmp_path / "store", tenant="other") as other:
        assert other.identify(tensors=weights()) != store.identify(tensors=weights())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"model_type": "a", "model_type": "b"}', "says a key twice"),
        (b'{"model_type": ', "is not json"),
        (b"[1]", "holds list, wanted an object"),
        (b'{"model_type": "\xff"}', "is not utf-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b" " * ((16 << 20) + 1), "at most 16777216 are allowed"),
    ],
)
def test_a_config_that_can_not_be_right_is_refused(store: Store, tmp_path: Path, content: bytes, why: str) -> None:
    path = write_model(tmp_path / "m", weights(), config=None)
    (path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=why) as caught:
        store.put(path, name="m")
    assert "--opaque config.json" in (caught.value.hint or "")
    assert store.ls() == []
    store.put(path, name="m", opaque=["config.json"])


@pytest.mark.parametrize(
    "changed",
    [
        {"num_attention_heads": [1, 2, 5, 8]}, {"num_hidden_layers": 0}, {"num_hidden_layers": 5000},
        {"head_dim": 64.5}, {"sliding_window": [1, 2]}, {"rope_scaling": "linear"},
    ],
)  # fmt: skip
def test_words_that_other_models_use_otherwise_are_counted(
    store: Store, tmp_path: Path, changed: dict[str, object]
) -> None:
    """A field is left out where its value is none, and the model still differs from one without it."""
    plain = {"model_type": "segformer"}
    path = write_model(tmp_path / "m", weights(), config=plain)
    before = store.identify(path)
    path = write_model(tmp_path / "n", weights(), config=plain | changed)
    found = store.identify(path)
    assert found["config"] != before["config"]
    assert found.keys() <= before.keys() | {"attention"}
    store.put(path, name="m")


def test_a_config_may_hold_infinity() -> None:
    assert parse_config(b'{"time_step_limit": [0.0, Infinity]}') == {
        "time_step_limit": [0.0, {"__float__": "Infinity"}]
    }
    with pytest.raises(FormatError):
        parse_config(b'{"time_step_limit": [0.0, infinity]}')
