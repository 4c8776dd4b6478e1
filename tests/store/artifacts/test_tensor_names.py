"""Tensor names: what tensors of several files are called, and what a name, a glob, a layer or a rule means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from arstore import BadInput, NotFound, Store, create_store, open_store
from arstore.store.artifacts.select import COLWISE, Selection, Shard
from arstore.store.artifacts.tensor_names import TensorNames
from tests.support.command import cli


@pytest.fixture
def store(tmp_path: Path) -> Store:
    create_store()
    return open_store()


def twins(tmp_path: Path, **files: dict[str, float]) -> Path:
    """Make a directory of weight files, each with tensors of one value."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, values in files.items():
        tensors = {key: np.full((4, 4), value, "f4") for key, value in values.items()}
        save_file(tensors, folder / f"{name.replace('_', '.')}.safetensors")
    return folder


def got(store: Store, tmp_path: Path, **wanted: object) -> dict[str, float]:
    """Return the value of each tensor that a selection of `model` gives."""
    store.get_to("model", tmp_path / "out.safetensors", Selection(**wanted))  # type: ignore[arg-type]
    return {name: float(array.flat[0]) for name, array in load_file(tmp_path / "out.safetensors").items()}


@pytest.fixture
def apart(store: Store, tmp_path: Path) -> Store:
    """Two files that differ in `layers.N.w` and have the same `norm`; their names hold numbers."""
    values = [{f"layers.{n}.w": 10.0 * file + n for n in range(3)} | {"norm": 7.0} for file in (0, 1)]
    store.put(twins(tmp_path, model_00=values[0], model_01=values[1]), name="model")
    return store


def test_a_layer_is_told_from_the_tensors_own_name(apart: Store, tmp_path: Path) -> None:
    for layer in range(3):
        names = [f"model.0{file}.safetensors:layers.{layer}.w" for file in (0, 1)]
        assert got(apart, tmp_path, layers=(layer,)) == {names[0]: layer, names[1]: 10.0 + layer}
    with pytest.raises(NotFound, match="--layer 3: no tensor belongs to this layer"):
        got(apart, tmp_path, layers=(3,))


def test_the_same_bytes_go_by_their_own_name(apart: Store, tmp_path: Path) -> None:
    assert got(apart, tmp_path, globs=("norm",)) == {"norm": 7.0}
    assert got(apart, tmp_path, globs=("model.01.safetensors:norm",)) == {"norm": 7.0}
    assert apart.get("model").tensors(["norm"])["norm"][0, 0] == 7
    assert apart.get("model").tensors(["model.00.safetensors:norm"]).keys() == {"model.00.safetensors:norm"}


def test_a_name_in_which_files_differ_is_refused_with_the_names_that_work(apart: Store, tmp_path: Path) -> None:
    full = "model.00.safetensors:layers.1.w, model.01.safetensors:layers.1.w"
    for wanted in ({"globs": ("layers.1.w",)}, {"slices": (("layers.1.w", 0, 2),)}):
        with pytest.raises(BadInput, match="stands in several files with different bytes") as caught:
            got(apart, tmp_path, **wanted)
        assert caught.value.hint == f"give one of {full}"
    with pytest.raises(BadInput, match=r"layers\.1\.w: stands in several files"):
        apart.get("model").tensors(["layers.1.w"])
    for name in full.split(", "):
        assert got(apart, tmp_path, globs=(name,)).keys() == {name}
        assert got(apart, tmp_path, slices=((name, 0, 2),)).keys() == {name}
        assert apart.get("model").tensors([name]).keys() == {name}
    assert len(got(apart, tmp_path, globs=("*:layers.1.w",))) == 2
    assert len(got(apart, tmp_path, globs=("*",))) == 7


def test_what_show_prints_can_be_asked_for(apart: Store, tmp_path: Path) -> None:
    shown = cli("show", "model", "--json").json["tensors"]
    assert len(shown) == 8
    for tensor in shown:
        assert got(apart, tmp_path, globs=(tensor["name"],)).keys() == {tensor["name"]}
    text = cli("show", "model").out
    assert text.count("norm") == 1
    assert "model.01.safetensors:layers.2.w" in text


def test_staged_tensors_go_by_the_same_names(apart: Store) -> None:
    with apart.prefetch(["model"]) as staged:
        tensors = staged["model"]
        assert tensors["norm"][0, 0] == 7
        assert tensors["model.01.safetensors:layers.2.w"][0, 0] == 12
        with pytest.raises(KeyError, match=r"layers.2.w stands in several files.*model\.00\.safetensors:layers\.2\.w"):
            tensors["layers.2.w"]
        with pytest.raises(KeyError, match="'other'"):
            tensors["other"]


def test_formats_of_one_repository_go_by_one_name(store: Store, tmp_path: Path) -> None:
    folder = twins(tmp_path, model={"layers.0.w": 1.0, "layers.1.w": 2.0})
    weights = {name: torch.full((4, 4), value) for name, value in (("layers.0.w", 1.0), ("layers.1.w", 2.0))}
    torch.save(weights, folder / "pytorch_model.bin")
    store.put(folder, name="model")
    assert got(store, tmp_path, globs=("layers.*",)) == {"layers.0.w": 1.0, "layers.1.w": 2.0}
    assert store.get("model").tensors().keys() == weights.keys()
    manifest = store.get("model").manifest
    assert TensorNames(manifest).of_each == ["layers.0.w", "layers.1.w"] * 2


def test_other_shapes_or_dtypes_of_the_same_bytes_are_not_the_same(store: Store, tmp_path: Path) -> None:
    folder = twins(tmp_path, a={"w": 0.0})
    save_file({"w": np.zeros((2, 8), "f4")}, folder / "b.safetensors")
    save_file({"w": np.zeros((4, 4), "i4")}, folder / "c.safetensors")
    store.put(folder, name="model")
    assert store.get("model").tensors().keys() == {f"{file}.safetensors:w" for file in "abc"}


# ---- what matches nothing is an error


def test_rules_of_a_plan_name_modules_in_every_folder(apart: Store, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"layers.*": "colwise"}')
    done = cli("get", "model", tmp_path / "out", "--shard", "0/2", "--tp-plan", tmp_path / "plan.json")
    assert done.code == 0, done.err
    shapes = {name: array.shape for name, array in load_file(tmp_path / "out").items()}
    assert shapes.pop("norm") == (4, 4)
    assert set(shapes.values()) == {(2, 4)}


def test_each_rule_that_names_no_tensor_is_an_error(apart: Store, tmp_path: Path) -> None:
    plan = (("layers.*", COLWISE), ("layer.*.w", COLWISE))
    with pytest.raises(NotFound, match=r"--tp-plan layer\.\*\.w: names no tensor"):
        got(apart, tmp_path, shard=Shard(0, 2), plan=plan)
    assert len(got(apart, tmp_path, shard=Shard(0, 2), plan=plan, allow_unmatched=True)) == 7


def test_a_rule_may_name_what_is_not_selected(apart: Store, tmp_path: Path) -> None:
    assert got(apart, tmp_path, globs=("norm",), shard=Shard(0, 2), plan=(("layers.*", COLWISE),)) == {"norm": 7.0}


def test_a_user_may_allow_that_some_match_nothing(apart: Store, tmp_path: Path) -> None:
    done = cli("get", "model", tmp_path / "out", "--tensor", "norm", "--tensor", "nrom", "--layer", "9")
    assert (done.code, done.error) == (3, "arstore: error: get: --tensor nrom: matches no tensor")
    assert "--allow-unmatched" in done.err
    words = ("--tensor", "norm", "--tensor", "nrom", "--layer", "9", "--allow-unmatched")
    assert cli("get", "model", tmp_path / "out", *words).code == 0
    assert load_file(tmp_path / "out").keys() == {"norm"}
    nothing = cli("get", "model", tmp_path / "none", "--tensor", "nrom", "--allow-unmatched")
    assert (nothing.code, nothing.error) == (3, "arstore: error: get: selection: picks no tensor")
    assert not (tmp_path / "none").exists()
