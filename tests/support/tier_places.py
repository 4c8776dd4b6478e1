"""Every tier in a place of the test's own, and a store whose content goes up into it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from arstore import Store, create_store, open_store
from arstore.store.artifacts.tensors import tensor_bytes
from arstore.store.disk import Disk
from arstore.store.tiers import device as device_room
from arstore.store.tiers import sealed as sealed_room
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.device import DeviceTier
from arstore.store.tiers.local import Local
from arstore.store.tiers.shared import open_shared
from tests.support.kv_made import IDENTITY, made
from tests.support.tier_faults import Given
from tests.support.tier_suite import CAPACITY_BYTES, Place, Stocked

STORE_ID, MINE, OTHERS = b"s" * 16, b"m" * 16, b"o" * 16
ACCELERATOR = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")
SHARED = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system here")
SEALED = pytest.param("shared", marks=SHARED)
ARENAS = ["host", SEALED]
TIERS = [*ARENAS, "device", pytest.param("device on an accelerator", marks=ACCELERATOR)]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seal and copy in steps that small objects have many of."""
    monkeypatch.setattr(sealed_room, "SUM_BYTES", 1000)
    monkeypatch.setattr(device_room, "BOUNCE_BYTES", 3000)


def open_arena(tier: str, memory: Path, tenant: bytes = MINE, disk: Disk | None = None) -> Arena:
    disk = disk or Disk()
    if tier == "host":
        return Arena("host", memory / "host" / tenant.hex(), CAPACITY_BYTES, disk)
    return open_shared(memory, STORE_ID, tenant, tenant * 2, CAPACITY_BYTES, disk)


def left(memory: Path) -> list[str]:
    return sorted(path.name for path in memory.rglob("*") if path.is_file())


def a_place(tier: str, memory: Path) -> Place:
    if tier in ("host", "shared"):
        opened = partial(open_arena, tier, memory)
        lying = lambda: [name for name in left(memory) if not name.endswith(".extent")]  # noqa: E731
        return Place(opened(), opened, partial(opened, OTHERS), lying, outlives_us=True)
    device = "cpu" if tier == "device" else "cuda:0"
    one = DeviceTier(device, CAPACITY_BYTES)
    return Place(one, lambda: one, partial(DeviceTier, device, CAPACITY_BYTES))


KV_NAMES = ["NHD", "HND", "packed", "paged-NHD", "packed-paged-HND"]
TOKENS = list(range(39))  # the last page and the last block are not full


@pytest.fixture
def store(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(memory / "host"))
    create_store()
    with open_store() as opened:
        yield opened


def kv_identity(layout: str) -> dict[str, object]:
    return {**IDENTITY, "layout": layout} | ({"page_tokens": 4} if "paged" in layout else {})


def put_all(store: Store, folder: Path) -> dict[str, dict[str, bytes]]:
    """Put artifacts with and without tensors, and KV in several layouts; return what each has, by key and name."""
    (source := folder / "in/sub").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({"t": (whole := torch.randn(30, 50)).t(), "step": whole[::3, 1::7]}, folder / "in/model.pt")
    (source / "имя.json").write_bytes(b"{}")
    (source / "empty").write_bytes(b"")
    store.put(folder / "in", name="weights")
    tensors = {"层": torch.randn(33).bfloat16(), "none": torch.empty(0, 4), "one": torch.tensor([5], dtype=torch.int8)}
    store.put(tensors=tensors, name="more/b")
    (folder / "nothing").write_bytes(b"")
    store.put(folder / "nothing", name="nothing")
    found = {
        "weights": {"t": bytes(tensor_bytes(whole)), "step": bytes(tensor_bytes(whole))[4:], "file:sub/имя.json": b"{}",
                    "file:sub/empty": b""},
        "more/b": {name: bytes(tensor_bytes(one)) for name, one in tensors.items()},
        "nothing": {"file:nothing": b""},
    }  # fmt: skip
    for layout in KV_NAMES:
        kv = made(TOKENS, layout=layout)
        store.kv.put(
            {n: torch.from_numpy(o) for n, o in kv.items()}, name=layout, tokens=TOKENS, identity=kv_identity(layout)
        )
        found[layout] = {name: one.tobytes() for name, one in kv.items()}
    return {store.get(name).summary.id: one for name, one in found.items()}


def block_keys(store: Store, layout: str) -> list[str]:
    return [id_.hex() for id_ in store.kv.chain(TOKENS, kv_identity(layout)).blocks]


def local_of(store: Store, layout: str) -> Local:
    return Local(store.get, store.kv.blocks_of(kv_identity(layout)))


@pytest.fixture
def stocked(store: Store, tmp_path: Path) -> Iterator[Stocked]:
    """Stock the local store, and say of every object what it is, byte by byte: what lies between tensors is zero."""
    wanted, objects, layout = put_all(store, tmp_path), dict[str, Given](), "paged-NHD"
    source = local_of(store, layout)
    for number, key in enumerate(block_keys(store, layout)):
        pages = slice(number * 4, number * 4 + 4)
        wanted[key] = {name: one[pages].tobytes() for name, one in made(TOKENS, layout=layout).items()}
    for key, tensors in wanted.items():
        held = source.hold(key)
        assert held
        assert {span.name for span in held.spans} == set(tensors)
        content = bytearray(held.length_bytes)
        for span in held.spans:
            assert span.length == len(tensors[span.name]) or span.stride
            content[span.place] = tensors[span.name][: span.length]
        objects[key] = Given(held.name, held.spans, bytes(content))
    store.tenants.add("other")
    with open_store(tenant="other") as other:
        yield Stocked(source, objects, local_of(other, layout))
