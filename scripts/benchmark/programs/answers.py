"""What a program does with its task: a JSON object in its first argument, the answer as another on stdout."""

import json
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import arstore


def answer(measure: Callable[[dict[str, Any]], object]) -> None:
    """Print what is measured for the task."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


def import_all_of_arstore() -> None:
    """Import every module of arstore. It imports most of them when they are first used, which would be measured."""
    import arstore

    for module in pkgutil.walk_packages(arstore.__path__, "arstore."):
        import_module(module.name)


def answer_of_store(measure: "Callable[[arstore.Store, dict[str, Any]], object]") -> None:
    """Print what is measured of the store that the task names."""

    def opened(task: dict[str, Any]) -> object:
        import arstore  # here, because the peers' environment has none

        with arstore.open_store(task["store"]) as store:
            return measure(store, task)

    answer(opened)
