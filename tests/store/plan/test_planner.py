"""The staging plan: pure, so held against a clock, against every other plan of a tiny job, and against whole traces.

A real trace of requests (JSON lines with hash ids) is planned too where $ARSTORE_TRACE names one.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arstore.store.errors import BadInput, NoRoom
from arstore.store.plan.model import Job, Move, Object, PlannedTier, Request, replay
from arstore.store.plan.order import live_peak_bytes, prefix_order
from arstore.store.plan.planfile import Plan, parse_plan
from arstore.store.plan.planner import make_plan
from arstore.store.plan.simulate import simulate
from tests.support.jobs import (
    BLOCK_BYTES,
    JUNK,
    block_job,
    conversations,
    jobs,
    needs_of_requests,
    places_in,
    sized_job,
    with_host,
)

TRACE = os.environ.get("ARSTORE_TRACE")


# --- jobs


# --- what must hold at any moment


@settings(max_examples=300, deadline=None)
@given(jobs(), st.sampled_from(["given", "prefix"]))
def test_by_the_clock_nothing_overflows_and_nothing_is_missing(job: Job, order: str) -> None:
    """Run the timeline as an executor would, knowing only start and end times, and look at every moment."""
    plan = make_plan(job, order=order)
    times = simulate(job, plan.order, plan.lanes)
    for place, tier in enumerate(job.tiers):
        there = {number: 0.0 for number, one in enumerate(job.objects) if tier.name in one.found}
        users = times.requests if not place else times.moves[place - 1]
        busy: dict[int, float] = {}  # until when an object is in use, by its last user so far
        used = peak = sum(job.objects[number].length_bytes for number in there)
        at = 0
        for step, (begin, end) in enumerate(users):
            while at < len(plan.lanes[place]) and plan.lanes[place][at].step == step:
                move, (start, arrived) = plan.lanes[place][at], times.moves[place][at]
                for victim in move.evict:
                    assert busy.get(victim, 0.0) <= start, "evicted while in use"
                    del there[victim]
                    used -= job.objects[victim].length_bytes
                assert move.object not in there
                there[move.object] = arrived
                used += job.objects[move.object].length_bytes
                peak = max(peak, used)
                at += 1
            wanted = needed_at(job, plan, place, step)
            for number in wanted:
                made = place == 0 and any(m.made and m.object == number and m.step == step for m in plan.lanes[0])
                assert there[number] <= (end if made or not place else begin), "used before it came"
                busy[number] = end
            if not place and not any(m.made and m.step == step for m in plan.lanes[0]):
                assert all(there[number] <= begin for number in wanted)
        assert peak == plan.peak_bytes[place]
        assert tier.capacity_bytes is None or peak <= tier.capacity_bytes
        assert at == len(plan.lanes[place])
    for earlier, later in zip(times.requests, times.requests[1:], strict=False):
        assert earlier[1] <= later[0]


def needed_at(job: Job, plan: Plan, place: int, step: int) -> set[int]:
    if place:
        move = plan.lanes[place - 1][step]
        return set() if move.made else {move.object}
    return {*job.held, *job.requests[plan.order[step]].objects}


@settings(max_examples=200, deadline=None)
@given(jobs())
def test_orders_respect_after_and_prefix_order_needs_no_more(job: Job) -> None:
    plans = {order: make_plan(job, order=order) for order in ("given", "prefix")}
    for plan in plans.values():
        assert sorted(plan.order) == list(range(len(job.requests)))
        place = {job.requests[number].id: at for at, number in enumerate(plan.order)}
        assert all(place[name] < place[one.id] for one in job.requests for name in one.after)
    if any(one.after for one in job.requests):
        assert plans["prefix"].live_peak_bytes <= plans["given"].live_peak_bytes


@settings(max_examples=150, deadline=None)
@given(jobs(recompute=False), st.sampled_from(["given", "prefix"]))
def test_a_plan_is_never_predicted_slower_than_lru(job: Job, order: str) -> None:
    chosen, lru = make_plan(job, order=order), make_plan(job, order=order, windows=[len(job.requests)])
    assert chosen.predicted_s <= lru.predicted_s * 1.01 + 1e-9


# --- against every other plan of a tiny job


def fewest_fetches(needs: list[tuple[int, ...]], capacity: int) -> int:
    """Return the least number of fetches of any plan: all that can be kept after each request, tried."""
    states = {frozenset[int](): 0}
    for one in needs:
        after: dict[frozenset[int], int] = {}
        for resident, count in states.items():
            wanted = frozenset(one)
            fetched = count + len(wanted - resident)
            others = sorted(resident - wanted)
            for kept in range(min(len(others), capacity - len(wanted)) + 1):
                for chosen in combinations(others, kept):
                    state = wanted | frozenset(chosen)
                    after[state] = min(after.get(state, fetched), fetched)
        states = after
    return min(states.values())


def lru_fetches(needs: list[tuple[int, ...]], capacity: int) -> int:
    resident: OrderedDict[int, None] = OrderedDict()
    fetches = 0
    for one in needs:
        for number in one:
            fetches += number not in resident
            resident[number] = None
            resident.move_to_end(number)
        while len(resident) > capacity:
            resident.popitem(last=False)
    return fetches


@settings(max_examples=300, deadline=None)
@given(needs_of_requests(), st.integers(0, 3))
def test_belady_fetches_as_little_as_any_plan_could(needs: list[tuple[int, ...]], spare: int) -> None:
    capacity = max(map(len, needs)) + spare
    plan = make_plan(sized_job(needs, capacity), windows=[0])
    assert len(plan.lanes[0]) == fewest_fetches(needs, capacity) <= lru_fetches(needs, capacity)
    distinct = len({number for one in needs for number in one})
    assert plan.refetches == len(plan.lanes[0]) - distinct


@settings(max_examples=200, deadline=None)
@given(needs_of_requests())
def test_live_peak_is_the_least_room_without_refetches(needs: list[tuple[int, ...]]) -> None:
    live = make_plan(sized_job(needs, None)).live_peak_bytes
    assert make_plan(sized_job(needs, live)).refetches == 0
    if live > max(map(len, needs)):
        assert make_plan(sized_job(needs, live - 1)).refetches > 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), max_size=3), min_size=1, max_size=5))
def test_no_order_of_prefixes_needs_less_than_the_prefix_order(paths: list[list[int]]) -> None:
    nodes: dict[tuple[int, ...], int] = {}
    needs = [
        tuple(nodes.setdefault(tuple(path[:depth]), len(nodes)) for depth in range(len(path) + 1)) for path in paths
    ]
    least = min(
        make_plan(sized_job([needs[number] for number in order], None)).live_peak_bytes
        for order in permutations(range(len(needs)))
    )
    assert make_plan(sized_job(needs, None), order="prefix").live_peak_bytes == least


# --- recomputing


@settings(max_examples=200, deadline=None)
@given(jobs(), st.sampled_from([0.5, 2.0, 100.0]))
def test_recomputing_is_never_predicted_slower(job: Job, tokens_per_s: float) -> None:
    stored = tuple(replace(one, stored=True) for one in job.objects)
    job = replace(job, objects=stored, tokens_per_s=tokens_per_s)
    assert make_plan(job).predicted_s <= make_plan(replace(job, tokens_per_s=None)).predicted_s * 1.01 + 1e-9


def test_fetch_recompute_or_split_goes_by_the_two_speeds() -> None:
    objects = tuple(Object(f"o{number}", 100, 10) for number in range(8))
    job = Job(objects, (Request("one", tuple(range(8))),), (PlannedTier("host", None, 100.0),))
    made = {}
    for tokens_per_s in (0.1, 10.0, 1e6):
        plan = make_plan(replace(job, tokens_per_s=tokens_per_s))
        made[tokens_per_s] = [move.object for move in plan.lanes[0] if move.made]
        if tokens_per_s == 10.0:  # a second each way: half is computed from the front while the rest arrives
            assert plan.predicted_s == 4.0
    assert made == {0.1: [], 10.0: [0, 1, 2, 3], 1e6: list(range(8))}


def test_what_no_tier_holds_is_computed_again_after_each_eviction() -> None:
    objects = (Object("kept", 1, 4, stored=False), Object("other", 1, 4))
    requests = tuple(Request(number, (number % 2,)) for number in range(4))
    plan = make_plan(Job(objects, requests, (PlannedTier("device", 1, 1.0),), tokens_per_s=1.0))
    assert [move.made for move in plan.lanes[0] if move.object == 0] == [True, True]
    assert plan.refetches == 2


# --- worked by hand


def test_moves_overlap_the_computing_of_earlier_requests() -> None:
    job = sized_job([(0, 1), (2,)], 3, length=2)  # 2 s an object
    job = replace(job, requests=tuple(replace(one, compute_s=3.0) for one in job.requests))
    plan = make_plan(job)
    assert simulate(job, plan.order, plan.lanes).requests == ((4.0, 7.0), (7.0, 10.0))
    assert simulate(job, plan.order, plan.lanes, ahead=0).requests == ((4.0, 7.0), (9.0, 12.0))
    assert (plan.predicted_s, plan.peak_bytes, plan.refetches) == (10.0, (6,), 0)


def test_a_reserved_window_buys_time_with_a_refetch() -> None:
    """Belady evicts what the running request uses and must wait for it; keeping that lets the next move start early."""
    job = sized_job([(0,), (1,), (2,), (0,)], 2)
    job = replace(job, requests=tuple(replace(one, compute_s=1.0) for one in job.requests))
    plans = [make_plan(job, windows=windows) for windows in ([0], [1], None)]
    assert [plan.predicted_s for plan in plans] == [6.0, 5.0, 5.0]
    assert [plan.refetches for plan in plans] == [0, 1, 1]


def test_a_fetch_waits_for_the_room_that_a_computed_object_has_yet_to_make() -> None:
    objects = (Object("large", 2, found=("host",)), Object("computed", 1, 1, stored=False), Object("fetched", 1))
    requests = (Request(0, (0,), compute_s=5.0), Request(1, (1, 2)))
    job = Job(objects, requests, (PlannedTier("host", 2, 1.0),), tokens_per_s=1.0)
    lane = [Move(1, 1, 0, (0,), made=True), Move(2, 1)]
    assert replay(job, (0, 1), [lane]) == [2]
    assert simulate(job, (0, 1), [lane]).moves == (((5.0, 6.0), (5.0, 6.0)),)


def test_a_move_that_waits_for_the_last_one_goes_alone_and_evicting_takes_time() -> None:
    alone = PlannedTier("host", 4, 1.0, alone_bytes_per_s=0.5)  # 2 s beside others, 4 s without
    job = replace(sized_job([(0, 1)], 4, length=2), tiers=(alone,))
    assert simulate(job, (0,), [[Move(0, 0), Move(1, 0)]]).moves == (((0.0, 4.0), (2.0, 6.0)),)
    job = sized_job([(0,), (1,)], 1, length=2)
    job = replace(job, requests=tuple(replace(one, compute_s=1.0) for one in job.requests))
    lane = [Move(0, 0), Move(1, 1, 0, (0,))]
    for evict_bytes_per_s, end in ((None, 9.0), (1.0, 11.0)):
        tight = replace(alone, capacity_bytes=2, evict_bytes_per_s=evict_bytes_per_s)
        assert simulate(replace(job, tiers=(tight,)), (0, 1), [lane]).moves == (((0.0, 4.0), (5.0, end)),)


def test_objects_go_up_through_a_host_smaller_than_the_device() -> None:
    job = sized_job([tuple(range(10))], 10)
    job = replace(job, tiers=(PlannedTier("device", 10, 1.0), PlannedTier("host", 2, 1.0)))
    plan = make_plan(job)
    assert (plan.peak_bytes, plan.refetches, plan.predicted_s) == ((10, 2), 0, 11.0)


def test_what_lies_in_a_tier_already_does_not_move() -> None:
    objects = (Object("here", 5, found=("host",)), Object("below", 5))
    job = Job(objects, (Request(0, (0, 1)),), (PlannedTier("device", 10, 1.0), PlannedTier("host", 10, 1.0)))
    plan = make_plan(job)
    assert [[move.object for move in lane] for lane in plan.lanes] == [[0, 1], [1]]


def test_weights_stay_whatever_comes() -> None:
    job = sized_job([(1,), (2,), (3,), (0,)], 2, held=(0,))
    plan = make_plan(job)
    assert [move.object for move in plan.lanes[0]] == [0, 1, 2, 3]
    assert (plan.refetches, plan.live_peak_bytes) == (0, 2)


# --- refusals


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (sized_job([(0,), (0, 1, 2)], 2), "request 1: needs 3 bytes, the budget of host is 2"),
        (sized_job([(0, 1)], 2, held=(1, 0)), None),
        (
            sized_job([(0, 2), (1,)], 2, held=(1,)),
            "request 0: needs 3 bytes with what is held, the budget of host is 2",
        ),
        (with_host(sized_job([(0, 1)], 8, length=4), 3), "object o0: needs 4 bytes, the budget of host is 3"),
        (with_host(sized_job([(0, 1)], 8, length=4), 4), None),
    ],
)
def test_what_can_never_fit_is_refused_before_anything_moves(job: Job, said: str | None) -> None:
    if said is None:
        make_plan(job)
        return
    with pytest.raises(NoRoom, match=said):
        make_plan(job)


def test_a_job_that_contradicts_itself_is_refused() -> None:
    job = sized_job([(0,), (1,)], 2)
    first, second = job.requests
    for broken, said in (
        (
            replace(job, requests=(replace(first, after=(1,)), replace(second, after=(0,)))),
            "request 0: runs after itself",
        ),
        (replace(job, requests=(replace(first, after=("x",)), second)), "request 0: runs after x, which is no request"),
        (replace(job, requests=(first, first)), "request 0: is there twice"),
        (replace(job, requests=(replace(first, objects=(2,)), second)), "request 0: needs an object that is not"),
        (replace(job, objects=(Object("a", 1, stored=False), Object("b", 1))), "object a: is not in local and can't"),
        (replace(job, tiers=(PlannedTier("host", 2, 0.0),)), "tier host: wanted bytes a second above 0"),
        (
            replace(job, tiers=(PlannedTier("host", 2, 1.0, 0.0, 0.0),)),
            "tier host: wanted bytes a second above 0 alone",
        ),
        (replace(job, requests=()), "job: no request"),
    ):
        with pytest.raises(BadInput, match=said):
            make_plan(broken)


@settings(max_examples=150, deadline=None)
@given(jobs(), st.data())
def test_replay_sees_any_move_left_out_or_hurried(job: Job, draw: st.DataObject) -> None:
    plan = make_plan(job)
    place = draw.draw(st.integers(0, len(plan.lanes) - 1))
    assume(plan.lanes[place])
    at = draw.draw(st.integers(0, len(plan.lanes[place]) - 1))
    move = plan.lanes[place][at]
    broken: list[tuple[Move, ...]] = [(), (move, move)]
    if move.evict and move.after >= 0:
        broken.append((replace(move, after=move.after - 1),))
    for moves in broken:
        lane = (*plan.lanes[place][:at], *moves, *plan.lanes[place][at + 1 :])
        with pytest.raises(BadInput):
            replay(job, plan.order, (*plan.lanes[:place], lane, *plan.lanes[place + 1 :]))


# --- as JSON


@settings(max_examples=100, deadline=None)
@given(jobs(), st.sampled_from(["given", "prefix"]))
def test_a_plan_comes_back_from_json_as_it_was(job: Job, order: str) -> None:
    plan = make_plan(job, order=order)
    assert parse_plan(json.loads(json.dumps(plan.fields())), "PLAN") == plan


@settings(max_examples=400, deadline=None)
@given(jobs(), st.data())
def test_a_plan_changed_anywhere_is_refused_or_is_another_plan(job: Job, draw: st.DataObject) -> None:
    value = json.loads(json.dumps(make_plan(job).fields()))
    before = json.dumps(value)
    spots = list(places_in(value))
    holder, key = spots[draw.draw(st.integers(0, len(spots) - 1))]
    if draw.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw.draw(st.sampled_from(JUNK))
    assume(json.dumps(value) != before)
    with contextlib.suppress(BadInput, NoRoom):
        plan = parse_plan(value, "PLAN")
        assert json.loads(json.dumps(plan.fields())) == value


def test_a_kept_plan_cannot_outgrow_a_budget_or_run_before_its_time() -> None:
    job = sized_job([(0,), (0, 1), (2,)], 3)
    job = replace(job, requests=(*job.requests[:2], replace(job.requests[2], after=(1,))))
    value = make_plan(job).fields()
    assert parse_plan(value, "PLAN").order == (0, 1, 2)
    tighter = value | {"tiers": [value["tiers"][0] | {"capacity_bytes": 2}]}
    with pytest.raises(BadInput, match="PLAN: move 2 into host: fills 3 bytes of 2"):
        parse_plan(tighter, "PLAN")
    early = make_plan(replace(job, requests=(job.requests[0], job.requests[2], job.requests[1]))).fields()
    assert early["order"] == [0, 1, 2], "given too early, moved to where it may run"
    with pytest.raises(BadInput, match="PLAN: order: runs request 2 before one that it waits for"):
        parse_plan(value | {"order": [0, 2, 1]}, "PLAN")


def test_plans_are_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "plan.py"
    script.write_text(
        "import json, sys, hashlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2] / 'support')!r})\n"
        "from jobs import block_job, conversations\n"
        "from arstore.store.plan.planner import make_plan\n"
        "job = block_job(conversations(count=150), 0.1)\n"
        "for order in ('given', 'prefix'):\n"
        "    print(hashlib.sha256(json.dumps(make_plan(job, order=order).fields()).encode()).hexdigest())\n"
    )
    said = [
        subprocess.run(
            [sys.executable, script], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("0", "1", "4242")
    ]
    assert len(set(said)) == 1
    assert len(said[0].split()) == 2


# --- a whole trace


@pytest.fixture(scope="module", params=["generated", "real"])
def trace(request: pytest.FixtureRequest) -> list[tuple[int, ...]]:
    if request.param == "generated":
        return conversations()
    if not TRACE:
        pytest.skip("no trace: name one in ARSTORE_TRACE")
    with Path(TRACE).open() as lines:
        return [tuple(json.loads(line)["hash_ids"]) for line in lines]


def test_a_trace_is_planned_in_time_and_order_beats_eviction(trace: list[tuple[int, ...]]) -> None:
    """5 % of the unique blocks as the fast tier: nothing is fetched twice in order of arrival; seconds of one core."""
    job = block_job(trace, 0.05)
    begin = time.process_time()
    plan = make_plan(job)
    assert time.process_time() - begin <= 5
    assert len(job.requests) > 10_000
    assert sum(map(len, trace)) > 250_000
    assert plan.refetches == 0
    assert len(plan.lanes[0]) == len(job.objects)
    work = sum(one.compute_s for one in job.requests)
    assert plan.predicted_s <= 1.05 * max(work, len(job.objects) * job.tiers[0].seconds(BLOCK_BYTES))
    lru = make_plan(job, windows=[len(job.requests)])
    assert simulate(job, lru.order, lru.lanes, ahead=0).seconds >= 1.8 * plan.predicted_s

    prefix = prefix_order(job)
    assert live_peak_bytes(job, prefix) == max(map(len, trace)) * BLOCK_BYTES
    assert plan.live_peak_bytes >= 30 * live_peak_bytes(job, prefix)


def test_in_a_tight_tier_a_window_beats_belady_by_the_clock(trace: list[tuple[int, ...]]) -> None:
    job = block_job(trace, 0.01)
    belady, reserved = make_plan(job, windows=[0]), make_plan(job, windows=[8])
    assert belady.refetches < reserved.refetches
    assert reserved.predicted_s < 0.9 * belady.predicted_s
