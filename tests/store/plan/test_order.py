"""Orders: each respects `after`, and no order needs less room than the prefix order."""

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.store.plan.model import Job
from arstore.store.plan.planner import make_plan
from tests.support.jobs import jobs, needs_of_requests, sized_job


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
