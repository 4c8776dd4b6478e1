"""Tensors that can't be read: they are said wherever all are asked for, listed with the reason, and never lost."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from arstore import BadInput, Store, create_store, open_store
from tests.support.command import cli

WHY = {"q": "is quantised", "s": "is sparse", "c": "is yet to be conjugated or negated", "m": "has no values (meta)"}


@pytest.fixture
def mixed(tmp_path: Path) -> Store:
    """A checkpoint of one plain tensor and some that safetensors can't hold."""
    (tmp_path / "model").mkdir()
    plain = torch.arange(12.0).reshape(3, 4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONWARNINGS", "ignore")
        quantised = torch.quantize_per_tensor(plain, 0.1, 10, torch.quint8)
    weights = {
        "layers.0.w": plain, "layers.1.q": quantised, "layers.2.s": plain.to_sparse(),
        "layers.3.c": torch.tensor([1 + 2j]).conj(), "layers.4.m": torch.empty(3, device="meta"),
    }  # fmt: skip
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    create_store()
    store = open_store()
    store.put(tmp_path / "model", name="mix")
    return store


def test_show_lists_them_with_the_reason(mixed: Store) -> None:
    shown = cli("show", "mix", "--json").json
    assert [tensor["name"] for tensor in shown["tensors"]] == ["layers.0.w"]
    listed = {tensor["name"].rpartition(".")[2]: tensor["why"] for tensor in shown["unreadable"]}
    assert listed == WHY
    assert {tensor["file"] for tensor in shown["unreadable"]} == {"pytorch_model.bin"}
    text = cli("show", "mix").out
    assert all(why in text for why in WHY.values())


@pytest.mark.parametrize("flags", [("--tensor", "*"), ("--layer", "2"), ("--tensor", "*.q"), ("--shard", "0/1")])
def test_who_asks_for_all_gets_all_or_an_error_that_names_the_rest(
    mixed: Store, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    done = cli("get", "mix", tmp_path / "out", *flags)
    assert done.code == 2
    assert "can't be read" in done.error
    assert not (tmp_path / "out").exists()
    skipped = cli("get", "mix", tmp_path / "out", *flags, "--skip-unreadable")
    if flags[1] in ("2", "*.q"):
        assert skipped.code == 3  # nothing else is picked
    else:
        assert skipped.code == 0, skipped.err
        assert load_file(tmp_path / "out").keys() == {"layers.0.w"}


def test_the_library_says_it_too(mixed: Store) -> None:
    artifact = mixed.get("mix")
    with pytest.raises(BadInput, match=r"mix@1: 4 tensors can't be read: layers\.1\.q is quantised"):
        artifact.tensors()
    with pytest.raises(BadInput, match=r"layers\.2\.s is sparse"):
        artifact.tensors(["layers.2.s"])
    assert artifact.tensors(skip_unreadable=True).keys() == {"layers.0.w"}
    assert artifact.tensors(["layers.0.w"]).keys() == {"layers.0.w"}


def test_what_is_staged_has_the_whole_file(mixed: Store, tmp_path: Path) -> None:
    with mixed.prefetch(["mix"]) as staged:
        content = bytes(staged["mix"].files["pytorch_model.bin"])
        assert list(staged["mix"]) == ["layers.0.w"]
    assert content == (tmp_path / "model" / "pytorch_model.bin").read_bytes()


def test_the_files_come_back(mixed: Store, tmp_path: Path) -> None:
    assert cli("get", "mix", tmp_path / "out").code == 0
    source = (tmp_path / "model" / "pytorch_model.bin").read_bytes()
    assert (tmp_path / "out" / "pytorch_model.bin").read_bytes() == source


def test_numpy_arrays_that_are_no_plain_tensors(tmp_path: Path) -> None:
    arrays = {"a": np.ones(3, "f4"), "big": np.ones(3, ">f4"), "text": np.array(["x"]), "pair": np.ones(2, "i4,f4")}
    np.savez(tmp_path / "some.npz", **arrays)  # type: ignore[arg-type]
    create_store()
    with open_store() as store:
        store.put(tmp_path / "some.npz", name="arrays")
        unread = {left.name: left.why for left in store.get("arrays").manifest.unread}
        assert unread.keys() == {"big", "text", "pair"}
        assert "dtype >f4" in unread["big"]
        with pytest.raises(BadInput, match="3 tensors can't be read"):
            store.get("arrays").tensors()


def test_compressed_arrays_and_records(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros(1000, "f4"))
    saved = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(tmp_path / "packed.pt", "w") as packed:
        for entry in source.infolist():
            deflated = zipfile.ZIP_DEFLATED if "/data/" in entry.filename else zipfile.ZIP_STORED
            packed.writestr(entry.filename, source.read(entry), deflated)
    create_store()
    with open_store() as store:
        for name, tensor in (("packed.npz", "a"), ("packed.pt", "w")):
            store.put(tmp_path / name, name=name)
            [left] = store.get(name).manifest.unread
            assert (left.name, left.why) == (tensor, "is compressed in its file")


def test_a_key_that_is_no_text_is_said(tmp_path: Path) -> None:
    torch.save({("a", 1): torch.ones(2), "w": torch.ones(2)}, tmp_path / "model.pt")
    create_store()
    with open_store() as store:
        store.put(tmp_path / "model.pt", name="model")
        [left] = store.get("model").manifest.unread
        assert left.why == "stands under a key that is no text"
        assert store.get("model").tensors(skip_unreadable=True).keys() == {"w"}
