"""Run: a plan carried out. Its lanes move objects up while its requests use what is there."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from .errors import BadInput, StoreError
from .lane import Lane, Steps, Told
from .planfile import Plan
from .progress import BytesTold, TierProgress, tell_nobody
from .requests import Ready, Requests
from .staging import NEVER, steps_below
from .tiers.fallback import Sources
from .tiers.tier import Tier
from .timeline import Event, Timed


class Run:
    """A plan that is being carried out, in a with block; iterate over its requests, from as many threads as you like.

    `failed` says which objects could not be brought, `degraded` which tiers were not there, with the errors why.
    """

    def __init__(
        self, plan: Plan, tiers: Sequence[Tier], keys: Sequence[str], sources: Sequence[Sources | None],
        first: int = 0, below: Steps | None = None, progress: TierProgress = tell_nobody,
    ) -> None:  # fmt: skip
        """Take a tier for each of the plan's, from the target down, and where it may have objects from.

        They are the plan's from number `first` on; `below` serves those that follow, where they run elsewhere.
        """
        self.plan, self._keys, self._sources = plan, keys, sources
        self._events: list[Event] = []
        self._tiers, self._progress = tiers, progress
        self._began = time.monotonic()
        self._first, self._entered = first, False
        self.lanes: list[Lane] = []
        for number, tier in reversed(list(enumerate(tiers))):
            place = first + number
            needs = steps_below(plan.lanes[place - 1]) if place else plan.job.needs(plan.order)
            below = Lane(
                tier, plan.lanes[place], needs, keys, always=() if place else plan.job.held,
                found=plan.job.found(place), below=below, sources=sources[number], told=self._telling(place, tier),
                coming=self._counting(place, tier), clock=self._clock,
            )  # fmt: skip
            self.lanes.insert(0, below)

    def __enter__(self) -> "Run":
        """Make room in every tier, or raise NoRoom with nothing moved; then begin to move."""
        for place, tier in enumerate(self._tiers, self._first):
            there = self.plan.job.found(place)
            found_bytes = sum(self.plan.job.objects[number].length_bytes for number in there)
            tier.sweep()
            tier.make_room(self.plan.peak_bytes[place] - found_bytes, frozenset(self._keys[n] for n in there))
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            for lane in reversed(self.lanes):
                lane.start()
            undo.pop_all()
        self._entered = True
        return self

    def __exit__(self, *failure: object) -> None:
        for lane in self.lanes:
            lane.close()

    def __iter__(self) -> Iterator[Ready]:
        if not self._entered:
            raise BadInput("run", "has not begun", hint="use it in a with block")
        return iter(Requests(self.plan, self.lanes[0]))

    @property
    def whole(self) -> bool:
        """Whether all objects fit at once, so that nothing that comes ever leaves."""
        return all(move.after == NEVER for move in self.plan.lanes[0])

    def wait_until_placed(self) -> None:
        """Wait until all is in place; or, where that can't be at once, what the first step needs."""
        moves = self.plan.lanes[self._first]
        waits = any(move.after != NEVER for move in moves)
        self.lanes[0].ready(sum(move.step == 0 for move in moves) if waits else len(moves))

    @property
    def failed(self) -> dict[str, StoreError]:
        return {self.plan.job.objects[number].id: error for number, error in self.lanes[0].failed.items()}

    @property
    def degraded(self) -> Mapping[str, StoreError]:
        return {tier: error for one in self._sources if one for tier, error in one.failed.items()}

    def timeline(self) -> Timed:
        """Return what has happened so far."""
        job = self.plan.job
        found = {
            tier.tier: sum(job.objects[number].length_bytes for number in job.found(place))
            for place, tier in enumerate(self._tiers, self._first)
        }
        return Timed(tuple(self._events), found)

    def _clock(self) -> float:
        return time.monotonic() - self._began

    def _counting(self, place: int, into: Tier) -> BytesTold:
        """Return what hears of the bytes that come into one tier."""
        objects, moves = self.plan.job.objects, self.plan.lanes[place]
        total = sum(objects[move.object].length_bytes for move in moves if not move.made)
        return lambda length_bytes: self._progress(into.tier, length_bytes, total)

    def _telling(self, place: int, into: Tier) -> Told:
        """Return what keeps the events of one lane."""
        plan, tier = self.plan, into.tier

        def told(kind: str, number: int, source: str, began: float) -> None:
            ended = self._clock()
            if kind != "step":
                one = plan.job.objects[number]
                start = ended if kind == "evict" else began
                self._events.append(Event(kind, tier, one.id, start, ended, one.length_bytes, source))
            elif place == 0:
                id_ = plan.job.requests[plan.order[number]].id
                self._events.append(Event("request", tier, str(id_), began, ended))

        return told
