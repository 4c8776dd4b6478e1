"""Order: in which order requests run, and how many bytes must be resident so that nothing is fetched twice.

Invariant: an order holds every request once, each after all that its `after` names. It depends on the job alone.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate

from ..errors import BadInput
from .model import Job, RequestId


def given_order(job: Job) -> list[int]:
    """Return the requests as given. One that comes before a request it waits for is put where `after` allows it.

    Raises BadInput for an `after` that names no request, or requests that wait for each other.
    """
    return _schedule(job, range(len(job.requests)), onward=False)


def prefix_order(job: Job) -> list[int]:
    """Return an order in which requests that begin with the same objects run together.

    Sorted by their lists of objects, requests walk the tree of their prefixes depth first. Then each object's uses
    lie side by side, and no order needs less room. If a request has an `after`, three orders are tried and the one that
    needs the least room is taken: a request that comes free is taken when the walk comes to it again, or at once, or
    all run as given.
    """
    by_prefix = sorted(range(len(job.requests)), key=lambda number: (job.requests[number].objects, number))
    rank = [0] * len(by_prefix)
    for place, number in enumerate(by_prefix):
        rank[number] = place
    orders = [_schedule(job, rank, onward=True)]
    if any(request.after for request in job.requests):
        orders += [_schedule(job, rank, onward=False), given_order(job)]
    return min(orders, key=lambda order: live_peak_bytes(job, order))


def live_peak_bytes(job: Job, order: Sequence[int]) -> int:
    """Return the bytes that must be resident at the fullest moment of an order so that no object is fetched twice.

    At each request these are its own objects, what is held, and what earlier requests used and later ones use again.
    """
    held = set(job.held)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, request in enumerate(order):
        for number in job.requests[request].objects:
            first.setdefault(number, step)
            last[number] = step
    change = [0] * (len(order) + 1)
    for number, step in first.items():
        if number not in held:
            change[step] += job.objects[number].length_bytes
            change[last[number] + 1] -= job.objects[number].length_bytes
    return max(accumulate(change)) + sum(job.objects[number].length_bytes for number in held)


def _schedule(job: Job, rank: Sequence[int], *, onward: bool) -> list[int]:
    """Return the requests by rank, each after those it waits for.

    With `onward`, a request that comes free when its rank has passed waits until all free requests of this lap ran.
    """
    numbers = {request.id: number for number, request in enumerate(job.requests)}
    followers: list[list[int]] = [[] for _ in job.requests]
    waits = [0] * len(job.requests)
    for number, request in enumerate(job.requests):
        for name in dict.fromkeys(request.after):
            if name not in numbers:
                raise BadInput(f"request {request.id}", f"runs after {name}, which is no request")
            followers[numbers[name]].append(number)
            waits[number] += 1
    free = [(0, rank[number], number) for number, count in enumerate(waits) if not count]
    heapify(free)
    order = []
    while free:
        lap, place, number = heappop(free)
        order.append(number)
        for follower in followers[number]:
            waits[follower] -= 1
            if not waits[follower]:
                heappush(free, (lap + (onward and rank[follower] < place), rank[follower], follower))
    if len(order) < len(job.requests):
        stuck = next(number for number, count in enumerate(waits) if count)
        raise BadInput(f"request {job.requests[stuck].id}", "runs after itself, or after requests that wait for it")
    return order


def check_order(job: Job, order: Sequence[int]) -> None:
    """Raise BadInput unless an order holds every request once, each after all that its `after` names."""
    if sorted(order) != list(range(len(job.requests))):
        raise BadInput("order", "leaves a request out, or names one twice")
    over: set[RequestId] = set()
    for number in order:
        request = job.requests[number]
        if not over.issuperset(request.after):
            raise BadInput("order", f"runs request {request.id} before one that it waits for")
        over.add(request.id)
