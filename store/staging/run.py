"""Run: a plan that is carried out. Its lanes move objects up while its requests use them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

from ..errors import BadInput, StorageFailed, StoreError, without_frames
from ..plan.model import NEVER, Move, RequestId, steps_below
from ..plan.planfile import Plan
from ..plan.timeline import Event, Timed
from ..progress import BytesTold, TierProgress, ignore_tiers
from ..tiers.sources import Sources
from ..tiers.tier import Tier
from .lane import Lane, OnEvent
from .lane_plan import LanePlan
from .open_files import allow_files
from .requests import Ready, requests_of
from .steps import Steps


class Run:
    """A plan that is being carried out, in a with block. Any number of threads may iterate over its requests.

    `failed` has the objects that could not be brought, `degraded` the tiers that were not there, each with its error.
    `unfinished` are the requests that a command did not finish; see `run_planned`.
    """

    def __init__(
        self,
        plan: Plan,
        tiers: Sequence[Tier],
        keys: Sequence[str],
        sources: Sequence[Sources | None],
        *,
        first: int = 0,
        below: Steps | None = None,
        progress: TierProgress = ignore_tiers,
    ) -> None:
        """Take tiers of the plan, from the target down, and for each where it may have objects from.

        The first is the plan's tier number `first`. If tiers below the last run elsewhere, `below` serves their steps.
        """
        self.plan, self.keys, self._sources = plan, keys, sources
        self._events: list[Event] = []
        self._tiers, self._progress, self.first, self._below = list(tiers), progress, first, below
        self._began = time.monotonic()
        self._lost: dict[str, StoreError] = {}
        self.lanes: list[Lane] = []
        self.unfinished: tuple[RequestId, ...] = ()

    def __enter__(self) -> "Run":
        """Make room in every tier, then begin to move. Raises NoRoom, with nothing moved.

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
            below = self._make_lane(tier, place, self._sources[number], below)
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
        """Stop moving, and remove the objects that this run moved and that are not to stay longer."""
        for lane in self.lanes:
            lane.close()

    def __iter__(self) -> Iterator[Ready]:
        if not self.lanes:
            raise BadInput("run", "has not begun", hint="use it in a with block")
        return requests_of(self.plan, self.lanes[0])

    def _make_room(self, tier: Tier, place: int) -> None:
        tier.sweep()
        resident = [number for number in self.plan.job.found(place) if tier.find(self.keys[number])]
        resident_bytes = sum(self.plan.job.objects[number].length_bytes for number in resident)
        tier.make_room(self.plan.peak_bytes[place] - resident_bytes, frozenset(self.keys[n] for n in resident))

    def _make_lane(self, tier: Tier, place: int, sources: Sources | None, below: Steps | None) -> Lane:
        return Lane(
            tier,
            self._plan_lane(place),
            below=below,
            sources=sources,
            on_event=self._event_keeper(place, tier),
            on_bytes=self._byte_counter(place, tier),
            clock=self._clock,
        )

    def _plan_lane(self, place: int) -> LanePlan:
        """Return the plan of one lane. The target's lane works for the requests, any other for the lane above it."""
        plan, job, is_target = self.plan, self.plan.job, place == 0
        return LanePlan(
            keys=self.keys,
            moves=plan.lanes[place],
            needs=job.needs(plan.order) if is_target else steps_below(plan.lanes[place - 1]),
            always=job.held if is_target else (),
            waits=job.waits(plan.order) if is_target else (),
            resident=job.found(place),
        )

    @property
    def whole(self) -> bool:
        """Whether all objects fit at once, so that none is evicted."""
        return _never_waits(self.plan.lanes[0])

    def wait_until_placed(self) -> None:
        """Wait until all objects are in place or, if they don't fit at once, those of the first step."""
        moves = self.plan.lanes[self.first]
        count = len(moves) if _never_waits(moves) else sum(move.step == 0 for move in moves)
        self.lanes[0].wait_for_moves(count)

    @property
    def failed(self) -> dict[str, StoreError]:
        return {self.plan.job.objects[number].id: error for number, error in self.lanes[0].failed.items()}

    @property
    def degraded(self) -> Mapping[str, StoreError]:
        """Tiers on the way that were not there, or failed, each with its error."""
        lost = self._lost | {
            tier: error for sources in self._sources if sources for tier, error in sources.failed.items()
        }
        for lane in self.lanes[1:]:
            if lane.tier == "shared" and lane.failed:
                lost[lane.tier] = next(iter(lane.failed.values()))
        return lost

    def timeline(self) -> Timed:
        """Return what has happened so far."""
        places = enumerate(self._tiers, self.first)
        resident_bytes = {tier.tier: self.plan.job.found_bytes(place) for place, tier in places}
        return Timed(tuple(self._events), resident_bytes)

    def _clock(self) -> float:
        return time.monotonic() - self._began

    def _byte_counter(self, place: int, into: Tier) -> BytesTold:
        """Return what reports the bytes that come into one tier."""
        objects, moves = self.plan.job.objects, self.plan.lanes[place]
        total = sum(objects[move.object].length_bytes for move in moves if not move.made)
        return lambda length_bytes: self._progress(into.tier, length_bytes, total)

    def _event_keeper(self, place: int, into: Tier) -> OnEvent:
        """Return what keeps the events of one lane for the timeline."""
        plan, tier = self.plan, into.tier

        def keep(kind: str, number: int, source: str, began: float) -> None:
            ended = self._clock()
            if kind != "step":
                object_ = plan.job.objects[number]
                start = ended if kind == "evict" else began
                self._events.append(Event(kind, tier, object_.id, start, ended, object_.length_bytes, source))
            elif place == 0:
                id_ = plan.job.requests[plan.order[number]].id
                self._events.append(Event("request", tier, str(id_), began, ended))

        return keep


def _never_waits(moves: Sequence[Move]) -> bool:
    return all(move.after == NEVER for move in moves)
