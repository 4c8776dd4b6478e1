"""What is planned, and what a plan is made of: objects, requests and tiers; moves in lanes; the rules both must keep.

A lane is every move into one tier, in the order in which they are made. A step is what a lane works for: the lane of
the target tier fills it for requests, in their order; the lane of each tier below fills that for the moves of the lane
above, one step a move. So everything goes up one tier at a time, and a lane waits for two things only: what it moves
must have come up, and the last user of what it evicts must be over, which the number `after` says.

Invariant, checked by `replay`: taking the moves of a lane in order, each evicting before it fills, a tier never holds
more than its capacity; all a step needs is there when the lane has worked through that step; and nothing is evicted
before its last user so far is over. Room is given out in lane order, so this holds at every moment of every timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from ..errors import BadInput, NoRoom

RequestId = str | int

NEVER = -1
BLOCK = "block "  # begins the id of an object that is a prefix block; the block's id in hex follows


@dataclass(frozen=True, slots=True)
class Object:
    """What moves as one. Its `tokens` can be computed anew instead, unless there are none.

    `stored`: it lies in the source tier; else it exists once it was computed, and again each time after it was evicted.
    `found` names the tiers between source and target where it lies already.
    """

    id: str
    length_bytes: int
    tokens: int = 0
    stored: bool = True
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What needs its objects, all at once, in the target tier; numbers into the job's objects, each once.

    `compute_s` is the work that remains when all of them are there. It runs when the requests in `after` are over.
    """

    id: RequestId
    objects: tuple[int, ...]
    after: tuple[RequestId, ...] = ()
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannedTier:
    """A tier that is filled from the one below it: at most `capacity_bytes` (None: no limit), at a measured speed.

    `alone_bytes_per_s`: that of a move with no other beside it, where it is slower. `evict_bytes_per_s`: how fast what
    is evicted goes, where that takes time.
    """

    name: str
    capacity_bytes: int | None
    bytes_per_s: float
    latency_s: float = 0.0
    alone_bytes_per_s: float | None = None
    evict_bytes_per_s: float | None = None

    def seconds(self, length_bytes: int) -> float:
        """Return how long one move into this tier takes."""
        return self.latency_s + length_bytes / self.bytes_per_s

    def evict_s(self, length_bytes: int) -> float:
        """Return how long it takes until so many bytes are gone."""
        return length_bytes / self.evict_bytes_per_s if self.evict_bytes_per_s else 0.0

    def lead_s(self, length_bytes: int) -> float:
        """Return how much longer it takes with no other beside it."""
        alone = self.alone_bytes_per_s or self.bytes_per_s
        return max(length_bytes / alone - length_bytes / self.bytes_per_s, 0.0)


@dataclass(frozen=True, slots=True)
class Job:
    """All that a plan depends on. `tiers` go from the target down; below the last of them is the source.

    `held` are objects that stay in the target tier from the first request to the last, as weights do.
    Without `tokens_per_s` nothing can be computed anew. `identity` is that of the KV whose blocks objects are; planning
    does not look at it.
    """

    objects: tuple[Object, ...]
    requests: tuple[Request, ...]
    tiers: tuple[PlannedTier, ...]
    source: str = "local"
    held: tuple[int, ...] = ()
    tokens_per_s: float | None = None
    identity: tuple[tuple[str, object], ...] = ()

    def found(self, place: int) -> list[int]:
        """Return the objects that lie in a tier already."""
        return [number for number, one in enumerate(self.objects) if self.tiers[place].name in one.found]

    def found_bytes(self, place: int) -> int:
        return sum(self.objects[number].length_bytes for number in self.found(place))

    def recompute_s(self, number: int) -> float:
        """Return how long computing one object anew takes; infinite where that can't be done."""
        tokens = self.objects[number].tokens
        return tokens / self.tokens_per_s if tokens and self.tokens_per_s else inf

    def needs(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """Return what must be in the target tier for each request in this order; what is held counts to the first."""
        steps = [self.requests[number].objects for number in order]
        if steps and self.held:
            steps[0] = tuple(dict.fromkeys(self.held + steps[0]))
        return steps

    def waits(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """Return for each request in this order the steps that must be over before it runs."""
        steps = {self.requests[number].id: step for step, number in enumerate(order)}
        return [tuple(steps[name] for name in self.requests[number].after) for number in order]


@dataclass(frozen=True, slots=True)
class Move:
    """One object into a tier: for which step, after which step is over (NEVER: at once), evicting what before.

    `made`: it isn't moved but computed, in the target tier, by the request that needs it.
    """

    object: int
    step: int
    after: int = NEVER
    evict: tuple[int, ...] = ()
    made: bool = False


Lanes = Sequence[Sequence[Move]]


def check_job(job: Job) -> None:
    """Raise BadInput for a job that contradicts itself, NoRoom for one that fits in no order whatever is evicted."""
    if not job.tiers:
        raise BadInput("job", "no tier to stage to")
    if not job.requests:
        raise BadInput("job", "no request")
    if job.tokens_per_s is not None and not 0 < job.tokens_per_s < inf:
        raise BadInput("job", f"tokens_per_second is {job.tokens_per_s}, wanted more than 0")
    for tier in job.tiers:
        if not 0 < tier.bytes_per_s < inf or not 0 <= tier.latency_s < inf:
            raise BadInput(f"tier {tier.name}", "wanted bytes a second above 0 and a latency of 0 or more")
        for rate in (tier.alone_bytes_per_s, tier.evict_bytes_per_s):
            if rate is not None and not 0 < rate < inf:
                raise BadInput(f"tier {tier.name}", "wanted bytes a second above 0 alone and evicting, or none")
    for number, one in enumerate(job.objects):
        if one.length_bytes < 0 or one.tokens < 0:
            raise BadInput(f"object {one.id}", "a size below 0")
        if not one.stored and job.recompute_s(number) == inf:
            why = f"is not in {job.source} and can't be computed"
            raise BadInput(f"object {one.id}", why, hint="give tokens_per_second under [recompute]")
    for request in job.requests:
        _check_needs(job, f"request {request.id}", request.objects)
        if not 0 <= request.compute_s < inf:
            raise BadInput(f"request {request.id}", f"compute_seconds is {request.compute_s}, wanted 0 or more")
    _check_needs(job, "what is held", job.held)
    _check_names("tier", [*(tier.name for tier in job.tiers), job.source])
    _check_names("object", [one.id for one in job.objects])
    _check_names("request", [request.id for request in job.requests])
    _check_room(job)


def _check_needs(job: Job, who: str, numbers: Sequence[int]) -> None:
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(job.objects):
        raise BadInput(who, "needs an object that is not listed")
    if len(set(numbers)) < len(numbers):
        raise BadInput(who, "needs an object twice")


def _check_names(what: str, names: Sequence[RequestId]) -> None:
    seen: set[RequestId] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{what} {name}", "is there twice")
        seen.add(name)


def _check_room(job: Job) -> None:
    """Raise NoRoom where one request, one object on its way up, or what lies there already is more than a budget."""
    target = job.tiers[0].name
    held, beside = set(job.held), " with what is held" if job.held else ""
    for place, tier in enumerate(job.tiers):
        if tier.capacity_bytes is None:
            continue
        loads = [(f"what lies in {tier.name} now", "", job.found_bytes(place))]
        if place == 0:
            for request in job.requests:
                length = sum(job.objects[number].length_bytes for number in held.union(request.objects))
                loads.append((f"request {request.id}", beside, length))
        else:
            loads += [(f"object {one.id}", "", one.length_bytes) for one in job.objects if one.stored]
        for what, more, length in loads:
            if length > tier.capacity_bytes:
                why = f"needs {length} bytes{more}, the budget of {tier.name} is {tier.capacity_bytes}"
                raise NoRoom(what, why, hint=f"raise the budget of {tier.name}, or stage less to {target}")


def replay(job: Job, order: Sequence[int], lanes: Lanes) -> list[int]:
    """Take every lane move by move; return the most bytes each tier holds.

    Raises BadInput for the first move that breaks the invariant.
    """
    steps: Sequence[tuple[int, ...]] = job.needs(order)
    peaks = []
    for tier, lane in zip(job.tiers, lanes, strict=True):
        held = frozenset(job.held) if tier is job.tiers[0] else frozenset()
        peaks.append(_replay_lane(job, tier, steps, lane, held))
        steps = steps_below(lane)
    return peaks


def steps_below(lane: Sequence[Move]) -> list[tuple[int, ...]]:
    """Return what the tier below a lane must hold for each of its moves: its object, or nothing if it is computed."""
    return [() if move.made else (move.object,) for move in lane]


def _replay_lane(
    job: Job, tier: PlannedTier, steps: Sequence[tuple[int, ...]], lane: Sequence[Move], held: frozenset[int]
) -> int:
    sizes = [one.length_bytes for one in job.objects]
    last = {number: NEVER for number, one in enumerate(job.objects) if tier.name in one.found}
    used = peak = sum(sizes[number] for number in last)
    at = 0
    for step, needed in enumerate(steps):
        while at < len(lane) and lane[at].step == step:
            move = lane[at]
            where = f"move {at} into {tier.name}"
            if not NEVER <= move.after < step:
                raise BadInput(where, f"waits for step {move.after}, wanted one before {step}")
            for number in move.evict:
                if number not in last or number in held or last[number] > move.after:
                    raise BadInput(where, f"evicts {_named(job, number)}, which is not there or still in use")
                used -= sizes[number]
                del last[number]
            if not 0 <= move.object < len(sizes) or move.object in last:
                raise BadInput(where, f"moves {_named(job, move.object)}, which is unknown or there already")
            if move.made and (tier is not job.tiers[0] or job.recompute_s(move.object) == inf):
                raise BadInput(where, f"computes {_named(job, move.object)}, which can't be computed there")
            if not move.made and not job.objects[move.object].stored and tier is job.tiers[-1]:
                raise BadInput(where, f"moves {_named(job, move.object)}, which is not in {job.source}")
            last[move.object] = step
            used += sizes[move.object]
            peak = max(peak, used)
            if tier.capacity_bytes is not None and used > tier.capacity_bytes:
                raise BadInput(where, f"fills {used} bytes of {tier.capacity_bytes}")
            at += 1
        for number in needed:
            if number not in last:
                raise BadInput(f"step {step} of {tier.name}", f"runs without {_named(job, number)}")
            last[number] = step
    if at < len(lane):
        raise BadInput(f"move {at} into {tier.name}", f"is for step {lane[at].step}, out of order or not there")
    return peak


def _named(job: Job, number: int) -> str:
    return f"object {job.objects[number].id}" if 0 <= number < len(job.objects) else f"object number {number}"
