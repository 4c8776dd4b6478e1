"""A lane plan counts the moves before each step, and names what each step needs."""

from arstore.store.plan.model import Move
from arstore.store.staging.lane_plan import LanePlan


def test_a_plan_counts_the_moves_before_each_step() -> None:
    plan = LanePlan(
        keys=[letter * 64 for letter in "abc"],
        moves=(Move(0, 0), Move(1, 0), Move(2, 2)),
        needs=((0, 1), (), (2,)),
        always=(),
        waits=(),
        resident=(),
    )
    assert plan.moves_until() == [2, 2, 3]
    assert [plan.waits_of(step) for step in range(3)] == [(), (), ()]
