"""plan: what moves when, so that a job finds everything in place. Pure: the same job gives the same plan, to the byte.

Each tier is planned for the moves of the tier above it, the target for the requests. Several windows (eviction.py) are
tried and simulated; of those within 1 % of the fastest, the one that moves the fewest bytes is taken, so that a refetch
must be worth its while. LRU is among them and may win. A plan that fetches nothing twice and is within 1 % of what
unlimited room would bring ends the search: no other moves less, none can be faster by more.
"""

from collections.abc import Sequence

from .eviction import Uses, fill
from .model import Job, Move, check_job, steps_below
from .order import given_order, prefix_order
from .planfile import Plan, count_refetches, settle_plan
from .recompute import fetch_seconds, split_requests
from .simulate import simulate

ORDERS = {"given": given_order, "prefix": prefix_order}
WINDOWS = (0, 8, 32)
_WORTH = 1.01


def make_plan(job: Job, *, order: str = "given", windows: Sequence[int] | None = None) -> Plan:
    """Return the staging plan of a job in the given or the prefix order; nothing moves, nothing is read.

    Raises BadInput for a job that contradicts itself, NoRoom for a request or an object that no budget here can hold.
    """
    check_job(job)
    numbers = ORDERS[order](job)
    needs = Uses(job.needs(numbers), len(job.objects))
    tried: list[tuple[float, int, list[list[Move]]]] = []
    for window in (*WINDOWS, len(numbers)) if windows is None else windows:
        for lanes in _ways(job, numbers, needs, window):
            moved = sum(job.objects[move.object].length_bytes for lane in lanes for move in lane if not move.made)
            tried.append((simulate(job, numbers, lanes).seconds, moved, lanes))
        seconds, _, lanes = min(tried, key=lambda one: one[0])
        if not count_refetches(job, lanes) and seconds <= _WORTH * simulate(job, numbers, lanes, roomy=True).seconds:
            break
    worth = min(seconds for seconds, _, _ in tried) * _WORTH
    _, _, lanes = min((one for one in tried if one[0] <= worth), key=lambda one: (one[1], one[0]))
    return settle_plan(job, numbers, lanes)


def _ways(job: Job, order: Sequence[int], needs: Uses, window: int) -> list[list[list[Move]]]:
    """Return the moves into each tier under one window: all fetched, and some computed, where that is possible."""
    lanes = _lower(job, _fill(job, 0, needs, window), window)
    if not job.tokens_per_s:
        return [lanes]
    split = split_requests(job, order, lanes[0], fetch_seconds(job, lanes))
    fetched = [lanes] if all(job.objects[move.object].stored for move in split) else []
    return [*fetched, _lower(job, split, window)] if split != lanes[0] else [lanes]


def _fill(job: Job, place: int, uses: Uses, window: int) -> list[Move]:
    sizes = [one.length_bytes for one in job.objects]
    capacity, held = job.tiers[place].capacity_bytes, frozenset(() if place else job.held)
    return fill(uses, sizes, capacity, window=window, found=job.found(place), held=held)


def _lower(job: Job, top: list[Move], window: int) -> list[list[Move]]:
    """Return the lanes of a plan from the target's down."""
    lanes = [top]
    for place in range(1, len(job.tiers)):
        lanes.append(_fill(job, place, Uses(steps_below(lanes[-1]), len(job.objects)), window))
    return lanes
