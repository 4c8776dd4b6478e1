"""Fetch, recompute or split: the two speeds decide, and recomputing is never slower."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.store.plan.model import Job, Object, PlannedTier, Request
from arstore.store.plan.planner import make_plan
from tests.support.jobs import jobs


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
