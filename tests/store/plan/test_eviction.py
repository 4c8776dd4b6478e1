"""Eviction: held against every other plan of a tiny job."""

from collections import OrderedDict
from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.store.plan.planner import make_plan
from tests.support.jobs import needs_of_requests, sized_job


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


def test_a_reserved_window_buys_time_with_a_refetch() -> None:
    """Belady evicts what the running request uses and must wait for it; keeping that lets the next move start early."""
    job = sized_job([(0,), (1,), (2,), (0,)], 2)
    job = replace(job, requests=tuple(replace(one, compute_s=1.0) for one in job.requests))
    plans = [make_plan(job, windows=windows) for windows in ([0], [1], None)]
    assert [plan.predicted_s for plan in plans] == [6.0, 5.0, 5.0]
    assert [plan.refetches for plan in plans] == [0, 1, 1]


def test_weights_stay_whatever_comes() -> None:
    job = sized_job([(1,), (2,), (3,), (0,)], 2, held=(0,))
    plan = make_plan(job)
    assert [move.object for move in plan.lanes[0]] == [0, 1, 2, 3]
    assert (plan.refetches, plan.live_peak_bytes) == (0, 2)
