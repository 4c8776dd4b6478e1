"""Intermediates: named tensors under an identity, read by token position; the same inputs never lead to other bytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arstore import Conflict, Store, create_store, open_store
from arstore.store.maintenance.collect import AT_ONCE
from tests.support.command import cli
from tests.support.room import HookedDisk

IDENTITY = {"model": "llama", "revision": "r1", "layer": 12, "sequence": "doc-7", "positions": "100:400"}
FLAGS = [word for name, value in IDENTITY.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def store() -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def states(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"hidden": torch.randn(300, 4096), "attended": torch.randn(300, 64).bfloat16(), "ssm": torch.randn(16, 8)}


def test_positions_are_counted_from_where_the_identity_says(store: Store, tmp_path: Path) -> None:
    save_file(wanted := states(), tmp_path / "in.safetensors")
    put = ["put", tmp_path / "in.safetensors", "run/7", "--kind", "intermediate", *FLAGS]
    assert cli(*put).code == 0
    select = ["--tensor", "hidden", "--tensor", "attended"]
    got = cli("--json", "get", "run/7", tmp_path / "out", "--positions", "150:160", *select)
    assert got.code == 0, got.err
    found = load_file(tmp_path / "out")
    assert set(found) == {"hidden", "attended"}
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name][50:60])
    assert got.json["bytes_read"] < 5 * 2**20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--positions", "50:160"], "holds 100:400"),
        (["--positions", "150:401"], "holds 100:400"),
        (["--positions", "160:150"], "holds 100:400"),
        (["--positions", "150:160"], "ssm"),
        (["--positions", "150"], "wanted A:B"),
        (["--positions", "150:160", "--slice", "hidden=0:1"], "give one of them"),
    ],
)
def test_positions_that_do_not_fit_are_refused(store: Store, tmp_path: Path, words: list[str], said: str) -> None:
    store.put(tensors=states(), name="run/7", kind="intermediate", identity=IDENTITY)
    got = cli("get", "run/7", tmp_path / "out", *words)
    assert got.code == 2
    assert said in got.err
    assert not (tmp_path / "out").exists()


def test_without_positions_in_its_identity_an_artifact_has_none(store: Store, tmp_path: Path) -> None:
    store.put(tensors=states(), name="run/7", kind="intermediate")
    got = cli("get", "run/7", tmp_path / "out", "--positions", "0:1", "--tensor", "hidden")
    assert got.code == 2
    assert "does not say" in got.err


def test_other_bytes_for_the_same_inputs_are_a_conflict_and_both_are_kept(store: Store, tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        save_file(states(seed), tmp_path / f"{name}.safetensors")
    assert cli("put", tmp_path / "first.safetensors", "a", "--kind", "intermediate", *FLAGS).code == 0
    assert cli("put", tmp_path / "first.safetensors", "again", "--kind", "intermediate", *FLAGS).code == 0
    other = cli("--json", "put", tmp_path / "second.safetensors", "b", "--kind", "intermediate", *FLAGS)
    assert other.code == 15
    assert other.json["error"]["kind"] == "conflict"
    store.gc(AT_ONCE)
    for name, seed in (("a", 0), ("b", 1)):
        assert torch.equal(store.get(name).tensors()["hidden"], states(seed)["hidden"])
    assert store.repair().corrected == 0
    # What was first is gone, so what is put next stands for the identity.
    store.rm("a")
    store.rm("again")
    store.put(tensors=states(1), name="c", kind="intermediate", identity=IDENTITY)
    with pytest.raises(Conflict):
        store.put(tensors=states(0), name="d", kind="intermediate", identity=IDENTITY)


def test_a_conflict_writes_nothing_after_its_commit(tmp_path: Path) -> None:
    create_store()
    disk = HookedDisk()
    with Store(tmp_path / "store", disk=disk) as store:
        store.put(tensors=states(0), name="a", kind="intermediate", identity=IDENTITY)
        late: list[str] = []
        disk.hook = lambda operation, path: late.append(operation) if len(store.ls()) == 2 else None
        with pytest.raises(Conflict):
            store.put(tensors=states(1), name="b", kind="intermediate", identity=IDENTITY)
        assert late == []
        disk.hook("write", tmp_path)
        assert late == ["write"]


def test_weights_are_inputs_and_may_change_under_one_identity(store: Store) -> None:
    for seed in range(3):
        store.put(tensors=states(seed), name="w", identity={"model": "llama", "sequence": "s"})
    assert len(store.ls("w")) == 3
