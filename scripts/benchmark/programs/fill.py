"""Fill a store with many small artifacts.

The task is a JSON object: `store`, `count`. The answer: `seconds`.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import arstore
from benchmark.programs.answers import answer_of_store


def fill(store: arstore.Store, task: dict[str, Any]) -> dict[str, float]:
    """Put `count` files of 1 KiB under as many names, one after the other, each durable."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small"
        began = time.perf_counter()
        for number in range(task["count"]):
            path.write_bytes(number.to_bytes(8, "little") * 128)
            store.put(path, name=f"team-{number % 10}/run-{number // 10:04d}", kind="file")
        return {"seconds": time.perf_counter() - began}


if __name__ == "__main__":
    answer_of_store(fill)
