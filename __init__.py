"""arstore: a content-addressed, encrypted store for weights, prefix KV and intermediates.

with arstore.open_store("~/models") as store:
    store.put("path/to/checkpoint", name="llama")
    tensors = store.get("llama").tensors()

Each name is imported when it is first used, so that a command loads only what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arstore.store.access import create_store, open_store
    from arstore.store.errors import (
        BadInput,
        Conflict,
        Corrupt,
        Fenced,
        KeyRefused,
        NoRoom,
        NoStore,
        NotFound,
        ReadOnly,
        StorageFailed,
        StoreError,
    )
    from arstore.store.staging.attach import attach
    from arstore.store.store import Store

__version__ = "0.1.0"
__all__ = [
    "BadInput",
    "Conflict",
    "Corrupt",
    "Fenced",
    "KeyRefused",
    "NoRoom",
    "NoStore",
    "NotFound",
    "ReadOnly",
    "StorageFailed",
    "Store",
    "StoreError",
    "attach",
    "create_store",
    "open_store",
]

_ROOMS = {
    "Store": "store.store",
    "attach": "store.staging.attach",
    "create_store": "store.access",
    "open_store": "store.access",
}  # all other names are errors

if not TYPE_CHECKING:  # a type checker that saw this would take every name for one that is there

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'arstore' has no attribute {name!r}")
        room = import_module(f"arstore.{_ROOMS.get(name, 'store.errors')}")
        globals()[name] = getattr(room, name)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
