"""Carry out plans of a batch of prompts that share prefixes, in turns with fetching what each needs when it is needed.

The task is a JSON object: `store`, `folder` (an empty one), `block_bytes`, `sessions`, `rounds`. Prompts are the turns
of conversations, some of which share a system prompt, in a shuffled order; sleeping stands for the accelerator. The
answer: seconds of each way in each round, what was predicted, and counts. Before each way the segments are dropped from
the page cache.
"""

import json
import random
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import arstore
from arstore.store.plan.planfile import Plan
from arstore.store.staging.planned import Planned
from arstore.store.tiers.local import Local
from benchmark.programs.answers import answer_of_store
from benchmark.programs.blocks import drop

_IDENTITY = {"model": "llama", "revision": "r1", "precision": "bf16", "block_tokens": 64}
_BLOCK_TOKENS, _HEADS, _DIM = 64, 8, 128
_SYSTEMS, _SYSTEM_BLOCKS, _TURNS, _TURN_BLOCKS = 4, 3, 4, 2
_BUSY = 0.9  # seconds of computing for each second that LRU on demand fetches
_LIGHT = 0.3  # of that, where the prediction is looked at once more
_ORDERS = ("given", "prefix")


def conversations(sessions: int) -> list[list[int]]:
    """Return the token ids of every prompt, in the order in which they arrive."""
    chance = random.Random(1)
    prompts = []
    for session in range(sessions):
        system = [session % _SYSTEMS] * (_SYSTEM_BLOCKS * _BLOCK_TOKENS)
        said = [chance.randrange(1 << 17) for _ in range(_TURNS * _TURN_BLOCKS * _BLOCK_TOKENS)]
        prompts += [system + said[: (turn + 1) * _TURN_BLOCKS * _BLOCK_TOKENS] for turn in range(_TURNS)]
    chance.shuffle(prompts)
    return prompts


def put(store: arstore.Store, prompts: list[list[int]], block_bytes: int) -> None:
    """Store the KV of all prompts."""
    import numpy as np

    layers = block_bytes // (_BLOCK_TOKENS * 2 * _HEADS * _DIM * 2)
    chance = np.random.default_rng(2)
    for number, tokens in enumerate(sorted(prompts, key=len, reverse=True)):
        shape = (len(tokens), _HEADS, _DIM)
        kv = {
            f"layers.{n}.{side}": chance.integers(0, 1 << 15, shape, np.int16)
            for n in range(layers)
            for side in ("key", "value")
        }
        store.kv.put(kv, name=f"kv/{number}", tokens=tokens, identity=_IDENTITY, join=True)


def write_job(folder: Path, prompts: list[list[int]], budget_bytes: int, compute_s: float) -> Path:
    lines = [json.dumps({"id": n, "tokens": one, "compute_seconds": compute_s}) for n, one in enumerate(prompts)]
    (folder / "requests.jsonl").write_text("\n".join(lines))
    identity = "\n".join(f"{name} = {json.dumps(value)}" for name, value in _IDENTITY.items())
    (job := folder / "job.toml").write_text(
        f'[job]\nto = "host"\nrequests = "requests.jsonl"\n[budget]\nhost = {budget_bytes}\n[identity]\n{identity}\n'
    )
    return job


def planned(store: arstore.Store, plan: Plan) -> float:
    """Carry a plan out; return its seconds."""
    compute_s = {request.id: request.compute_s for request in plan.job.requests}
    began = time.perf_counter()
    with store.tiers.run(plan) as run:
        for request in run:
            time.sleep(compute_s[request.id])
        seconds = time.perf_counter() - began
    if run.failed:
        raise SystemExit(f"could not be staged: {run.failed}")
    return seconds


def on_demand(store: arstore.Store, plan: Plan) -> tuple[float, float]:
    """Fetch what each request needs when it is its turn, evicting what was used longest ago; return seconds in all, and
    of fetching.
    """
    job, tier = plan.job, store.tiers.arenas.host(plan.job.tiers[0].capacity_bytes)
    keys = Planned(plan, store.get, store.kv).keys()
    sources = store.tiers.arenas.sources(Local(store.get, store.kv.blocks_of(_IDENTITY)), "host", "local")
    there: OrderedDict[int, object] = OrderedDict()
    used, fetching = 0, 0.0
    began = time.perf_counter()
    for request in job.requests:
        start = time.perf_counter()
        for number in request.objects:
            if number in there:
                there.move_to_end(number)
        for number in request.objects:
            if number not in there:
                while used + job.objects[number].length_bytes > (job.tiers[0].capacity_bytes or 0):
                    old = there.popitem(last=False)[0]  # which lets go of it
                    used -= job.objects[old].length_bytes
                    if not tier.remove(keys[old]):
                        raise SystemExit("what was evicted is still in use")
                there[number] = sources.bring(keys[number], tier, wait=True)
                used += job.objects[number].length_bytes
        fetching += time.perf_counter() - start
        time.sleep(request.compute_s)
    seconds = time.perf_counter() - began
    there.clear()
    tier.sweep()
    return seconds, fetching


def drop_cache(store: Path) -> None:
    drop((store / "segments").iterdir())


def measure(store: arstore.Store, task: dict[str, Any]) -> dict[str, object]:
    root, folder, block_bytes = Path(task["store"]), Path(task["folder"]), int(task["block_bytes"])
    prompts = conversations(task["sessions"])
    put(store, prompts, block_bytes)
    store.tiers.arenas.probe()
    unique = _SYSTEMS * _SYSTEM_BLOCKS + task["sessions"] * _TURNS * _TURN_BLOCKS
    budget = unique // 8 * block_bytes

    def plan_for(budget_bytes: int, compute_s: float, order: str) -> Plan:
        return store.tiers.plan(write_job(folder, prompts, budget_bytes, compute_s), order=order)

    drop_cache(root)
    _, fetching = on_demand(store, plan_for(budget, 0.0, "given"))
    compute_s = _BUSY * fetching / len(prompts)
    times: dict[str, list[float]] = {"lru": [], "given": [], "prefix": []}
    errors: list[float] = []
    refetches: dict[str, int] = {}
    predicted: dict[str, list[float]] = {"given": [], "prefix": []}
    for _ in range(task["rounds"]):
        drop_cache(root)
        times["lru"].append(on_demand(store, plan_for(budget, compute_s, "given"))[0])
        for share in (1.0, _LIGHT):  # the second: where moving takes longer than computing
            for order in _ORDERS:
                store.tiers.arenas.probe()
                drop_cache(root)
                plan = plan_for(budget, share * compute_s, order)
                seconds = planned(store, plan)
                errors.append(plan.predicted_s / seconds - 1)
                if share == 1.0:
                    times[order].append(seconds)
                    predicted[order].append(plan.predicted_s)
                    refetches[order] = plan.refetches
    return {
        "times": times,
        "predicted": predicted,
        "errors": errors,
        "compute_s": compute_s * len(prompts),
        "requests": len(prompts),
        "blocks": unique,
        "budget_blocks": unique // 8,
        "refetches": refetches,
    }


if __name__ == "__main__":
    answer_of_store(measure)
