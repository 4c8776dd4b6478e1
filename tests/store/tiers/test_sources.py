"""Sources bring an object once, from the nearest tier that has it; where it is there already, nothing is read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore.store.disk import Disk
from arstore.store.errors import Fenced, StorageFailed
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.sources import Sources
from tests.support.tier_faults import Between, Vanishing, fresh_memory, given
from tests.support.tier_suite import whole

KEY = "a" * 64


@pytest.fixture
def memory() -> Iterator[Path]:
    with fresh_memory() as path:
        yield path


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


def test_one_that_another_brings_is_fenced(memory: Path) -> None:
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
