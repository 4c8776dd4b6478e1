"""Run: a plan carried out. Its lanes move objects up while its requests use what is there."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from ..errors import BadInput, StorageFailed, StoreError, without_frames
from ..plan.model import NEVER, Move, steps_below
from ..plan.planfile import Plan
from ..plan.timeline import Event, Timed
from ..progress import BytesTold, TierProgress, ignore_tiers
from ..tiers.sources import Sources
from ..tiers.tier import Tier
from .lane import Lane, Told
from .open_files import allow_files
from .requests import Ready, requests_of
from .steps import Steps


class Run:
    """A plan that is being carried out, in a with block; iterate over its requests, from as many threads as you like.

    `failed` says which objects could not be brought, `degraded` which tiers were not there, with the errors why.
    """

    def __init__(
        self, plan: Plan, tiers: Sequence[Tier], keys: Sequence[str], sources: Sequence[Sources | None],
        first: int = 0, below: Steps | None = None, progress: TierProgress = ignore_tiers,
    ) -> None:  # fmt: skip
        """Take a tier for each of the plan's, from the target down, and where it may have objects from.

        They are the plan's from number `first` on; `below` serves those that follow, where they run elsewhere.
        """
        self.plan, self.keys, self._sources = plan, keys, sources
        self._events: list[Event] = []
        self._tiers, self._progress, self.first, self._below = list(tiers), progress, first, below
        self._began = time.monotonic()
        self._lost: dict[str, StoreError] = {}
        self.lanes: list[Lane] = []

    def __enter__(self) -> "Run":
        """Make room in every tier, or raise NoRoom with nothing moved; then begin to move.

        A shared tier that is gone is left out.
        """
        allow_files(len(self.keys))
        self._began = time.monotonic()
        below = self._below
        for number, tier in reversed(list(enumerate(self._tiers))):
            place = self.first + number
            try:
                self._make_room(tier, place)
            except StorageFailed as error:
                if tier.tier != "shared":
                    raise
                self._lost[tier.tier] = without_frames(error)
                continue
            below = self._lane(tier, place, self._sources[number], below)
            self.lanes.insert(0, below)
        with ExitStack() as undo:
            undo.callback(self.close)
            for lane in reversed(self.lanes):
                lane.start()
            undo.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop moving, and remove what was moved for this run, unless it is to stay longer."""
        for lane in self.lanes:
            lane.close()

    def __iter__(self) -> Iterator[Ready]:
        if not self.lanes:
            raise BadInput("run", "has not begun", hint="use it in a with block")
        return requests_of(self.plan, self.lanes[0])

    def _make_room(self, tier: Tier, place: int) -> None:
        tier.sweep()
        there = [number for number in self.plan.job.found(place) if tier.find(self.keys[number])]
        there_bytes = sum(self.plan.job.objects[number].length_bytes for number in there)
        tier.make_room(self.plan.peak_bytes[place] - there_bytes, frozenset(self.keys[n] for n in there))

    def _lane(self, tier: Tier, place: int, sources: Sources | None, below: Steps | None) -> Lane:
        plan = self.plan
        needs = steps_below(plan.lanes[place - 1]) if place else plan.job.needs(plan.order)
        return Lane(
            tier, plan.lanes[place], needs, self.keys, waits=() if place else plan.job.waits(plan.order),
            always=() if place else plan.job.held, found=plan.job.found(place), below=below, sources=sources,
            told=self._telling(place, tier), coming=self._counting(place, tier), clock=self._clock,
        )  # fmt: skip

    @property
    def whole(self) -> bool:
        """Whether all objects fit at once, so that nothing that comes ever leaves."""
        return _never_waits(self.plan.lanes[0])

    def wait_until_placed(self) -> None:
        """Wait until all is in place; or, where that can't be at once, what the first step needs."""
        moves = self.plan.lanes[self.first]
        self.lanes[0].ready(len(moves) if _never_waits(moves) else sum(move.step == 0 for move in moves))

    @property
    def failed(self) -> dict[str, StoreError]:
        return {self.plan.job.objects[number].id: error for number, error in self.lanes[0].failed.items()}

    @property
    def degraded(self) -> Mapping[str, StoreError]:
        """Tiers on the way that were not there, or failed, and why."""
        found = self._lost | {tier: error for one in self._sources if one for tier, error in one.failed.items()}
        for lane in self.lanes[1:]:
            if lane.tier == "shared" and lane.failed:
                found[lane.tier] = next(iter(lane.failed.values()))
        return found

    def timeline(self) -> Timed:
        """Return what has happened so far."""
        places = enumerate(self._tiers, self.first)
        found = {tier.tier: self.plan.job.found_bytes(place) for place, tier in places}
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


def _never_waits(moves: Sequence[Move]) -> bool:
    return all(move.after == NEVER for move in moves)
