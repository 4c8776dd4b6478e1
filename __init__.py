"""arstore: a content-addressed, encrypted store for weights, prefix KV and intermediates.

with arstore.open_store("~/models") as store:
    store.put("path/to/checkpoint", name="llama")
    tensors = store.get("llama").tensors()
"""

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
    "StorageFailed",
    "Store",
    "StoreError",
    "attach",
    "create_store",
    "open_store",
]
