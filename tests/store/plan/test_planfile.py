"""A plan as JSON: it comes back as it was, and a changed one is refused or is another plan."""

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arstore.store.errors import BadInput, NoRoom
from arstore.store.plan.model import Job
from arstore.store.plan.planfile import parse_plan
from arstore.store.plan.planner import make_plan
from tests.support.jobs import JUNK, jobs, places_in, sized_job


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
