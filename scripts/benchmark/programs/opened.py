"""What a program that measures an open store does with its task: a JSON object in, the answer as another out."""

import json
import sys
from collections.abc import Callable
from typing import Any

import arstore


def answer(measure: Callable[[arstore.Store, dict[str, Any]], object]) -> None:
    """Print what is measured of the store that the task names."""
    task = json.loads(sys.argv[1])
    with arstore.open_store(task["store"]) as store:
        print(json.dumps(measure(store, task)))
