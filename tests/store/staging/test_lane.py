"""A lane makes its moves in order, within the room of its plan, and fails only the steps whose objects fail."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from arstore.store.disk import Disk
from arstore.store.errors import NotFound, StorageFailed
from arstore.store.plan.model import NEVER, Move
from arstore.store.progress import ignore_bytes
from arstore.store.staging.lane import Lane
from arstore.store.staging.lane_plan import LanePlan
from arstore.store.staging.steps import Steps
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.device import DeviceTier
from arstore.store.tiers.sources import Sources
from arstore.store.tiers.tier import Tier
from tests.support.fresh_memory import memory
from tests.support.tier_faults import Given, given
from tests.support.tier_suite import whole

__all__ = ["memory"]  # fixtures

KEYS = [letter * 64 for letter in "abc"]
# Three objects through room for one: each move waits for the step before it and evicts what that step used.
ONE_BY_ONE = (Move(0, 0), Move(1, 1, 0, (0,)), Move(2, 2, 1, (1,)))


class Made:
    """A lane over real tiers: the objects lie in one arena, and go up into another tier."""

    def __init__(self, memory: Path, objects: Sequence[Given]) -> None:
        self.objects = objects
        self.store = Arena("local", memory / "store", 1 << 30, Disk())
        self.host = Arena("host", memory / "host", 1 << 30, Disk())
        for key, content in zip(KEYS, objects, strict=False):
            self.store.fill(key, content)
        self.events: list[tuple[str, int, str]] = []

    def lane(
        self,
        moves: Sequence[Move],
        needs: Sequence[Sequence[int]],
        tier: Tier | None = None,
        *,
        below: Steps | None = None,
        always: Sequence[int] = (),
        waits: Sequence[Sequence[int]] = (),
        resident: Sequence[int] = (),
    ) -> Lane:
        plan = LanePlan(keys=KEYS, moves=moves, needs=needs, always=always, waits=waits, resident=resident)
        return Lane(
            tier or self.host,
            plan,
            below=below,
            sources=Sources([], self.store),
            on_event=lambda kind, number, source, began: self.events.append((kind, number, source)),
            on_bytes=ignore_bytes,
            clock=time.monotonic,
        )

    def in_host(self) -> list[str]:
        return [resident.key for resident in self.host.residents()]


@pytest.fixture
def made(memory: Path) -> Made:
    return Made(memory, [given() for _ in KEYS])


def test_moves_wait_for_their_step_and_evict_first(made: Made) -> None:
    lane = made.lane(ONE_BY_ONE, ((0,), (1,), (2,)))
    lane.start()
    for step in range(3):
        assert lane.next() == step
        taken = lane.take(step)
        assert whole(taken.held[step]) == made.objects[step].content
        time.sleep(0.05)  # as long as the step is not over, nothing more may come
        assert made.in_host() == [KEYS[step]]
        taken.held.clear()
        lane.finish(step)
    assert lane.next() is None
    lane.close()
    assert made.in_host() == []
    assert [event for event in made.events if event[0] != "step"] == [
        ("move", 0, "local"), ("evict", 0, ""), ("move", 1, "local"), ("evict", 1, ""), ("move", 2, "local"),
    ]  # fmt: skip


def test_a_move_that_fails_fails_only_the_steps_that_need_its_object(made: Made) -> None:
    made.store.remove(KEYS[1])
    lane = made.lane((Move(0, 0), Move(1, 1), Move(2, 2)), ((0,), (0, 1), (2,)))
    lane.start()
    first, second, third = (lane.take(step) for step in range(3))
    assert ([*first.held], [*second.held], [*third.held]) == ([0], [0], [2])
    assert (first.failed, third.failed) == ({}, {})
    assert isinstance(second.failed[1], NotFound)
    assert lane.failed.keys() == {1}
    lane.close()


def test_every_step_takes_what_all_of_them_need(made: Made) -> None:
    lane = made.lane((Move(0, 0), Move(1, 0), Move(2, 1)), ((1,), (2,)), always=(0,))
    lane.start()
    assert [sorted(lane.take(step).held) for step in range(2)] == [[0, 1], [0, 2]]
    lane.close()


def test_a_step_waits_until_those_before_it_are_over(made: Made) -> None:
    lane = made.lane((Move(0, 0), Move(1, 1)), ((0,), (1,)), waits=((), (0,)))
    lane.start()
    lane.wait_for_moves(2)
    lane.take(0)
    taken = threading.Event()

    def wait() -> None:
        lane.take(1)
        taken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not taken.wait(0.1)
    lane.finish(0)
    assert taken.wait(10)
    waiting.join()
    lane.close()


def test_close_removes_what_the_lane_moved_and_leaves_what_was_there(made: Made) -> None:
    made.host.fill(KEYS[0], made.objects[0])
    lane = made.lane((Move(1, 0),), ((0, 1),), resident=(0,))
    lane.start()
    assert sorted(lane.take(0).held) == [0, 1]
    assert sorted(lane.held()) == [0, 1]
    lane.close()
    assert made.in_host() == [KEYS[0]]


def test_who_waits_when_a_lane_stops_gets_an_error(made: Made) -> None:
    lane = made.lane(ONE_BY_ONE, ((0,), (1,), (2,)))
    lane.start()
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            lane.take(2)  # its object comes only after two steps that nobody takes
        except StorageFailed as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    lane.wait_for_moves(1)
    lane.stop()
    waiting.join(10)
    assert [str(error) for error in failures] == ["run: has ended"]
    with pytest.raises(StorageFailed):
        lane.wait_for_moves(0)
    lane.close()


def test_a_lane_takes_its_objects_from_the_lane_below_step_by_step(made: Made) -> None:
    """The host has room for one object of three; each leaves it once it is on the device."""
    moves = tuple(Move(number, number, NEVER) for number in range(3))
    host = made.lane(ONE_BY_ONE, ((0,), (1,), (2,)))
    device = made.lane(moves, ((0,), (1,), (2,)), DeviceTier("cpu"), below=host)
    for lane in (host, device):
        lane.start()
    for step in range(3):
        assert whole(device.take(step).held[step]) == made.objects[step].content
    device.close()
    host.close()
    moved = [event for event in made.events if event[0] == "move"]
    assert sorted(moved) == [("move", n, source) for n in range(3) for source in ("host", "local")]
    assert made.in_host() == []


def test_where_the_lane_below_has_ended_objects_come_from_the_sources(made: Made) -> None:
    host = made.lane(ONE_BY_ONE, ((0,), (1,), (2,)))
    host.close()
    device = made.lane((Move(0, 0),), ((0,),), DeviceTier("cpu"), below=host)
    device.start()
    assert whole(device.take(0).held[0]) == made.objects[0].content
    assert made.events == [("move", 0, "local")]
    device.close()


def test_objects_that_a_job_computes_are_no_moves_of_the_lane(made: Made) -> None:
    lane = made.lane((Move(0, 0, made=True), Move(1, 0)), ((0, 1),))
    lane.start()
    taken = lane.take(0)
    assert ([*taken.held], taken.failed, made.in_host()) == ([1], {}, [KEYS[1]])
    lane.close()


def test_an_object_that_is_still_used_leaves_once_it_is_dropped(made: Made) -> None:
    lane = made.lane(ONE_BY_ONE, ((0,), (1,), (2,)))
    lane.start()
    used = lane.take(0).held[0]
    lane.finish(0)
    lane.take(1).held.clear()
    assert made.in_host() == KEYS[:2], "a process uses the first"
    assert whole(used) == made.objects[0].content
    del used
    lane.finish(1)
    lane.take(2).held.clear()
    assert made.in_host() == [KEYS[2]]
    lane.close()
