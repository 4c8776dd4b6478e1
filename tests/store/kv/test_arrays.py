"""Arrays that a user hands in: those that don't fit are refused, with nothing stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from arstore import BadInput, Store, StoreError
from tests.support.kv_made import IDENTITY, Arrays, made
from tests.support.kv_store import TOKENS, match, store

__all__ = ["store"]  # a fixture


def spoiled(how: str) -> Arrays:
    arrays: dict[str, Any] = made(TOKENS)
    key = arrays["layers.1.key"]
    changes: dict[str, dict[str, Any]] = {
        "shape": {"layers.1.key": key.swapaxes(0, 1).copy()}, "rank": {"layers.1.key": key.reshape(70, 16)},
        "name": {"layers.x.key": key}, "layer 01": {"layers.01.key": key},
        "dtype": {"layers.1.key": key.view(np.int16)},
        "mixed": {"layers.1.key": key.view(np.uint16)}, "short": {"layers.1.key": key[:69].copy()},
        "strided": {"layers.1.key": np.asfortranarray(key)}, "reversed": {"layers.1.key": key[::-1]},
        "torch strided": {"layers.1.key": torch.from_numpy(np.asfortranarray(key))},
        "big-endian": {name: one.astype(">f2") for name, one in arrays.items()},
        "objects": {"layers.1.key": key.astype(object)}, "list": {"layers.1.key": key.tolist()},
        "nothing": {}, "empty": {"layers.1.key": key[:0].copy()},
        "complex": {"layers.1.key": torch.zeros(70, 2, 8, dtype=torch.complex128)},
        "sparse": {"layers.1.key": torch.from_numpy(key.astype(np.float32)).to_sparse()},
    }  # fmt: skip
    gone = {"no layer": "layers.1", "no value": "layers.1.value", "no first layer": "layers.0", "nothing": "layers"}
    arrays |= changes.get(how, {})
    return {name: one for name, one in arrays.items() if not name.startswith(gone.get(how, "-"))}


SPOILED = {
    "shape": r"layers.1.key is \[2, 70, 8\], wanted \[70, 70, 8\]",
    "rank": r"layers.1.key \[70, 16\] is not of layout NHD",
    "name": "tensor layers.x.key|'layers.x.key' is not layers.N.key", "layer 01": "'layers.01.key' is not",
    "dtype": "holds F16 and I16, wanted one dtype", "mixed": "holds F16 and U16, wanted one dtype",
    "short": r"layers.1.key is \[69, 2, 8\], wanted \[70, 2, 8\] for 70 tokens",
    "strided": "layers.1.key is not contig",
    "reversed": "layers.1.key is not contiguous", "torch strided": "layers.1.key is not contiguous in host memory",
    "big-endian": "dtype >f2 is not known", "objects": "dtype object is not known",
    "list": "layers.1.key is a list, wanted a tensor",
    "complex": "layers.1.key is torch.complex128", "sparse": "layers.1.key is not contiguous in host memory",
    "nothing": "holds nothing", "empty": r"layers.1.key is \[0, 2, 8\]", "no layer": "layer 1 is missing",
    "no value": "layers.1.value is missing", "no first layer": "layer 0 is missing",
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_kv_that_does_not_fit_is_refused_and_nothing_stored(store: Store, how: str) -> None:
    with pytest.raises(BadInput, match=SPOILED[how]) as refused:
        store.kv.put(spoiled(how), name="chat", tokens=TOKENS, identity=IDENTITY)
    assert "\n" not in str(refused.value)
    assert store.stats().stored_bytes == 0
    assert store.ls() == []


def test_a_file_that_changes_while_it_is_stored_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    save_file(made(TOKENS), path)

    def change(advance_bytes: int, total_bytes: int) -> None:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")

    with pytest.raises(StoreError, match="changed while"):
        store.kv.put(path, name="chat", tokens=TOKENS, identity=IDENTITY, progress=change)
    assert (store.ls(), match(store, TOKENS)) == ([], 0)
