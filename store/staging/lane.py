"""Lane: the moves of a plan into one tier, made by workers ahead of whoever uses what they bring; see staging.py.

Moves start in their order, each when the step that it waits for is over, and fill when all that they and those before
evict has gone, so the tier never holds more than the plan says. What somebody still uses when it is to go stays until
it is dropped, and goes then. A move that fails fails those steps that need its object, and no other.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from ..errors import Corrupt, Fenced, NotFound, StorageFailed, StoreError, fresh, without_frames
from ..plan.model import Move
from ..progress import BytesTold
from ..tiers.probe import WORKERS_COUNT
from ..tiers.sources import Sources
from ..tiers.tier import Held, Tier
from .steps import Steps, Taken

# Kind ("move", "evict" or "step"), number of the object or step, the tier it came from, when it began; it ends now.
Told = Callable[[str, int, str, float], None]

_RETRY_S = 0.02


class _Ended:
    """Numbers that come in any order: `count` is how many there are from 0 on with none left out."""

    def __init__(self) -> None:
        self.count, self._ahead = 0, set[int]()

    def add(self, number: int) -> None:
        self._ahead.add(number)
        while self.count in self._ahead:
            self._ahead.remove(self.count)
            self.count += 1


class Lane:
    """One lane of a running plan. Start it, take the steps in their order, say when each is over, and close it."""

    def __init__(
        self, tier: Tier, moves: Sequence[Move], needs: Sequence[Sequence[int]], keys: Sequence[str], *,
        waits: Sequence[Sequence[int]], always: Sequence[int], found: Sequence[int], below: Steps | None,
        sources: Sources | None, told: Told, coming: BytesTold, clock: Callable[[], float],
        workers: int = WORKERS_COUNT,
    ) -> None:  # fmt: skip
        """Take the tier, its moves, what each step needs and what `always` all do, and the keys of all objects; and the
        steps that each step `waits` for, if any does.

        Objects come from the lane `below`, where there is one, else from `sources`; what is `found` lies there already,
        and is brought from `sources` if it doesn't any more.
        """
        self._tier, self._moves, self._needs, self._keys = tier, moves, needs, keys
        self._waits, self._always, self._found, self._below, self._sources = waits, always, found, below, sources
        self._told, self._coming, self._clock = told, coming, clock
        self._until = _counts(moves, len(needs))
        self._next = 0
        self._began: dict[int, float] = {}  # when steps that are not over were taken
        self._order = threading.Lock()  # held while a move begins
        self._changed = threading.Condition()
        self._started = 0  # moves that have been begun, in order
        self._evicted, self._made = _Ended(), _Ended()  # moves whose room is free, and that are made
        self._over_ahead, self._over = set[int](), -1  # steps that are over, and the last up to which all are
        self._there = Taken()  # what is in place now, or should be
        self.failed: dict[int, StoreError] = {}  # every object that a move did not bring, and why
        self._leaving = set[str]()
        self._fresh = set[str]()
        self._closed = False
        self._broken: Exception | None = None  # what ended it before its time
        self._process = os.getpid()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]

    @property
    def tier(self) -> str:
        return self._tier.tier

    def start(self) -> None:
        for number in self._found:
            self._keep(number, partial(self._from_sources, self._keys[number]))
        for thread in self._threads:
            thread.start()

    def ready(self, moves: int) -> None:
        """Wait until so many moves have been made, from the first on. Raises StorageFailed if the run has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._made.count >= moves or self._closed)
            self._check()

    def placed(self) -> dict[int, Held]:
        """Return what is in place now."""
        with self._changed:
            return dict(self._there.held)

    def next(self) -> int | None:
        if os.getpid() != self._process:
            raise StorageFailed("run", "is another process's, which forked this one", hint="start a process anew")
        with self._changed:
            if self._next == len(self._needs):
                return None
            self._next += 1
            return self._next - 1

    def take(self, step: int) -> Taken:
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready(step) or self._closed)
            self._check()
            held, failed = self._there.held, self._there.failed
            needed = (*self._needs[step], *self._always)
            self._began[step] = self._clock()
            return Taken({n: held[n] for n in needed if n in held}, {n: failed[n] for n in needed if n in failed})

    def _is_ready(self, step: int) -> bool:
        waits = self._waits[step] if self._waits else ()
        return self._made.count >= self._until[step] and all(n <= self._over or n in self._over_ahead for n in waits)

    def over(self, step: int) -> None:
        with self._changed:
            began = self._began.pop(step, None)
            self._over_ahead.add(step)
            self._advance()
        if began is not None:
            self._told("step", step, "", began)

    def stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._below is not None:
            self._below.stop()

    def close(self) -> None:
        """Stop, let go of what is held, and remove what was moved here, unless it is to stay longer.

        Waits for moves that are being made.
        """
        self.stop()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._there = Taken()
        self._let_go(self._fresh, over=True)

    def _check(self) -> None:
        if self._broken is not None:
            raise StorageFailed("run", f"has ended: {self._broken}") from self._broken
        if self._closed:
            raise StorageFailed("run", "has ended")

    def _advance(self) -> None:
        """Count on over steps that are over; one whose objects have not come yet is not: they would never go again."""
        while self._over + 1 in self._over_ahead and self._made.count >= self._until[self._over + 1]:
            self._over += 1
            self._over_ahead.remove(self._over)
        self._changed.notify_all()

    def _work(self) -> None:
        try:
            self._make_moves()
        except Exception as error:  # not of one object: whoever waits would wait for ever
            with self._changed:
                self._broken, self._closed = error, True
                self._changed.notify_all()

    def _make_moves(self) -> None:
        while (number := self._begin()) is not None:
            move = self._moves[number]
            if not self._has_room(number):
                return
            if not move.made:
                self._keep(move.object, partial(self._bring, number))
            elif self._below is not None:
                self._below.over(number)
            with self._changed:
                self._made.add(number)
                self._advance()

    def _begin(self) -> int | None:
        """Return the next move when it may begin; None if there is none."""
        with self._order, self._changed:
            number = self._started
            if number == len(self._moves):
                return None
            self._changed.wait_for(lambda: self._moves[number].after <= self._over or self._closed)
            if self._closed:
                return None
            self._started += 1
            return number

    def _has_room(self, number: int) -> bool:
        """Evict what a move evicts, and wait until that of all before it is gone; return False if the lane closed."""
        for evicted in self._moves[number].evict:
            self._evict(evicted)
        with self._changed:
            self._evicted.add(number)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._evicted.count > number or self._closed)
            return not self._closed

    def _keep(self, number: int, bring: Callable[[], tuple[Held, str]]) -> None:
        began = self._clock()
        try:
            held, source = bring()
        except (StoreError, OSError) as error:
            why = error if isinstance(error, StoreError) else StorageFailed(self.tier, str(error).lower())
            with self._changed:
                self._there.failed[number] = self.failed[number] = without_frames(why)
            return
        with self._changed:
            self._there.held[number] = held
            self._there.failed.pop(number, None)
            self._leaving.discard(self._keys[number])
            if source != self.tier:
                self._fresh.add(self._keys[number])
        if source != self.tier:
            self._told("move", number, source, began)

    def _bring(self, number: int) -> tuple[Held, str]:
        """Bring what a move moves from the lane below, or where that fails from elsewhere."""
        move = self._moves[number]
        key = self._keys[move.object]
        if self._below is None:
            return self._from_sources(key)
        why: StoreError = NotFound(key[:16], f"is not in {self._below.tier} (any more)")
        taken = Taken()
        try:
            taken = self._below.take(number)
            if held := taken.held.get(move.object):
                with self._tier.filling(key, wait=True):
                    return self._tier.hold(key) or self._tier.fill(key, held, told=self._coming), self._below.tier
            why = taken.failed.get(move.object, why)
        except (Corrupt, StorageFailed, NotFound) as error:
            why = without_frames(error)
        finally:
            taken.held.clear()
            held = None
            self._below.over(number)
        if self._sources is None:
            raise fresh(why)
        return self._from_sources(key)

    def _from_sources(self, key: str) -> tuple[Held, str]:
        if self._sources is None:
            raise NotFound(key[:16], f"is not in {self.tier} (any more)")
        while True:  # not waiting in a lock, so that a run can be ended
            try:
                return self._sources.bring(key, self._tier, wait=False, told=self._coming)
            except Fenced:
                if self._closed:
                    raise
                time.sleep(_RETRY_S)

    def _evict(self, number: int) -> None:
        with self._changed:
            self._there.failed.pop(number, None)
            if self._there.held.pop(number, None) is None:
                return
            leaving, self._leaving = {*self._leaving, self._keys[number]}, set()  # nobody else tries them meanwhile
        self._told("evict", number, "", self._clock())
        left = leaving - self._let_go(leaving)
        with self._changed:
            self._leaving |= left

    def _let_go(self, keys: set[str], *, over: bool = False) -> set[str]:
        """Remove objects that nobody uses any more; return which are gone. A tier that fails keeps them."""
        gone = set[str]()
        for key in keys:
            with contextlib.suppress(StoreError):
                if self._tier.remove(key, over=over):
                    gone.add(key)
        return gone


def _counts(moves: Sequence[Move], steps: int) -> list[int]:
    """Return for each step how many moves must have been made, from the first on, when it runs."""
    counts, at = [], 0
    for step in range(steps):
        while at < len(moves) and moves[at].step <= step:
            at += 1
        counts.append(at)
    return counts
