"""Fetch, recompute or split: which of the objects that requests miss are computed anew instead of fetched.

A request's objects come in order, and an accelerator that computes one needs only those before it. So a request
computes none, all, or the first few of them while the others arrive. The count is the one that lets the request end
soonest, by the known load of lane and accelerator. Of counts that end at the same time the lowest is taken.

Invariant: an object that isn't stored is computed, and one without tokens is not.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

from .model import Job, Lanes, Move


def fetch_seconds(job: Job, lanes: Lanes) -> list[float]:
    """Return for each move into the target the seconds of the slowest move on its way up, in this plan."""
    costs = [0.0] * len(lanes[-1])
    for place in range(len(lanes) - 1, -1, -1):
        tier = job.tiers[place]
        above = [0.0] * (len(lanes[place - 1]) if place else 0)
        for at, move in enumerate(lanes[place]):
            costs[at] = max(costs[at], tier.seconds(job.objects[move.object].length_bytes))
            if place:
                above[move.step] = costs[at]
        costs = above if place else costs
    return costs


def split_requests(job: Job, order: Sequence[int], top: Sequence[Move], costs: Sequence[float]) -> list[Move]:
    """Return the target's moves; those that are better computed than fetched are marked as made."""
    stored = [staged.stored for staged in job.objects]
    split: list[Move] = []
    ends: list[float] = []  # of each request so far
    arrived = 0.0
    for step, number in enumerate(order):
        stop = bisect_left(top, step + 1, len(split), key=lambda move: move.step)
        moves, here = top[len(split) : stop], costs[len(split) : stop]
        idle = ends[-1] if ends else 0.0
        room = max((ends[move.after] for move in moves if move.after >= 0), default=0.0)
        anew = [job.recompute_s(move.object) for move in moves]
        front = accumulate(anew, initial=0.0)
        fetch = _rests(cost * stored[move.object] for move, cost in zip(moves, here, strict=True))
        tail = _rests(0.0 if stored[move.object] else cost for move, cost in zip(moves, anew, strict=True))
        loaded = [max(arrived, room) + rest if rest else arrived for rest in fetch]
        ended, count = min(
            (max(fetched, idle + computed) + last, count)
            for count, (fetched, computed, last) in enumerate(zip(loaded, front, tail, strict=True))
        )
        arrived = loaded[count]
        ends.append(ended + job.requests[number].compute_s)
        for place, move in enumerate(moves):
            split.append(replace(move, made=True) if place < count or not stored[move.object] else move)
    return split


def _rests(values: Iterable[float]) -> list[float]:
    """Return the sums of all values, of all but the first, of all but the first two, and so on down to 0."""
    return [*accumulate(reversed([*values]), initial=0.0)][::-1]
