"""The device tier: the same bytes by the same way, on `cpu` here and on an accelerator where there is one."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from arstore import BadInput, Store, create_store, open_store
from arstore.formats.tensor import TensorSpan
from arstore.store.disk import Out
from arstore.store.errors import Corrupt, NoRoom
from arstore.store.tiers import device as device_tier
from arstore.store.tiers.device import DeviceTier, parse_device, upload
from arstore.store.tiers.local import StoredObject
from arstore.store.tiers.staged import StagedTensors
from tests.support.command import arstore, cli
from tests.support.tier_faults import given
from tests.support.tier_places import small_steps
from tests.support.tier_suite import CAPACITY_BYTES, THIRD, A, B, C, D, refuses

__all__ = ["small_steps"]  # fixtures

DEVICES = ["device:cpu", pytest.param("device:cuda:0", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no accelerator here"))]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(tmp_path / "host"))
    create_store()
    with open_store() as opened:
        yield opened


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "bf16": torch.randn(300, 64).bfloat16(), "f32": torch.randn(7, 3), "i64": torch.arange(5),
        "scalar": torch.tensor(3.5), "bool": torch.tensor([True, False, True]), "none": torch.empty(0, 4),
        "f8": torch.randn(16).to(torch.float8_e4m3fn),
    }  # fmt: skip


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether two tensors are of one kind and bit for bit equal."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return not one.numel() or torch.equal(*(each.cpu().reshape(-1).view(torch.uint8) for each in (one, other)))


@pytest.mark.parametrize("to", DEVICES)
def test_tensors_on_a_device_are_those_that_were_put(store: Store, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_tier, "BOUNCE_BYTES", 4096)  # so that many buffers take turns
    store.put(tensors=tensors(), name="w")
    kv = {f"layers.{n}.{side}": torch.randn(300, 2, 16).bfloat16() for n in range(2) for side in ("key", "value")}
    identity = {"model": "m", "revision": "1", "precision": "bf16"}
    store.kv.put(kv, name="kv", tokens=range(300), identity=identity)
    with store.prefetch(["w", "kv"], to=to) as staged:
        assert set(staged["w"]) == set(tensors())
        for name, tensor in tensors().items():
            assert str(staged["w"][name].device) == to.partition(":")[2]
            assert same(staged["w"][name], tensor), name
        for name, tensor in kv.items():
            assert same(staged["kv"][name], tensor), name
    assert len(staged) == 0


@pytest.mark.parametrize("to", DEVICES)
def test_an_artifact_that_does_not_fit_the_device_moves_nothing(
    store: Store, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a", "b")):
        store.put(tensors=tensors() | {"i64": torch.arange(5) + number}, name=name)
    length = sum(one.numel() * one.element_size() for one in tensors().values())
    moved: list[int] = []
    monkeypatch.setattr(device_tier, "_copy", lambda *words: moved.append(1))
    with pytest.raises(NoRoom):
        store.prefetch(["a", "b"], to=to, budget_bytes=length + 1000)
    assert moved == []


def test_a_bad_blob_is_never_handed_out(store: Store) -> None:
    store.put(tensors=tensors(), name="w", codec="stored")
    place = max((row.place for row in store._parts.catalog.all_blobs()), key=lambda one: one.plain_bytes)
    path = store._parts.directory / f"{place.segment:016x}.seg"
    with path.open("r+b") as file:
        file.seek(place.offset + 1000)
        file.write(b"\xff\x00\xff")
    with pytest.raises(Corrupt):
        store.prefetch(["w"], to="device:cpu")


def test_an_upload_asks_for_every_byte_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_tier, "BOUNCE_BYTES", 10)
    asked: list[tuple[int, int]] = []

    def fill(at: int, out: Out) -> None:
        asked.append((at, len(out)))
        out[:] = bytes(range(at, at + len(out)))

    def made(length: int) -> StoredObject:
        return StoredObject("m", (TensorSpan("f", "U8", (length,), 0, length),), fill)

    memory = upload(made(47), "cpu")
    assert asked == [(0, 10), (10, 10), (20, 10), (30, 10), (40, 7)]
    assert memory.tolist() == list(range(47))
    assert upload(made(0), "cpu").tolist() == []


@pytest.mark.parametrize("tier", ["device:cuda:99", "device:tpu", "device:cuda:x", "shared", "remote"])
def test_tiers_that_are_not_here_are_refused(store: Store, tier: str) -> None:
    with pytest.raises(BadInput):
        parse_device(tier)
    assert cli("prefetch", "w", "--to", tier, "--", "true").code == 2


def test_a_command_gets_its_tensors_on_the_device(store: Store) -> None:
    store.put(tensors=tensors(), name="w")
    program = (
        "import arstore, sys; staged = arstore.attach(); tensor = staged['w']['f32']; "
        "sys.exit(0 if tensor.shape == (7, 3) and str(tensor.device) == sys.argv[1] else 5)"
    )
    name = parse_device("device")
    assert arstore("prefetch", "w", "--to", "device", "--", sys.executable, "-c", program, name).code == 0
    assert cli("prefetch", "w", "--to", "device").code == 2


def test_memory_that_tensors_still_use_counts_until_they_are_gone(small_steps: None) -> None:
    tier = DeviceTier("cpu", CAPACITY_BYTES)
    held = tier.fill(A, given())
    tensor = StagedTensors(held)["f"][5:7]
    del held
    assert tier.remove(A)
    assert (tier.residents(), tier.used_bytes) == ([], THIRD)
    assert refuses(tier, CAPACITY_BYTES - THIRD + 1)
    assert not refuses(tier, CAPACITY_BYTES - THIRD)
    del tensor  # and nothing else keeps it: not the tier, which goes on
    assert tier.used_bytes == 0
    assert not refuses(tier, CAPACITY_BYTES)


def test_memory_that_tensors_use_gives_no_room(small_steps: None) -> None:
    """Without room nothing goes; and what goes is what gives some, whenever its time is over."""
    tier = DeviceTier("cpu", CAPACITY_BYTES)
    tensors = [StagedTensors(tier.fill(key, given()))["f"] for key in (A, B)]
    tier.fill(C, given(), time.time() + 100)
    assert refuses(tier, 2 * THIRD)
    assert [one.key for one in tier.residents()] == [A, B, C]
    tier.make_room(THIRD, frozenset())
    assert [one.key for one in tier.residents()] == [A, B]
    assert refuses(tier, THIRD + 1)
    del tensors[0]
    tier.make_room(2 * THIRD, frozenset())
    tier.fill(D, given(2 * THIRD))
    assert [one.key for one in tier.residents()] == [B, D]
    assert tier.used_bytes == CAPACITY_BYTES
