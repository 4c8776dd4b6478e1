"""Simulated times: run as by a clock, nothing overflows and nothing is missing; some are worked by hand."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.store.plan.model import Job, Move, Object, PlannedTier, Request, replay
from arstore.store.plan.planfile import Plan
from arstore.store.plan.planner import make_plan
from arstore.store.plan.simulate import simulate
from tests.support.jobs import jobs, sized_job


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


def test_moves_overlap_the_computing_of_earlier_requests() -> None:
    job = sized_job([(0, 1), (2,)], 3, length=2)  # 2 s an object
    job = replace(job, requests=tuple(replace(one, compute_s=3.0) for one in job.requests))
    plan = make_plan(job)
    assert simulate(job, plan.order, plan.lanes).requests == ((4.0, 7.0), (7.0, 10.0))
    assert simulate(job, plan.order, plan.lanes, ahead=0).requests == ((4.0, 7.0), (9.0, 12.0))
    assert (plan.predicted_s, plan.peak_bytes, plan.refetches) == (10.0, (6,), 0)


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
