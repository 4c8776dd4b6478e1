"""Plan a trace of requests in both orders, nothing moving.

The task is a JSON object: `store`, `folder` (an empty one), `trace` (JSON lines with `hash_ids`), `block_bytes`,
`share` (of all unique blocks, that fits). The answer: seconds and sums of each order.
"""

import json
import time
from pathlib import Path
from typing import Any

import arstore
from benchmark.programs.answers import answer_of_store


def measure(store: arstore.Store, task: dict[str, Any]) -> dict[str, object]:
    trace, folder = Path(task["trace"]), Path(task["folder"])
    requests = [json.loads(line)["hash_ids"] for line in trace.read_text().splitlines() if line.strip()]
    unique = len({number for one in requests for number in one})
    budget = int(unique * task["share"]) * task["block_bytes"]
    (folder / "requests.jsonl").write_text("".join(f"{json.dumps({'hash_ids': one})}\n" for one in requests))
    (job := folder / "job.toml").write_text(
        f'[job]\nto = "host"\nrequests = "requests.jsonl"\nblock_bytes = {task["block_bytes"]}\n'
        f"[budget]\nhost = {budget}\n"
    )
    found: dict[str, object] = {"requests": len(requests), "blocks": unique}
    store.tiers.arenas.probe()
    for order in ("given", "prefix"):
        began = time.perf_counter()
        plan = store.tiers.plan(job, order=order)
        seconds = time.perf_counter() - began
        found[order] = {"seconds": seconds, "live_peak_bytes": plan.live_peak_bytes, "refetches": plan.refetches}
    return found


if __name__ == "__main__":
    answer_of_store(measure)
