"""Key bounds: a reader chooses pages of a prefix by them, and no key outside the chosen ones scores higher."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arstore import BadInput, Store, create_store, open_store
from tests.support.command import cli

IDENTITY = {"model": "m", "revision": "1", "precision": "bf16"}
TOKENS, PAGE = list(range(700)), 16


@pytest.fixture
def store() -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def kv(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layers.{n}.{side}": torch.randn(700, 4, 32).to(dtype) for n in range(2) for side in ("key", "value")}


def test_the_best_page_by_its_bound_holds_the_best_key(store: Store, tmp_path: Path) -> None:
    save_file(given := kv(), tmp_path / "kv.safetensors")
    words = ["--model", "m", "--revision", "1", "--precision", "bf16", "--tokens", ",".join(map(str, TOKENS))]
    assert cli("kv", "put", tmp_path / "kv.safetensors", "p", "--key-bounds", PAGE, *words).code == 0
    bounds = store.get("p/key-bounds").tensors()
    assert {name: list(tensor.shape) for name, tensor in bounds.items()} == {
        f"layers.{n}.key_{end}": [44, 4, 32] for n in range(2) for end in ("min", "max")
    }
    query = torch.randn(4, 32)
    for layer in range(2):
        keys = given[f"layers.{layer}.key"].float()
        low, high = (bounds[f"layers.{layer}.key_{end}"].float() for end in ("min", "max"))
        bound = torch.maximum(query * low, query * high).sum(-1)  # [pages, heads]
        scores = (query * keys).sum(-1)  # [tokens, heads]
        for page in range(44):
            assert (scores[page * PAGE : (page + 1) * PAGE] <= bound[page] + 1e-4).all()
    prefix = store.longest_prefix(TOKENS, IDENTITY)
    chosen = prefix.select(range(32, 48), layers=[1])
    assert torch.equal(chosen["layers.1.key"], given["layers.1.key"][32:48])
    assert prefix.bytes_read < sum(tensor.nbytes for tensor in given.values()) / 2


def test_dtypes_without_an_order_and_odd_pages_are_refused_before_anything_is_stored(store: Store) -> None:
    for tensors, page in ((kv(torch.float8_e4m3fn), PAGE), (kv(), -1)):
        with pytest.raises(BadInput):
            store.kv.put(tensors, name="p", tokens=TOKENS, identity=IDENTITY, key_bounds=page)
        assert store.ls() == []
