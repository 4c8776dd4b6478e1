"""Fill a store with many small artifacts.

The task is a JSON object: `store`, `count`. The answer: `seconds`.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import arstore


def fill(root: str, count: int) -> float:
    """Put `count` files of 1 KiB under as many names, one after the other, each durable; return the seconds."""
    with tempfile.TemporaryDirectory() as folder, arstore.open_store(root) as store:
        path = Path(folder) / "small"
        began = time.perf_counter()
        for number in range(count):
            path.write_bytes(number.to_bytes(8, "little") * 128)
            store.put(path, name=f"team-{number % 10}/run-{number // 10:04d}", kind="file")
        return time.perf_counter() - began


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"seconds": fill(given["store"], given["count"])}))
