"""Sources bring an object once, from the nearest tier that has it; where it is there already, nothing is read."""

from pathlib import Path

import pytest
import torch

from arstore import NotFound, Store
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt, Fenced, StorageFailed
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.local import Local
from arstore.store.tiers.sources import Sources
from arstore.store.tiers.tier import Held
from tests.support.fresh_memory import memory
from tests.support.tier_faults import Between, Faulty, Met, Vanishing, given
from tests.support.tier_places import OTHERS, SHARED, TIERS, a_place, open_arena, small_steps, store
from tests.support.tier_suite import whole

__all__ = ["memory", "small_steps", "store"]  # fixtures

KEY = "a" * 64


def arenas(memory: Path, *names: str) -> list[Arena]:
    return [Arena(name, memory / name, 1 << 30, Disk()) for name in names]


def test_the_nearest_tier_that_has_it_gives_it(memory: Path) -> None:
    target, near, far, store = arenas(memory, "target", "near", "far", "store")
    content = given()
    expected = ["store", "far", "near"]
    for source, name in zip((store, far, near), expected, strict=True):
        source.fill(KEY, content)
        bytes_seen: list[int] = []
        held, came_from = Sources([near, far], store).bring(KEY, target, wait=False, on_bytes=bytes_seen.append)
        assert (whole(held), came_from) == (content.content, name)
        assert sum(bytes_seen) == len(content.content)
        del held
        assert target.remove(KEY)


def test_an_object_that_is_there_is_not_brought_again(memory: Path) -> None:
    target, store = arenas(memory, "target", "store")
    target.fill(KEY, given())
    gone = Between(store, Vanishing(1))  # any operation on it raises
    held, came_from = Sources([], gone).bring(KEY, target, until_s=4e9, wait=False)
    assert came_from == "target"
    assert target.residents()[0].expires_s == 4e9
    del held
    target.remove(KEY)
    with pytest.raises(StorageFailed):
        Sources([], gone).bring(KEY, target, wait=False)


def test_an_object_that_another_process_brings_is_fenced(memory: Path) -> None:
    target, store = arenas(memory, "target", "store")
    store.fill(KEY, given())
    sources = Sources([], store)
    with target.filling(KEY, wait=False), pytest.raises(Fenced):
        sources.bring(KEY, target, wait=False)
    assert sources.bring(KEY, target, wait=False)[1] == "store"


def test_a_near_tier_that_fails_is_named_with_its_first_error(memory: Path) -> None:
    target, near, store = arenas(memory, "target", "near", "store")
    store.fill(KEY, given())
    sources = Sources([Between(near, Vanishing(1))], store)
    for _ in range(2):
        assert sources.bring(KEY, target, wait=False)[1] == "store"
        target.remove(KEY)
    assert {tier: str(error) for tier, error in sources.failed.items()} == {"near": "tier: is gone"}


@SHARED
@pytest.mark.parametrize("fate", [Faulty, Vanishing, "silently"])
@pytest.mark.parametrize("to", TIERS[:1] + TIERS[2:])
def test_an_object_arrives_whatever_happens_to_the_nearest_tier(
    to: str, fate: object, memory: Path, store: Store, small_steps: None
) -> None:
    """At every operation of the near tier: what comes is right, and what failed is named."""
    store.put(tensors={"w": torch.randn(2500)}, name="m")
    key = store.get("m").summary.id
    local = Local(store.get, lambda key: None)
    near = open_arena("shared", memory)
    truth = local.hold(key)
    assert truth
    content, came = whole(truth), list[str]()
    for at in range(1, 30):
        near.fill(key, truth)
        error = Corrupt("x", "y") if at % 2 else StorageFailed("x", "y")
        met = Faulty(error, at) if fate is Faulty else Vanishing(at, silently=fate == "silently")
        found = Sources([Between(near, met)], local)
        (memory / f"{at}").mkdir()
        target = a_place(to, memory / f"{at}")
        held, source = found.bring(key, target.tier, wait=False)
        assert whole(held) == content
        assert (held.name, tuple(held.spans)) == (truth.name, tuple(truth.spans))
        came.append(source)
        if source == "local" and not (fate == "silently" and at == 1):
            assert set(found.failed) == {"shared"}
        if fate is Faulty and at % 2 and source == "local":
            assert not near.find(key), "what is bad is wiped"
        if source == "shared":
            assert found.failed == {}
            break
    assert came[0] == "local"
    assert came[-1] == "shared"


def test_an_object_in_no_tier_is_not_found_and_a_bad_one_of_local_raises(store: Store, memory: Path) -> None:
    host, key = open_arena("host", memory), "0" * 64
    with pytest.raises(NotFound):
        Sources([open_arena("host", memory, OTHERS)], Local(store.get, lambda key: None)).bring(key, host, wait=False)

    class Bad:
        tier = "local"

        def hold(self, key: str, until_s: float = 0.0) -> Held:
            return Met(given(), Faulty(Corrupt("x", "y")))

    with pytest.raises(Corrupt):
        Sources([], Bad()).bring(key, host, wait=False)
    assert host.residents() == []
