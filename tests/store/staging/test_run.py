"""A run carries out its plan: every request finds its objects in place, and no tier holds more than planned."""

import contextlib
import gc
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from arstore import BadInput, Corrupt, NoRoom, Store
from arstore.store.errors import StorageFailed
from arstore.store.plan.planfile import Plan
from arstore.store.plan.timeline import Timed, occupancy
from arstore.store.staging.requests import Ready
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.tier import Held
from tests.support.command import arstore
from tests.support.planning import IDENTITY, IDENTITY_TABLE, SIZE, job, write_speeds
from tests.support.runs import NAMES, store, tight, value_of
from tests.support.staging import damage, left

__all__ = ["store"]  # fixtures

BLOCK = 256 * 2 * 2 * 2 * 16 * 2  # tokens, layers, sides, heads, dimensions, bytes


def staged_bytes(host: Path) -> int:
    total = 0
    for path in [*host.glob("*/*.extent"), *host.glob("*/.*.partial")]:
        with contextlib.suppress(FileNotFoundError):
            total += max(path.stat().st_size - 4096, 0)
    return total


@pytest.mark.parametrize("to", ["host", "device"])
@pytest.mark.parametrize("order", ["given", "prefix"])
def test_every_request_has_what_it_needs_within_the_budget(
    store: Store, tmp_path: Path, host: Path, to: str, order: str
) -> None:
    plan = store.tiers.plan(tight(tmp_path, to), order=order)
    seen, most = [], 0
    with store.tiers.run(plan) as run:
        for request in run:
            assert sorted(request) == sorted({NAMES[int(request.id) % 6], NAMES[(int(request.id) + 1) % 6]})
            for name in request:
                assert value_of(request[name]["w"]) == NAMES.index(name)
            seen.append(request.id)
            most = max(most, staged_bytes(host))
    assert seen == [plan.job.requests[number].id for number in plan.order]
    assert most <= plan.job.tiers[-1].capacity_bytes  # type: ignore[operator]
    gc.collect()
    assert left(host) == []
    assert run.failed == {}
    check_timeline(plan, run.timeline())


def check_timeline(plan: Plan, timed: Timed) -> None:
    """Every planned move was made, once, and no tier ever held more than planned."""
    moves = [(event.tier, event.name) for event in timed.events if event.kind == "move"]
    objects = plan.job.objects
    wanted = [(t.name, objects[m.object].id) for t, lane in zip(plan.job.tiers, plan.lanes, strict=True) for m in lane]
    assert sorted(moves) == sorted(wanted)
    for tier, peak in zip(plan.job.tiers, plan.peak_bytes, strict=True):
        assert max(held for _, held in occupancy(timed)[tier.name]) <= peak
    assert sum(event.kind == "request" for event in timed.events) == len(plan.order)


def test_tensors_that_outlive_their_request_stay_whole_and_are_wiped_after(
    store: Store, tmp_path: Path, host: Path
) -> None:
    kept: dict[str, torch.Tensor] = {}
    with store.tiers.run(store.tiers.plan(tight(tmp_path))) as run:
        for request in run:
            for name in request:
                kept.setdefault(name, request[name]["w"])
    assert {name: value_of(tensor) for name, tensor in kept.items()} == {n: i for i, n in enumerate(NAMES)}
    kept.clear()
    store.tiers.arenas.sweep()
    assert left(host) == []


def test_a_copy_kept_past_its_eviction_is_wiped_when_its_user_drops_it(
    store: Store, tmp_path: Path, host: Path
) -> None:
    key = store.get("u").summary.id
    kept: list[torch.Tensor] = []
    with store.tiers.run(store.tiers.plan(tight(tmp_path, room=2))) as run:
        for request in run:
            if request.id == 0:
                kept.append(request["u"]["w"])
            if request.id == 3:
                assert list(host.glob(f"*/{key}.extent")), "it is in use"
                kept.clear()
            if request.id == 4:  # u comes again with request 5
                assert not list(host.glob(f"*/{key}.extent"))
                break


def test_prefix_blocks_are_in_place(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = list(range(640))
    kv = {f"layers.{n}.{side}": torch.randn(512, 2, 16).bfloat16() for n in range(2) for side in ("key", "value")}
    store.kv.put(kv, name="kv", tokens=tokens[:512], identity=IDENTITY)
    more = f"{IDENTITY_TABLE}[recompute]\ntokens_per_second = 100\n"
    plan = store.tiers.plan(job(tmp_path, [{"id": "a", "tokens": tokens}], more))
    with store.tiers.run(plan) as run:
        [over] = list(run)
        assert over.blocks == []  # what a request had is let go when it is over
    with store.tiers.run(plan) as run:
        for request in run:
            joined = {name: torch.cat([block[name] for block in request.blocks]) for name in kv}
            assert all(torch.equal(joined[name], kv[name]) for name in kv)
            assert len(request) == 0


def test_a_bad_object_fails_the_requests_that_need_it_and_no_others(store: Store, tmp_path: Path) -> None:
    damage(store, "w")
    plan = store.tiers.plan(tight(tmp_path))
    good, bad = 0, 0
    with store.tiers.run(plan) as run:
        for request in run:
            for name in {*request, *request.failed}:
                if name == "w":
                    with pytest.raises(Corrupt):
                        request["w"]
                    bad += 1
                else:
                    assert value_of(request[name]["w"]) == NAMES.index(name)
                    good += 1
    assert (good, bad) == (40, 8)
    assert list(run.failed) == ["w@1"]


def test_a_plan_without_room_moves_nothing(store: Store, tmp_path: Path, host: Path) -> None:
    with store.prefetch(["z"]) as held:
        plan = store.tiers.plan(tight(tmp_path))
        small = plan.within(3 * SIZE)
        assert held
        path = job(tmp_path, [{"artifacts": ["u", "v", "w"]}], f"[budget]\nhost = {3 * SIZE}\n")
        with pytest.raises(NoRoom), store.tiers.run(store.tiers.plan(path)):
            pass  # z is in use, and not of the plan
        assert len(list(host.glob("*/*.extent"))) == 1
    with pytest.raises(NoRoom):
        small.within(2 * SIZE)


def test_a_waiting_request_raises_when_the_run_breaks(store: Store, tmp_path: Path) -> None:
    run = store.tiers.run(store.tiers.plan(tight(tmp_path)))
    with pytest.raises(BadInput, match="has not begun"):
        iter(run)

    def broken(*_: object, **__: object) -> bool:
        raise RuntimeError("a bug")

    with run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "remove", broken)
        with pytest.raises(StorageFailed, match="has ended") as caught:
            list(run)
        patch.undo()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_step_that_is_over_before_its_objects_came_does_not_go_early(store: Store, tmp_path: Path) -> None:
    plan = store.tiers.plan(tight(tmp_path, room=2))
    with store.tiers.run(plan) as run:
        lane = run.lanes[0]
        for step in (0, 1, 2):  # given away and given up before it was taken
            assert lane.next() == step
            lane.finish(step)
        for request in run:
            assert {name: value_of(request[name]["w"]) for name in request} == {n: NAMES.index(n) for n in request}
            assert len(lane.held()) <= 2
    assert run.failed == {}


def test_an_error_that_is_raised_again_keeps_nothing(store: Store, tmp_path: Path, host: Path) -> None:
    damage(store, "w")

    def use(request: Ready) -> None:
        tensors = [request[name]["w"] for name in request]
        for name in request.failed:
            request[name]
        assert tensors

    with store.tiers.run(store.tiers.plan(tight(tmp_path, room=2))) as run:
        for request in run:
            with contextlib.suppress(Corrupt):
                use(request)
            assert staged_bytes(host) <= 3 * SIZE
    store.tiers.arenas.sweep()
    assert left(host) == []


@pytest.mark.parametrize("to", ["host", "device"])
def test_blocks_to_be_computed_come_between_those_that_are_fetched(store: Store, tmp_path: Path, to: str) -> None:
    torch.manual_seed(0)
    kv = {f"layers.{n}.{side}": torch.randn(512, 2, 16).bfloat16() for n in range(2) for side in ("key", "value")}
    requests = []
    for number in range(6):
        tokens = list(range(number * 10_000, number * 10_000 + 1024))
        store.kv.put(kv, name=f"kv/{number}", tokens=tokens[:512], identity=IDENTITY)
        requests.append({"id": number, "tokens": tokens})
    more = f"{IDENTITY_TABLE}[recompute]\ntokens_per_second = 1000\n[budget]\n{to} = {5 * BLOCK}\n"
    show = "import arstore\nfor r in arstore.attach().requests(): print(r.id, len(r.blocks), sorted(r.failed))"
    ran = arstore("prefetch", job(tmp_path, requests, more, to=to), "--", sys.executable, "-c", show)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [f"{number} 2 []" for number in range(6)]


def test_all_that_is_staged_is_delivered_with_its_positions(store: Store, tmp_path: Path) -> None:
    """Where computing is as fast as loading, a plan has the front computed while later blocks are loaded."""
    torch.manual_seed(0)
    tokens = list(range(2560))
    kv = {f"layers.{n}.{side}": torch.randn(2560, 2, 16).bfloat16() for n in range(2) for side in ("key", "value")}
    store.kv.put(kv, name="kv", tokens=tokens, identity=IDENTITY)
    write_speeds(1e6)
    more = f"{IDENTITY_TABLE}[recompute]\ntokens_per_second = {256 * 1e6 / BLOCK:.0f}\n"
    plan = store.tiers.plan(job(tmp_path, [{"id": "a", "tokens": tokens}], more))
    made = [plan.job.objects[move.object].tokens for move in plan.lanes[0] if move.made]
    moved = [move for move in plan.lanes[0] if not move.made]
    assert made
    assert moved, "the plan computes all or nothing"
    with store.tiers.run(plan) as run:
        for request in run:
            placed = request.placed_blocks
            assert len(placed) == len(moved)  # nothing is staged that is not delivered
            assert request.blocks == []  # the front is in none of them
            assert request.to_compute == [range(sum(made))]
            for at, block in placed.items():
                assert torch.equal(block["layers.1.value"], kv["layers.1.value"][at.start : at.stop])
            assert [*placed][-1].stop == 2560


def test_a_move_waits_until_the_move_before_it_has_made_room(
    store: Store, tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors={"w": torch.full((SIZE // 2,), 9, dtype=torch.int32)}, name="large")
    requests = [{"id": n, "artifacts": [name]} for n, name in enumerate(("large", "u", "v"))]
    plan = store.tiers.plan(job(tmp_path, requests, f"[budget]\nhost = {2 * SIZE}\n"))
    assert [len(move.evict) for move in plan.lanes[0]] == [0, 1, 0]
    remove, fill, most = Arena.remove, Arena.fill, [0]

    def slowly(arena: Arena, key: str, **how: bool) -> bool:
        time.sleep(0.2)
        return remove(arena, key, **how)

    def watched(arena: Arena, key: str, source: Held, *more: Any, **named: Any) -> Held:
        most.append(staged_bytes(host) + source.length_bytes)
        return fill(arena, key, source, *more, **named)

    monkeypatch.setattr(Arena, "remove", slowly)
    monkeypatch.setattr(Arena, "fill", watched)
    with store.tiers.run(plan) as run:
        assert [request.id for request in run] == [0, 1, 2]
    assert len(most) == 4
    assert max(most) <= 2 * SIZE
