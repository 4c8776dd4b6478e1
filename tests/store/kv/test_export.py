"""Export: every layout that is put comes out of every layout, as tensors and as a file."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from arstore import BadInput, Store
from arstore.formats.kv_layout import LAYOUTS
from tests.support.kv_made import IDENTITY, made, raw
from tests.support.kv_store import TOKENS, store

__all__ = ["store"]  # a fixture


@pytest.mark.parametrize("given", LAYOUTS)
def test_every_layout_in_and_out(store: Store, tmp_path: Path, given: str) -> None:
    paged = {"page_tokens": 4} if "paged" in given else {}
    identity = IDENTITY | {"layout": given} | paged
    save_file(made(TOKENS, layout=given), tmp_path / "kv.safetensors")
    store.kv.put(tmp_path / "kv.safetensors", name="chat", tokens=TOKENS, identity=identity)
    hit = store.longest_prefix(TOKENS, identity)
    assert raw(hit.tensors()) == raw(made(TOKENS, layout=given))
    for wanted in LAYOUTS:
        pages = 4 if "paged" in wanted and not paged else None  # where the identity says it, nobody else need
        assert raw(store.kv.open("chat").tensors(layout=wanted, page_tokens=pages)) == raw(made(TOKENS, layout=wanted))
    store.kv.write(hit, tmp_path / "out.safetensors")
    assert raw(load_file(tmp_path / "out.safetensors")) == raw(load_file(tmp_path / "kv.safetensors"))
    store.get_to("chat", tmp_path / "whole.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_pages_are_what_the_identity_says(store: Store, tmp_path: Path) -> None:
    paged = IDENTITY | {"layout": "paged-NHD"}
    for said in ({}, {"page_tokens": 8}):
        with pytest.raises(BadInput, match="page_tokens"):
            store.kv.put(made(TOKENS, layout="paged-NHD"), name="chat", tokens=TOKENS, identity=paged | said)
    assert store.stats().stored_bytes == 0
    flat = IDENTITY | {"page_tokens": 8}  # of the engine, whose pages are not those of the file
    store.kv.put(made(TOKENS), name="chat", tokens=TOKENS, identity=flat)
    hit = store.longest_prefix(TOKENS, flat)
    assert raw(hit.tensors()) == raw(made(TOKENS))
    assert raw(hit.tensors(layout="paged-HND")) == raw(made(TOKENS, layout="paged-HND", page=8))
    store.kv.write(hit, tmp_path / "out")
    assert raw(load_file(tmp_path / "out")) == raw(made(TOKENS))
