"""Identities, key ids and prefix blocks, FORMAT.md section 8. The texts of values were worked out by hand."""

import struct
from collections.abc import Mapping, Sequence

from golden.primitives import Json, derive, digest, fixed, keyed

PROVENANCE = ("engine", "engine_version", "attention_backend", "chunk_schedule", "hardware", "framework")
TEXTS = (
    "model", "revision", "weights", "precision", "adapter", "quantisation", "scales", "rope", "architecture", "config",
    "attention", "window", "layer_kinds", "layer", "module", "layout", "shard", "encoding", "tokenizer", "sequence",
    "embeddings", "draft", "salt", *PROVENANCE,
)  # fmt: skip
COUNTS = (
    "rope_original_positions", "attention_chunk", "sinks", "heads", "kv_heads", "head_dim", "page_tokens",
    "block_tokens", "start", "step",
)  # fmt: skip
NUMBERS = ("adapter_scale", "rope_theta", "rope_factor", "rope_partial")
HASH, OTHER = "0f" * 16, "ab" * 64  # the shortest and the longest digest of a content

GOOD: list[tuple[Json, Json]] = [
    ({}, {}),
    ({"model": "llama"}, {"model": "llama"}),
    ({"layer": 3, "positions": "007:0512", "model": "模型"}, {"layer": "3", "positions": "7:512", "model": "模型"}),
    ({"revision": "unspecified", "rope": None, "strict": None, "model": "m"}, {"model": "m"}),
    ({"positions": "5:5"}, {"positions": "5:5"}),
    (dict.fromkeys(TEXTS, " x\n"), dict.fromkeys(TEXTS, " x\n")),
    ({"layer": -7, "step": 0}, {"layer": "-7", "step": "0"}),
    (dict.fromkeys(COUNTS, "0128"), dict.fromkeys(COUNTS, "128")),
    ({"heads": 10**19 - 1, "start": "0"}, {"heads": "9999999999999999999", "start": "0"}),
    (dict.fromkeys(NUMBERS, 8.0), dict.fromkeys(NUMBERS, "8")),
    ({"rope_theta": "5e5", "rope_factor": 0.1, "rope_partial": "-0.0"},
     {"rope_theta": "500000", "rope_factor": "0.1", "rope_partial": "0"}),
    ({"rope_theta": 2**53 - 1, "rope_factor": 2**53, "rope_partial": "1e16"},
     {"rope_theta": "9007199254740991", "rope_factor": "9007199254740992.0", "rope_partial": "1e+16"}),
    ({"rope_theta": "0.0001", "rope_factor": 0.00002, "rope_partial": -2.5e-7, "adapter_scale": "1e300"},
     {"rope_theta": "0.0001", "rope_factor": "2e-05", "rope_partial": "-2.5e-07", "adapter_scale": "1e+300"}),
    ({"adapter_targets": ["v_proj", "q_proj", "v_proj"]}, {"adapter_targets": "q_proj,v_proj"}),
    ({"adapter_targets": ["unspecified"]}, {}),
    ({"adapter_targets": "b,B,é,a"}, {"adapter_targets": "B,a,b,é"}),
    ({"rope_sections": [16, 24, 24]}, {"rope_sections": "[16,24,24]"}),
    ({"rope_scaling": '{ "type":"yarn", "factor":4.0, "a":[1e-5, 1E16, true, null], "ü":"\\u00fc\\n" }'},
     {"rope_scaling": '{"a":[1e-05,1e+16,true,null],"factor":4.0,"type":"yarn","ü":"ü\\n"}'}),
    ({"rope_scaling": {"b": {}, "a": -0.0}, "rope_sections": str(10**30)},
     {"rope_scaling": '{"a":-0.0,"b":{}}', "rope_sections": str(10**30)}),
    ({"layers": [5, 0, 1, 2, 2]}, {"layers": "0-2,5"}),
    ({"layers": "20,0-15,16,4095"}, {"layers": "0-16,20,4095"}),
    ({"layers": 7}, {"layers": "7"}),
    ({"contents": [f"{OTHER}@1031", f"{HASH}@07", f"{OTHER}@7"]}, {"contents": f"{HASH}@7,{OTHER}@7,{OTHER}@1031"}),
    ({"strict": "yes"}, {"strict": "yes"}),
    ({"strict": True}, {"strict": "yes"}),
]  # fmt: skip

BAD: list[tuple[str, Json]] = [
    ("a field that is not known", {"colour": "red"}), ("a field in capitals", {"Model": "m"}),
    ("an empty value", {"model": ""}), ("a NUL", {"model": "a\0b"}),
    ("a boolean", {"layer": True}), ("a fraction", {"layer": 1.5}), ("a list", {"layer": [1]}),
    ("a lone surrogate", {"model": "\ud800"}), ("positions without a colon", {"positions": "7"}),
    ("positions that go backwards", {"positions": "9:7"}), ("negative positions", {"positions": "-1:7"}),
    ("positions with no end", {"positions": "7:"}), ("positions that are no number", {"positions": "a:b"}),
    ("positions of 20 digits", {"positions": f"0:{10**19}"}),
    ("a negative count", {"heads": -1}), ("a count with a fraction", {"heads": 1.0}), ("an empty count", {"heads": ""}),
    ("a count of 20 digits", {"heads": 10**19}), ("a count in words", {"heads": "eight"}), ("true", {"heads": True}),
    ("a number that is none", {"rope_theta": "nan"}), ("an infinite number", {"rope_theta": "inf"}),
    ("a number above all floats", {"rope_theta": "1e309"}), ("a number that is true", {"rope_theta": True}),
    ("a number that is a list", {"rope_theta": [1]}), ("an empty number", {"rope_theta": ""}),
    ("text that is not JSON", {"rope_scaling": "yarn"}), ("JSON with NaN", {"rope_scaling": "[NaN]"}),
    ("JSON with more behind it", {"rope_scaling": "[1] 2"}), ("JSON that is empty", {"rope_sections": ""}),
    ("JSON with a lone surrogate", {"rope_sections": '"\\ud800"'}),
    ("no names", {"adapter_targets": []}), ("an empty name", {"adapter_targets": "a,,b"}),
    ("a name with a comma", {"adapter_targets": ["a,b"]}), ("a name that is a number", {"adapter_targets": [1]}),
    ("no layers", {"layers": []}), ("layers that go backwards", {"layers": "5-3"}), ("layer 4,096", {"layers": "4096"}),
    ("a run past the last layer", {"layers": "0-4096"}), ("negative layers", {"layers": "-1"}),
    ("layers with blanks", {"layers": "0, 1"}), ("an empty layer", {"layers": "0,,1"}),
    ("layer true", {"layers": [True]}),
    ("contents without a position", {"contents": HASH}), ("a digest of 31 digits", {"contents": f"{HASH[1:]}@7"}),
    ("a digest of 129 digits", {"contents": f"{OTHER}a@7"}), ("a digest in capitals", {"contents": f"{'AB' * 16}@7"}),
    ("no contents", {"contents": []}), ("a position of 11 digits", {"contents": f"{HASH}@{10**10}"}),
    ("strict that is no", {"strict": "no"}), ("strict that is false", {"strict": False}),
    ("strict in capitals", {"strict": "YES"}),
]  # fmt: skip

# Each is taken from a user and made canonical; where a manifest says it, it is refused.
NOT_CANONICAL: list[tuple[str, str]] = [
    ("heads", "08"), ("positions", "07:9"), ("rope_theta", "8.0"), ("rope_theta", "1e4"), ("rope_theta", "-0"),
    ("rope_theta", "9007199254740992"), ("rope_theta", "1e16"), ("rope_theta", "0.10"), ("rope_theta", "+1"),
    ("rope_scaling", '{"b":1,"a":2}'), ("rope_scaling", '{"a": 1}'), ("rope_scaling", '"\\u00fc"'),
    ("rope_scaling", "1e4"), ("rope_scaling", "4.00"), ("adapter_targets", "b,a"), ("adapter_targets", "a,a"),
    ("layers", "0,1"), ("layers", "3,1"), ("layers", "1-1"), ("layers", "0-2,3"), ("layers", "00"),
    ("contents", f"{HASH}@9,{HASH}@7"), ("contents", f"{HASH}@07"), ("contents", f"{OTHER}@7,{HASH}@7"),
    ("model", "unspecified"), ("adapter_targets", "unspecified"),
]  # fmt: skip


def key_of(digest_key: bytes) -> bytes:
    return derive(digest_key, "identity")


def key_id(digest_key: bytes, kind: str, identity: Mapping[str, str]) -> bytes:
    """Return the id of an identity whose texts are canonical."""
    counted = [name for name in sorted(identity) if "strict" in identity or name not in PROVENANCE]
    parts = ["identity", "1", kind, *(part for name in counted for part in (name, identity[name]))]
    return keyed(key_of(digest_key), *(part.encode() for part in parts))


def block_ids(digest_key: bytes, root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    found, parent = [], root
    for at in range(0, len(tokens), block_tokens):
        block = tokens[at : at + block_tokens]
        parent = digest(key_of(digest_key), parent + struct.pack(f"<{len(block)}I", *block))
        found.append(parent)
    return found


def identities() -> Json:
    digest_key = fixed("a digest key")
    plain = {"model": "m", "revision": "1", "precision": "bf16", "block_tokens": "4"}
    computed = plain | {"engine": "vllm", "hardware": "h100"}
    named: list[tuple[str, str, Json]] = [
        ("without fields", "kv", {}), ("KV", "kv", plain), ("of another kind", "intermediate", plain),
        ("with provenance: as without", "kv", computed),
        ("strict, without provenance", "kv", plain | {"strict": "yes"}),
        ("strict, with provenance", "kv", computed | {"strict": "yes"}),
        ("other provenance", "kv", plain | {"strict": "yes", "engine": "sglang", "hardware": "h100"}),
        ("a field and its value that change places", "kv", {"model": "revision", "revision": "model"}),
        ("in Chinese", "kv", plain | {"model": "模型"}), ("of every text", "weights", dict.fromkeys(TEXTS, "x")),
    ]  # fmt: skip
    keys = [
        {"name": name, "kind": kind, "identity": identity, "id": key_id(digest_key, kind, identity).hex()}
        for name, kind, identity in named
    ]
    root = key_id(digest_key, "kv", plain)
    sequences = [
        ("two blocks", list(range(8)), 4), ("a short last block", list(range(10)), 4), ("shorter than a block", [7], 4),
        ("another first token", [1, *range(1, 8)], 4), ("blocks of one token", [0, 2**32 - 1, 0], 1),
        ("one block of all", list(range(8)), 65536),
    ]  # fmt: skip
    blocks = [
        {"name": name, "root": root.hex(), "tokens": tokens, "block_tokens": count,
         "ids": [id_.hex() for id_ in block_ids(digest_key, root, tokens, count)]}
        for name, tokens, count in sequences
    ]  # fmt: skip
    return {
        "digest_key": digest_key.hex(),
        "good": [{"fields": fields, "identity": identity} for fields, identity in GOOD],
        "bad": [{"why": why, "fields": fields} for why, fields in BAD],
        "not_canonical": [{"field": field, "text": text} for field, text in NOT_CANONICAL],
        "keys": keys,
        "blocks": blocks,
    }  # fmt: skip
