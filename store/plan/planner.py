"""Planner: a job becomes a plan, which says what moves when. Pure: the same job gives the same plan, to the byte.

The target's lane is planned for the requests, and each lower lane for the moves of the lane above it. This is done for
several windows (see `eviction`), and each result is simulated. Of those within 1 % of the fastest, the one that moves
the fewest bytes is taken. So a refetch is planned only where it saves time. LRU is one of the windows, and may win.

The search ends early at lanes that fetch nothing twice and are within 1 % of the time that unlimited room would give:
no other lanes move less, and none are faster by more than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .eviction import Uses, fill
from .model import Job, Move, check_job, steps_below
from .order import given_order, prefix_order
from .planfile import Plan, count_refetches, plan_of_lanes
from .recompute import fetch_seconds, split_requests
from .simulate import simulate

ORDERS = {"given": given_order, "prefix": prefix_order}
WINDOWS = (0, 8, 32)
_WORTH = 1.01


def make_plan(job: Job, *, order: str = "given", windows: Sequence[int] | None = None) -> Plan:
    """Return the plan of a job, with its requests in the given or the prefix order. Nothing moves, nothing is read.

    Raises BadInput for a job that contradicts itself, NoRoom for a request or an object that no budget here can hold.
    """
    check_job(job)
    numbers = ORDERS[order](job)
    needs = Uses(job.needs(numbers), len(job.objects))
    tried: list[_Candidate] = []
    for window in (*WINDOWS, len(numbers)) if windows is None else windows:
        tried += [_simulated(job, numbers, lanes) for lanes in _lanes_under(job, numbers, needs, window)]
        fastest = min(tried, key=lambda candidate: candidate.seconds)
        if not count_refetches(job, fastest.lanes):
            roomy = simulate(job, numbers, fastest.lanes, roomy=True)
            if fastest.seconds <= _WORTH * roomy.seconds:
                break
    fast = [candidate for candidate in tried if candidate.seconds <= _WORTH * fastest.seconds]
    chosen = min(fast, key=lambda candidate: (candidate.moved_bytes, candidate.seconds))
    return plan_of_lanes(job, numbers, chosen.lanes)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Lanes that keep all rules, how long a run of them takes, and how many bytes they move."""

    lanes: list[list[Move]]
    seconds: float
    moved_bytes: int


def _simulated(job: Job, order: Sequence[int], lanes: list[list[Move]]) -> _Candidate:
    moved = sum(job.objects[move.object].length_bytes for lane in lanes for move in lane if not move.made)
    return _Candidate(lanes, simulate(job, order, lanes).seconds, moved)


def _lanes_under(job: Job, order: Sequence[int], needs: Uses, window: int) -> list[list[list[Move]]]:
    """Return lanes under one window: with all objects fetched, and with some computed, where each is possible."""
    lanes = _with_lower(job, _lane_into(job, 0, needs, window), window)
    if not job.tokens_per_s:
        return [lanes]
    split = split_requests(job, order, lanes[0], fetch_seconds(job, lanes))
    if split == lanes[0]:
        return [lanes]
    fetched = [lanes] if all(job.objects[move.object].stored for move in split) else []
    return [*fetched, _with_lower(job, split, window)]


def _with_lower(job: Job, top: list[Move], window: int) -> list[list[Move]]:
    """Return the lanes of all tiers, given the target's lane."""
    lanes = [top]
    for place in range(1, len(job.tiers)):
        lanes.append(_lane_into(job, place, Uses(steps_below(lanes[-1]), len(job.objects)), window))
    return lanes


def _lane_into(job: Job, place: int, uses: Uses, window: int) -> list[Move]:
    """Return the lane into one tier, which brings what `uses` lists."""
    sizes = [staged.length_bytes for staged in job.objects]
    capacity, held = job.tiers[place].capacity_bytes, frozenset(() if place else job.held)
    return fill(uses, sizes, capacity, window=window, found=job.found(place), held=held)
