"""KV that transformers computed in one process goes on in another: what comes out is what a cold run says.

Models are of Llama's shape, tiny, random and made here; nothing is downloaded.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from arstore import BadInput, Corrupt, Store, open_store
from tests.support.command import cli

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", minversion="5.24", reason="transformers 5.24 is not installed")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from transformers.cache_utils import DynamicCache, StaticCache  # noqa: E402

from arstore.store.engines.transformers import identity_of, restore_cache, save_cache  # noqa: E402

PROMPT, PREFIX = 1500, 1200
BLOCKS = PREFIX // 256 * 256  # what of the prefix is found again under a longer prompt
LAYERS = 3


def make_model(path: Path, seed: int = 1, *, factor: float = 2.0, kind: str = "linear", dtype: str = "float32") -> Path:
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, dtype=dtype,
        initializer_range=0.3,
        rope_parameters={"rope_type": kind, "factor": factor, "rope_theta": 10000.0},
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(path)
    return path


def load(path: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(path)  # in eval mode


def prompt(length: int = PROMPT) -> torch.Tensor:
    return torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def prefill(model: Any, tokens: torch.Tensor) -> Any:
    cache = DynamicCache()
    model(tokens[None], cache=cache)
    return cache


# One process each: what it does stands in its arguments, what it found is the JSON on its last line.
BEGIN = """
import json, sys, torch
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from arstore import open_store
from arstore.store.engines.transformers import identity_of, restore_cache, save_cache

store_path, model_path, tokens, prefix = json.loads(sys.argv[1])
model, tokens = LlamaForCausalLM.from_pretrained(model_path).eval(), torch.tensor(tokens)

def generate(cache):
    out = model.generate(tokens[None], cache=cache, max_new_tokens=24, do_sample=False)
    return out[0, len(tokens):].tolist()

with open_store(store_path) as store, torch.no_grad():
    identity = identity_of(store, model)
"""
SAVE = """
    cache = DynamicCache()
    model(tokens[None, :prefix], cache=cache)
    save_cache(store, "chat", cache, tokens[:prefix], identity)
    print(json.dumps([identity, generate(DynamicCache())]))
"""
RESTORE = """
    cache, count = restore_cache(store, tokens, identity)
    print(json.dumps([identity, count, generate(cache)]))
"""


def run(program: str, store: Path, model: Path, tokens: torch.Tensor) -> Any:
    task = json.dumps([str(store), str(model), tokens.tolist(), PREFIX])
    command = [sys.executable, "-c", BEGIN + program, task]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    assert cli("init").code == 0
    with open_store(tmp_path / "store") as opened:
        yield opened


def test_a_new_process_goes_on_where_another_stopped(tmp_path: Path) -> None:
    assert cli("init").code == 0
    model = make_model(tmp_path / "model")
    identity, cold = run(SAVE, tmp_path / "store", model, prompt())
    assert len(set(cold)) > 12  # a model that says one thing all the time would say it after anything
    same, count, warm = run(RESTORE, tmp_path / "store", model, prompt())
    assert (same, count, warm) == (identity, BLOCKS, cold)
    # The directory says of itself what the loaded model says, but for what only an engine knows.
    with open_store(tmp_path / "store") as store:
        directory = store.identify(model)
    engine = {"engine", "engine_version", "framework", "hardware", "attention_backend"}
    assert identity.keys() - directory.keys() - engine == {"adapter", "layout", "start"}
    assert {**identity, **directory} == identity


def first_difference(fields: dict[str, str], other: dict[str, str]) -> str:
    from arstore.formats.identity import differing, make_identity

    return differing(make_identity(other), make_identity(fields))[0]


def test_another_model_never_hits(store: Store, tmp_path: Path) -> None:
    model = load(make_model(tmp_path / "model"))
    saved = identity_of(store, model)
    save_cache(store, "chat", prefill(model, prompt(PREFIX)), prompt(PREFIX), saved)
    assert restore_cache(store, prompt(), saved)[1] == BLOCKS
    others = {
        "weights": identity_of(store, load(make_model(tmp_path / "weights", seed=2))),
        "rope_factor": identity_of(store, load(make_model(tmp_path / "rope", factor=4.0))),
        "adapter": identity_of(store, model, adapter="5eed" * 16),
        "adapter_scale": identity_of(store, model, adapter_scale=0.5),
        "revision": identity_of(store, model, revision="v2"),
        "salt": identity_of(store, model, salt="tenant 7"),
        "contents": identity_of(store, model, contents=["ab" * 32 + "@17"]),
    }
    halved = identity_of(store, model.to(torch.bfloat16))
    for field, other in others.items():
        assert restore_cache(store, prompt(), other) == (None, 0), field
        assert first_difference(saved, other) == field
    assert restore_cache(store, prompt(), halved) == (None, 0)
    assert first_difference(saved, halved) == "weights"  # they are bf16 now, and so is what they compute
    assert halved["precision"] == "bf16"
    assert first_difference(saved, {**saved, "precision": "bf16"}) == "precision"
    assert restore_cache(store, prompt(), {**saved, "precision": "bf16"}) == (None, 0)


def test_a_cast_of_the_frequencies_is_told(store: Store, tmp_path: Path) -> None:
    loaded = load(make_model(tmp_path / "model", dtype="bfloat16"))
    cast = load(tmp_path / "model").to(torch.bfloat16)  # the same weights and config, and other KV
    assert not torch.equal(prefill(loaded, prompt(64)).layers[0].keys, prefill(cast, prompt(64)).layers[0].keys)
    one, other = identity_of(store, loaded), identity_of(store, cast)
    assert one["weights"] == other["weights"]
    assert first_difference(one, other) == "rope"
    assert other["rope"] == "linear in bf16"


def test_an_adapter_is_told_by_what_it_holds(store: Store, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    path = make_model(tmp_path / "model")

    def attach(seed: int, name: str = "one", **options: Any) -> Any:
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
        return peft.get_peft_model(load(path), config, adapter_name=name).eval()

    model = attach(1)
    plain, tuned = identity_of(store, load(path)), identity_of(store, model)
    assert (plain["adapter"], tuned["adapter_scale"], tuned["adapter_targets"]) == ("none", "2", "q_proj,v_proj")
    assert plain["weights"] == tuned["weights"]
    save_cache(store, "tuned", prefill(model, prompt(PREFIX)), prompt(PREFIX), tuned)
    assert identity_of(store, attach(1, "renamed")) == tuned
    for other in (plain, identity_of(store, attach(2)), identity_of(store, attach(1, lora_alpha=4))):
        assert first_difference(tuned, other) == "adapter"
        assert restore_cache(store, prompt(), other) == (None, 0)
    with model.disable_adapter():
        assert identity_of(store, model) == plain
    model.merge_adapter()
    with pytest.raises(BadInput, match="merged into the weights"):
        identity_of(store, model)
    prefixed = peft.get_peft_model(load(path), peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    with pytest.raises(BadInput, match="changes no layer"):
        identity_of(store, prefixed)


def test_frequencies_that_move_with_the_length_are_refused(store: Store, tmp_path: Path) -> None:
    model = load(make_model(tmp_path / "model", kind="dynamic"))
    with pytest.raises(BadInput, match="dynamic RoPE"):
        save_cache(store, "chat", prefill(model, prompt(100)), prompt(100), identity_of(store, model))
    assert store.ls() == []


def test_a_restored_cache_is_the_saved_one_less_its_last_token(store: Store, tmp_path: Path) -> None:
    model = load(make_model(tmp_path / "model", dtype="bfloat16"))
    identity, tokens = identity_of(store, model), prompt(PREFIX)
    assert identity["precision"] == "bf16"
    cache = prefill(model, tokens)
    # Bit patterns that no comparison of numbers would find again.
    cache.layers[1].values[0, 0, 5, :3] = (
        torch.tensor([0x7FC1, 0xFFC0, 0x8000 - (1 << 16)]).short().view(torch.bfloat16)
    )
    save_cache(store, "chat", cache, tokens, identity)
    restored, count = restore_cache(store, tokens, identity)  # a short last block is found where all of it is asked for
    assert count == PREFIX - 1 == restored.get_seq_length()
    for before, after in zip(cache.layers, restored.layers, strict=True):
        for one, other in ((before.keys, after.keys), (before.values, after.values)):
            assert torch.equal(one[:, :, :count].view(torch.int16), other.view(torch.int16))
    assert restore_cache(store, prompt()[:1], identity) == (None, 0)
    assert restore_cache(store, prompt().flip(0), identity) == (None, 0)


def test_a_flipped_bit_is_an_error_and_then_a_shorter_prefix(store: Store, tmp_path: Path) -> None:
    model = load(make_model(tmp_path / "model"))
    identity = identity_of(store, model)
    save_cache(store, "chat", prefill(model, prompt(PREFIX)), prompt(PREFIX), identity)
    [segment] = [path for path in (tmp_path / "store" / "segments").iterdir() if path.stat().st_size > 500_000]
    with segment.open("r+b") as file:
        file.seek(500_000)
        [byte] = file.read(1)
        file.seek(500_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(Corrupt):
        restore_cache(store, prompt(), identity)
    cache, count = restore_cache(store, prompt(), identity)
    assert 0 < count == cache.get_seq_length() < BLOCKS
    assert torch.equal(cache.layers[2].keys, prefill(model, prompt(PREFIX)).layers[2].keys[:, :, :count])


def test_a_prefix_that_is_stored_already_is_joined(store: Store, tmp_path: Path) -> None:
    model = load(make_model(tmp_path / "model"))
    identity = identity_of(store, model)
    save_cache(store, "first", prefill(model, prompt(PREFIX)), prompt(PREFIX), identity)
    # Computed in other chunks the KV of a prefix has other bits; what is stored stands for it.
    cache = prefill(model, prompt())
    first = cache.layers[2].keys[0, 0, 7, 0].item()
    cache.layers[2].keys[0, 0, 7, 0] += 1
    stored = save_cache(store, "second", cache, prompt(), identity)
    assert restore_cache(store, prompt(), identity)[0].layers[2].keys[0, 0, 7, 0].item() == pytest.approx(
        first, abs=1e-3
    )
    assert stored.blobs_new == -(-PROMPT // 256) - BLOCKS // 256
    assert restore_cache(store, prompt(), identity)[1] == PROMPT - 1


def sliding(_: Any) -> Any:
    config = transformers.MistralConfig(num_hidden_layers=LAYERS, sliding_window=64)
    cache = DynamicCache(config=config)
    for layer in range(LAYERS):
        cache.update(torch.zeros(1, 2, 100, 16), torch.zeros(1, 2, 100, 16), layer)
    return cache


def linear(_: Any) -> Any:
    from transformers.cache_utils import LinearAttentionLayer

    cache = DynamicCache()
    cache.layers.append(LinearAttentionLayer())
    return cache


def quantised(cache: Any) -> Any:
    from transformers.cache_utils import QuantoQuantizedLayer

    cache.layers[2] = QuantoQuantizedLayer.__new__(QuantoQuantizedLayer)  # quanto itself is not needed to be refused
    return cache


def offloaded(_: Any) -> Any:
    cache = DynamicCache()
    cache.offloading = True
    return cache


def batched(cache: Any) -> Any:
    cache.batch_repeat_interleave(2)
    return cache


def cropped(cache: Any) -> Any:
    cache.crop(-1)
    return cache


def emptied(cache: Any) -> Any:
    cache.layers[1].reset()
    return cache


def without_a_layer(cache: Any) -> Any:
    del cache.layers[2]
    return cache


def halved(cache: Any) -> Any:
    cache.layers[1].values = cache.layers[1].values.bfloat16()
    return cache


def static(_: Any) -> Any:
    return StaticCache(config=LlamaConfig(num_hidden_layers=LAYERS), max_cache_len=128)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (sliding, "layer 0: is a DynamicSlidingWindowLayer, which can't be restored exactly"),
        (linear, "layer 0: is a LinearAttentionLayer"),
        (quantised, "layer 2: is a QuantoQuantizedLayer"),
        (offloaded, "is an offloaded cache"),
        (static, "is a StaticCache, wanted a DynamicCache"),
        (batched, r"layer 0 key: has shape \[2, 2, 100, 16\], wanted \[1, kv_heads, tokens, head_dim\]"),
        (cropped, "99"),
        (emptied, "layer 1: is empty"),
        (without_a_layer, "holds layers 0-1, the identity says 0-2"),
        (halved, "layer 1 value: is bf16, the identity says fp32"),
    ],
)
def test_a_cache_that_can_not_be_had_back_is_refused(store: Store, tmp_path: Path, spoil: Any, why: str) -> None:
    model = load(make_model(tmp_path / "model"))
    cache = spoil(prefill(model, prompt(100)))
    with pytest.raises(BadInput, match=why):
        save_cache(store, "chat", cache, prompt(100), identity_of(store, model))
    assert store.ls() == []


@pytest.mark.slow
def test_the_script_prints_both_and_equal_tokens() -> None:
    script = Path(__file__).parents[2] / "scripts" / "recompute_or_load"
    command = [sys.executable, str(script), "--json", "--layers", "2", "--hidden", "256", "--tokens", "512"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout)
    assert found["tokens_equal"] is True
    assert found["tokens_loaded"] == 512
    assert min(found["recompute_s"], found["load_s"]) > 0
