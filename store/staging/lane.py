"""Lane: the moves of a plan into one tier. Its workers make them ahead of the steps that use the objects.

Moves start in their order, each when the step that it waits for is over. A move fills when everything that it and the
moves before it evict has gone, so the tier never holds more than the plan says. An object that is to be evicted but is
still used stays until its last user drops it. A move that fails fails the steps that need its object, and no others.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial

from ..errors import StorageFailed, StoreError, without_frames
from ..progress import BytesTold
from ..tiers.probe import WORKERS_COUNT
from ..tiers.sources import Sources
from ..tiers.tier import Held, Tier
from .lane_plan import LanePlan
from .steps import StepObjects, Steps
from .supply import Supply

# Called as something ends, with its kind ("move", "evict" or "step"), the number of the object or step, the tier that
# an object came from, and when it began.
OnEvent = Callable[[str, int, str, float], None]


class _Contiguous:
    """Numbers that come in any order. `count` says how many there are from 0 on with none left out."""

    def __init__(self) -> None:
        self.count, self._ahead = 0, set[int]()

    def add(self, number: int) -> None:
        self._ahead.add(number)
        while self.count in self._ahead:
            self._ahead.remove(self.count)
            self.count += 1


class Lane:
    """One lane of a running plan. Start it, take its steps in order, finish each, and close it."""

    def __init__(
        self,
        tier: Tier,
        plan: LanePlan,
        *,
        below: Steps | None,
        sources: Sources | None,
        on_event: OnEvent,
        on_bytes: BytesTold,
        clock: Callable[[], float],
        workers: int = WORKERS_COUNT,
    ) -> None:
        """Take the tier, its plan, and where objects come from: the lane `below`, if there is one, and `sources`.

        An object that the plan expects in the tier is brought from `sources` if it isn't there any more.
        """
        self._tier, self._plan, self._below = tier, plan, below
        self._supply = Supply(tier, below, sources, on_bytes, lambda: self._closed)
        self._on_event, self._clock = on_event, clock
        self._moves_until = plan.moves_until()
        self._next = 0
        self._began: dict[int, float] = {}  # when each step that is taken and not over was taken
        self._order = threading.Lock()  # held while a move begins
        self._changed = threading.Condition()
        self._started = 0  # how many moves have begun
        self._evicted, self._made = _Contiguous(), _Contiguous()  # moves whose room is free; moves that are made
        self._over_ahead, self._over = set[int](), -1  # steps that are over; the last up to which all are over
        self._current = StepObjects()  # the objects that are in place now, or failed
        self.failed: dict[int, StoreError] = {}  # every object that a move did not bring, with its error
        self._leaving = set[str]()  # evicted objects that somebody still uses
        self._fresh = set[str]()  # objects that this lane moved
        self._closed = False
        self._broken: Exception | None = None  # the error that ended the lane early
        self._process = os.getpid()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    @property
    def tier(self) -> str:
        return self._tier.tier

    def start(self) -> None:
        """Hold what is resident already, then start the workers."""
        for number in self._plan.resident:
            self._keep(number, partial(self._supply.bring_from_sources, self._plan.keys[number]))
        for thread in self._threads:
            thread.start()

    def wait_for_moves(self, count: int) -> None:
        """Wait until so many moves have been made, from the first on. Raises StorageFailed if the run has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._made.count >= count or self._closed)
            self._check()

    def held(self) -> dict[int, Held]:
        """Return the objects that are in place now, by number."""
        with self._changed:
            return dict(self._current.held)

    def next(self) -> int | None:
        if os.getpid() != self._process:
            raise StorageFailed("run", "is another process's, which forked this one", hint="start a process anew")
        with self._changed:
            if self._next == len(self._plan.needs):
                return None
            self._next += 1
            return self._next - 1

    def take(self, step: int) -> StepObjects:
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready(step) or self._closed)
            self._check()
            held, failed, needed = self._current.held, self._current.failed, self._plan.needed(step)
            self._began[step] = self._clock()
            return StepObjects({n: held[n] for n in needed if n in held}, {n: failed[n] for n in needed if n in failed})

    def _is_ready(self, step: int) -> bool:
        waits = self._plan.waits_of(step)
        return self._made.count >= self._moves_until[step] and all(
            before <= self._over or before in self._over_ahead for before in waits
        )

    def finish(self, step: int, *, done: bool = True) -> None:
        with self._changed:
            began = self._began.pop(step, None)
            self._over_ahead.add(step)
            self._advance()
        if began is not None:
            self._on_event("step", step, "", began)

    def stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._below is not None:
            self._below.stop()

    def close(self) -> None:
        """Stop, drop what is held, and remove the objects that this lane moved and that are not to stay longer.

        Waits for moves that are being made.
        """
        self.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._current = StepObjects()
        self._remove(self._fresh, expired_only=True)

    def _check(self) -> None:
        """Raise StorageFailed if the lane has ended."""
        if self._broken is not None:
            raise StorageFailed("run", f"has ended: {self._broken}") from self._broken
        if self._closed:
            raise StorageFailed("run", "has ended")

    def _advance(self) -> None:
        """Count on over the steps that are over.

        A step whose objects have not come yet is not counted: a move could evict one before it comes, in vain.
        """
        while self._over + 1 in self._over_ahead and self._made.count >= self._moves_until[self._over + 1]:
            self._over += 1
            self._over_ahead.remove(self._over)
        self._changed.notify_all()

    def _work(self) -> None:
        try:
            self._make_moves()
        except Exception as error:  # an error of one object is kept with it; after any other, nobody may wait for ever
            with self._changed:
                self._broken, self._closed = error, True
                self._changed.notify_all()

    def _make_moves(self) -> None:
        while (number := self._begin()) is not None:
            move = self._plan.moves[number]
            if not self._has_room(number):
                return
            if not move.made:
                self._keep(move.object, partial(self._supply.bring, self._plan.keys[move.object], move.object, number))
            elif self._below is not None:
                self._below.finish(number)
            with self._changed:
                self._made.add(number)
                self._advance()

    def _begin(self) -> int | None:
        """Return the next move when it may begin; None if there is none."""
        with self._order, self._changed:
            number = self._started
            if number == len(self._plan.moves):
                return None
            self._changed.wait_for(lambda: self._plan.moves[number].after <= self._over or self._closed)
            if self._closed:
                return None
            self._started += 1
            return number

    def _has_room(self, number: int) -> bool:
        """Evict what a move evicts, and wait until all moves before it have evicted; False if the lane closed."""
        for evicted in self._plan.moves[number].evict:
            self._evict(evicted)
        with self._changed:
            self._evicted.add(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._evicted.count > number or self._closed)
            return not self._closed

    def _keep(self, number: int, bring: Callable[[], tuple[Held, str]]) -> None:
        """Bring an object and hold it for the steps, or keep the error that says why it is not there."""
        began, key = self._clock(), self._plan.keys[number]
        try:
            held, source = bring()
        except (StoreError, OSError) as error:
            why = error if isinstance(error, StoreError) else StorageFailed(self.tier, str(error).lower())
            with self._changed:
                self._current.failed[number] = self.failed[number] = without_frames(why)
            return
        with self._changed:
            self._current.held[number] = held
            self._current.failed.pop(number, None)
            self._leaving.discard(key)
            if source != self.tier:
                self._fresh.add(key)
        if source != self.tier:
            self._on_event("move", number, source, began)

    def _evict(self, number: int) -> None:
        """Remove an object, and evicted objects that were in use before. Those still in use are tried again later."""
        with self._changed:
            self._current.failed.pop(number, None)
            if self._current.held.pop(number, None) is None:
                return
            # Taken out, so that no other worker tries them meanwhile.
            leaving, self._leaving = {*self._leaving, self._plan.keys[number]}, set()
        self._on_event("evict", number, "", self._clock())
        left = leaving - self._remove(leaving)
        with self._changed:
            self._leaving |= left

    def _remove(self, keys: set[str], *, expired_only: bool = False) -> set[str]:
        """Remove objects that nobody uses any more; return which are gone. A tier that fails keeps them."""
        gone = set[str]()
        for key in keys:
            with contextlib.suppress(StoreError):
                if self._tier.remove(key, expired_only=expired_only):
                    gone.add(key)
        return gone
