"""The rules of jobs and moves: what breaks one is refused."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arstore.store.errors import BadInput, NoRoom
from arstore.store.plan.model import Job, Move, Object, PlannedTier, replay
from arstore.store.plan.planner import make_plan
from tests.support.jobs import jobs, sized_job, with_host


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
