"""Unstage wipes staged copies by name, all together, or before the objects themselves are erased."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore import NotFound, Store, create_store, open_store
from arstore.store.artifacts.tensors import tensor_bytes
from arstore.store.config import default_store
from arstore.store.disk import Disk, Out
from arstore.store.maintenance import erase as erase_room
from arstore.store.maintenance.shred import shred
from arstore.store.parts import Parts
from arstore.store.tiers.arena import Arena
from tests.support.command import PATIENCE_S, cli
from tests.support.staging import copy_of, extents, left, stage_three, store, weights
from tests.support.tier_faults import Given
from tests.support.tier_suite import whole

__all__ = ["store"]  # fixtures


def test_unstage_removes_a_file_that_is_no_extent(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    assert cli("prefetch", "m").code == 0
    extents(host)[0].write_bytes(bytes(10_000))
    assert cli("--json", "unstage", "--all").json["bytes"] == 10_000
    assert left(host) == []


def test_unstage_names_and_all(store: Store, tmp_path: Path, host: Path) -> None:
    stage_three(store, tmp_path)
    assert [one["name"] for one in cli("--json", "unstage", "a").json["unstaged"]] == ["a@1"]
    assert cli("--json", "unstage", "a").json["unstaged"] == []
    with store.prefetch(["b"]):
        ran = cli("--json", "unstage", "--all")
        assert ran.code == 4
        assert ran.json["in_use"] == ["b@1"]
        assert [one["name"] for one in ran.json["unstaged"]] == ["c@1"]
    assert cli("unstage", "--all").code == 0
    assert left(host) == []
    for words in ([], ["a", "--all"]):
        assert cli("unstage", *words).code == 2
    assert cli("unstage", "nobody").code == 3


def test_erase_wipes_staged_copies_first_or_refuses(store: Store, host: Path) -> None:
    for seed, name in enumerate("ab"):
        store.put(tensors=weights(seed), name=name)
        assert cli("prefetch", name).code == 0
    key = store.get("a").summary.id
    with store.prefetch(["a"]):
        assert cli("erase", "a").code == 11
        assert store.get("a").tensors()
    with store.tiers.arenas.host().filling(key, wait=False):  # of what is being staged right now the same is true
        assert cli("erase", "a").code == 11
    assert cli("erase", "a", "--dry-run").code == 0
    assert len(extents(host)) == 2
    file = os.open(next(path for path in extents(host) if path.stem == key), os.O_RDONLY)
    assert cli("erase", "a").code == 0
    assert not any(os.read(file, 1 << 20))
    os.close(file)
    assert [path.stem for path in extents(host)] == [store.get("b").summary.id]


class DeadBeforeTheEnd(Disk):
    """Ends the process when all of an artifact is staged, and not yet published."""

    def rename(self, source: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("words", ["erase m", "unstage --all", "prefetch other --ttl 0s"])
def test_the_remains_of_a_killed_stager_are_wiped_by(words: str, host: Path) -> None:
    create_store()
    with open_store() as store:
        store.put(tensors=weights(), name="m")
        store.put(tensors=weights(1), name="other")
    if not (pid := os.fork()):
        with contextlib.suppress(BaseException), Store(default_store(), disk=DeadBeforeTheEnd()) as mine:
            mine.prefetch(["m"])
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    [partial] = host.glob("*/.*.partial")
    plain = bytes(tensor_bytes(weights()["w"]))
    with partial.open("rb") as file:
        assert plain in file.read()
        assert cli(*words.split()).code == 0
        file.seek(0)
        assert not any(file.read())
    assert left(host) == []


def between(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen in the middle of the next erase: names are dropped, and keys not destroyed yet."""
    real = shred

    def shred_later(parts: Parts) -> int:
        happens()
        return real(parts)

    monkeypatch.setattr(erase_room, "shred", shred_later)


def test_a_copy_staged_in_the_middle_of_an_erase_is_said_and_goes_with_its_user(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    (key, copy), arena, held = copy_of(store, "m"), store.tiers.arenas.host(), list[object]()
    between(monkeypatch, lambda: held.append(arena.fill(key, copy, time.time() + 100)))
    assert store.erase("m").still_staged == ("m@1",)
    assert left(host) == []  # nobody else finds it
    assert whole(held[0]) == copy.content  # type: ignore[arg-type]


def test_a_stager_at_work_during_an_erase_drops_its_copy(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    (key, copy), arena = copy_of(store, "m"), store.tiers.arenas.host()
    at_work, go_on, ended = threading.Event(), threading.Event(), list[object]()

    class Slow(Given):
        def read(self, at: int, out: Out) -> None:
            super().read(at, out)
            at_work.set()
            go_on.wait(PATIENCE_S)

    def stage() -> None:
        try:
            with arena.filling(key, wait=False):
                arena.fill(key, Slow(copy.name, copy.spans, copy.content), time.time() + 100)
        except NotFound as error:
            ended.append(error)

    stager = threading.Thread(target=stage)

    def begins() -> None:
        stager.start()
        assert at_work.wait(PATIENCE_S)

    between(monkeypatch, begins)
    assert store.erase("m").still_staged == (key[:16],)
    go_on.set()
    stager.join(PATIENCE_S)
    assert len(ended) == 1
    assert left(host) == []


def test_a_removal_beside_a_stager_harms_nothing(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    (key, copy), arena = copy_of(store, "m"), store.tiers.arenas.host()
    with arena.filling(key, wait=False):
        store.rm("m")
        held = arena.fill(key, copy, time.time() + 100)
    assert arena.find(key)
    assert whole(held) == copy.content


def test_a_tier_that_fails_after_an_erase_is_in_the_receipt(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    assert cli("prefetch", "m").code == 0

    def broken(arena: Arena) -> set[str]:
        raise OSError(5, "Input/output error")

    between(monkeypatch, lambda: monkeypatch.setattr(Arena, "coming", broken))
    assert store.erase("m").still_staged == ("tier host",)
    assert cli("get", "m", host / "x").code == 3
