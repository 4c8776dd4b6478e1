"""The planner: held against LRU, worked by hand, and given whole traces.

A real trace of requests (JSON lines with hash ids) is planned too if $ARSTORE_TRACE names one.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.store.plan.model import Job, Object, PlannedTier, Request
from arstore.store.plan.order import live_peak_bytes, prefix_order
from arstore.store.plan.planner import make_plan
from arstore.store.plan.simulate import simulate
from tests.support.jobs import BLOCK_BYTES, block_job, conversations, jobs, sized_job

TRACE = os.environ.get("ARSTORE_TRACE")


@settings(max_examples=150, deadline=None)
@given(jobs(recompute=False), st.sampled_from(["given", "prefix"]))
def test_a_plan_is_never_predicted_slower_than_lru(job: Job, order: str) -> None:
    chosen, lru = make_plan(job, order=order), make_plan(job, order=order, windows=[len(job.requests)])
    assert chosen.predicted_s <= lru.predicted_s * 1.01 + 1e-9


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


@pytest.fixture(scope="module", params=["generated", "real"])
def trace(request: pytest.FixtureRequest) -> list[tuple[int, ...]]:
    if request.param == "generated":
        return conversations()
    if not TRACE:
        pytest.skip("no trace: name one in ARSTORE_TRACE")
    with Path(TRACE).open() as lines:
        return [tuple(json.loads(line)["hash_ids"]) for line in lines]


def test_a_trace_is_planned_and_order_beats_eviction(trace: list[tuple[int, ...]]) -> None:
    """5 % of the unique blocks as the fast tier: nothing is fetched twice in order of arrival."""
    job = block_job(trace, 0.05)
    plan = make_plan(job)
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


def calls_of(job: Job) -> int:
    """Return how many calls of functions it takes to plan a job: the same number on every machine."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        make_plan(job)
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_of_planning_grows_with_the_trace_and_not_with_its_square(trace: list[tuple[int, ...]]) -> None:
    small, large = (block_job(trace[: len(trace) // part], 0.05) for part in (32, 16))
    assert calls_of(large) <= 2.6 * calls_of(small)


def test_in_a_tight_tier_a_window_beats_belady_by_the_clock(trace: list[tuple[int, ...]]) -> None:
    job = block_job(trace, 0.01)
    belady, reserved = make_plan(job, windows=[0]), make_plan(job, windows=[8])
    assert belady.refetches < reserved.refetches
    assert reserved.predicted_s < 0.9 * belady.predicted_s
