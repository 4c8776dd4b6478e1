"""Which objects leave a tier so that others can come: Belady's choice, with a window of steps that it may not touch.

Belady alone evicts the object whose next use is furthest away. Often the running request uses that object. Then its
space comes free late, and the next moves wait. So objects that the last `window` steps used are evicted only if no
other can be, and moves can run that many steps ahead.

A window of 0 is Belady: if all objects have one size, no other choice fetches less. A window as wide as the order never
looks into the future: it evicts the object that was used longest ago, which is LRU.

Invariant: the last user of an evicted object is at most the `after` of the move that evicts it. It is never the step
that the move is for.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from .model import NEVER, Move

_END = 1 << 60


class Uses:
    """The steps of one tier and, for each use, when the object is used next."""

    def __init__(self, steps: Sequence[tuple[int, ...]], objects_count: int) -> None:
        self.steps = steps
        upcoming = [_END] * objects_count
        self.next: list[list[int]] = [[]] * len(steps)
        for step in range(len(steps) - 1, -1, -1):
            self.next[step] = [upcoming[number] for number in steps[step]]
            for number in steps[step]:
                upcoming[number] = step
        self.first = upcoming


def fill(
    uses: Uses, sizes: Sequence[int], capacity: int | None, *, window: int, found: Sequence[int], held: frozenset[int]
) -> list[Move]:
    """Return the moves that bring every step's objects into a tier. `found` are in it at first, `held` never leave.

    Each step alone must fit. Of objects that are never used again, the one that was used longest ago is evicted first.
    """
    limit = _END if capacity is None else capacity
    upcoming = list(uses.first)
    last = [_END] * len(sizes)  # the last step that used an object; _END: it is not in the tier
    for number in found:
        last[number] = NEVER
    used = sum(sizes[number] for number in found)
    # (-next use, last use, object); the next to evict is on top. A row is stale once its object was used again.
    ready = [(-upcoming[number], NEVER, number) for number in found if number not in held]
    heapify(ready)
    moves = []
    oldest = 0  # the first step whose objects are still reserved

    def open_step() -> None:
        nonlocal oldest
        for number in uses.steps[oldest]:
            if last[number] == oldest and number not in held:
                heappush(ready, (-upcoming[number], oldest, number))
        oldest += 1

    for step, needed in enumerate(uses.steps):
        missing = [number for number in needed if last[number] == _END]
        for number, then in zip(needed, uses.next[step], strict=True):
            upcoming[number] = then
            if last[number] != _END:
                last[number] = step
        while oldest < step - window:
            open_step()
        for number in missing:
            after, evict = NEVER, []
            while used + sizes[number] > limit:
                while not ready:
                    assert oldest < step, "a step that can't fit must be refused before"
                    open_step()
                _, when, victim = heappop(ready)
                if last[victim] == when:
                    last[victim] = _END
                    used -= sizes[victim]
                    after = max(after, when)
                    evict.append(victim)
            last[number] = step
            used += sizes[number]
            moves.append(Move(number, step, after, tuple(evict)))
    return moves
