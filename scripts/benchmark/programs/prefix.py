"""Find, load and put prefix KV, in turns with what people do to plain files and arrays instead.

The task is a JSON object: `store`, `folder` (an empty one, on the same disk), `bytes` (of KV to load), `tokens` and
`block_tokens` of the prompt to find, `blocks` (how many others the catalog holds the second time), `rounds`. The
answer: the seconds of each round, of one call each where a round makes several.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import arstore
from benchmark.programs.answers import answer_of_store
from benchmark.programs.blocks import sync
from benchmark.programs.memory import back

_IDENTITY = {"model": "llama", "revision": "r1", "precision": "bf16"}
_LAYERS, _HEADS, _DIM = 32, 8, 128  # of Llama 3 8B
_CALLS = 20
_VERSIONS, _SMALL_BLOCK = 4, 16

Timed = dict[str, list[float]]


def measure(store: arstore.Store, task: dict[str, Any]) -> Timed:
    many = {"path": Path(task["folder"]) / "many", "key_file": Path(task["folder"]) / "key"}
    arstore.create_store(**many)
    with arstore.open_store(**many) as among:
        return move(store, task) | find(store, among, task)


def find(alone: arstore.Store, among: arstore.Store, task: dict[str, Any]) -> Timed:
    """Time hashing a prompt and finding its longest prefix, all of it stored, in a store of its own and among many
    other blocks.
    """
    import numpy as np

    from arstore.store.kv.identity import complete, make_kv_identity
    from arstore.store.kv.match import Chain, chain_of
    from arstore.store.kv.tokens import pack_tokens

    chance, identity = np.random.default_rng(1), _IDENTITY | {"block_tokens": task["block_tokens"]}
    tokens = chance.integers(0, 1 << 17, task["tokens"])
    kv = {"layers.0.key": chance.integers(0, 256, (len(tokens), 1, 1), np.uint8)}
    packed, wanted = pack_tokens(tokens), complete(make_kv_identity(identity))

    def hashed(store: arstore.Store) -> Chain:
        return chain_of(store._parts.keys.tenant.digest_key, wanted, packed, task["block_tokens"])

    stores = {"": alone, "_many": among}
    chains = {name: hashed(store) for name, store in stores.items()}
    for store in stores.values():
        store.kv.put(kv, name="prompt", tokens=tokens, identity=identity)
    fill(among, task["blocks"])
    found: Timed = {what + name: [] for what in ("hash", "match") for name in stores}

    def match(name: str) -> None:
        if stores[name].kv.match(chains[name], wanted).tokens_count != len(tokens):
            raise SystemExit("the prompt that was put was not found whole")

    for turn in range(task["rounds"] + 1):
        for name, store in stores.items():
            seconds = {"hash": timed(partial(hashed, store)), "match": timed(partial(match, name))}
            for what in seconds if turn else ():  # the first turn warms what is warm in the others
                found[what + name].append(seconds[what] / _CALLS)
    return found


def fill(store: arstore.Store, blocks: int) -> None:
    """Put a few sequences of ever so many blocks, whose KV is all zeros and so is one blob."""
    import numpy as np

    chance, identity = np.random.default_rng(2), _IDENTITY | {"block_tokens": _SMALL_BLOCK}
    for number in range(_VERSIONS):
        tokens = chance.integers(0, 1 << 17, blocks // _VERSIONS * _SMALL_BLOCK)
        kv = {"layers.0.key": np.zeros((len(tokens), 1, 1), np.uint8)}
        store.kv.put(kv, name=f"many/{number}", tokens=tokens, identity=identity)


def move(store: arstore.Store, task: dict[str, Any]) -> Timed:
    """Time putting and loading KV of a model, in turns with copying arrays and with plain safetensors files."""
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    count = int(task["bytes"]) // (_LAYERS * 2 * _HEADS * _DIM * 2)
    chance, tokens = np.random.default_rng(3), list(range(count))
    kv = {
        f"layers.{n}.{side}": torch.from_numpy(chance.integers(0, 1 << 15, (count, _HEADS, _DIM), np.int16))
        for n in range(_LAYERS)
        for side in ("key", "value")
    }
    plain = Path(task["folder"]) / "kv.safetensors"

    def put() -> object:
        return store.kv.put(kv, name="kv", tokens=tokens, identity=_IDENTITY)

    def save() -> None:
        save_file(kv, plain)
        sync(plain)

    def copy() -> object:
        copies = {name: np.empty(tuple(one.shape), np.int16) for name, one in kv.items()}
        for name, one in kv.items():
            np.copyto(copies[name], one.numpy())
        return copies

    def load(layout: str) -> object:
        return store.longest_prefix(tokens, _IDENTITY).tensors(layout=layout)

    def first() -> object:
        return next(store.longest_prefix(tokens, _IDENTITY).stream(ahead=0))

    ways: dict[str, Callable[[], object]] = {
        "put": put,
        "save": save,
        "nhd": lambda: load("NHD"),
        "hnd": lambda: load("HND"),
        "copy": copy,
        "file": lambda: {name: one.clone() for name, one in load_file(plain).items()},
        "first": first,
        "stream": lambda: [list(t.values()) for _, t in store.longest_prefix(tokens, _IDENTITY).stream()],
    }
    found: Timed = {name: [] for name in ways}
    for turn in range(task["rounds"] + 1):
        for one in kv.values():
            one[::64, 0, 0] += 1  # of every block, so that nothing of it is stored
        for name, work in ways.items():
            if name == "nhd":
                load("NHD")  # brings the segments into the page cache, where the file is already
            back(int(task["bytes"]) * 5 // 4)
            seconds = timed(work, calls=1)
            found[name] += [seconds] if turn else []  # the first turn warms what is warm in the others
        store.erase("kv")
    return found


def timed(work: Callable[[], object], calls: int = _CALLS) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        kept = work()  # let go of when the clock stands
    seconds = time.perf_counter() - began
    del kept
    return seconds


if __name__ == "__main__":
    answer_of_store(measure)
