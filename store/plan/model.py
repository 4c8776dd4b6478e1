"""Jobs and moves: objects, requests and tiers; moves in lanes; the rules that both must keep.

A lane is all moves into one tier, in the order in which they are made. A step is one use that a lane works for. The
target's lane works for the requests, in their order. Each lower lane works for the moves of the lane above it, one step
a move. So an object goes up one tier at a time, and a move waits for two things only. Its object must have come into
the tier below. The last user of each object that it evicts must be over; the number `after` says which step that is.

Invariant, checked by `replay`. The moves of a lane are taken in order, and each evicts before it fills. Then a tier
never holds more than its capacity. When the lane has made the moves of a step, the tier holds all that the step needs.
No object is evicted before its last user so far is over. Room is given out in lane order, so all of this holds at every
moment, whatever the timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from ..errors import BadInput, NoRoom

RequestId = str | int

NEVER = -1
BLOCK = "block "  # the id of an object that is a prefix block begins so; the block's id in hex follows


@dataclass(frozen=True, slots=True)
class Object:
    """What is staged as a whole. If it has `tokens`, computing them anew makes it too.

    `stored` says that it is in the source tier. If not, it must be computed before its first use, and again after each
    eviction. `found` names the tiers, of target and those between, that hold it already.
    """

    id: str
    length_bytes: int
    tokens: int = 0
    stored: bool = True
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What needs its objects in the target tier, all at once. `objects` are numbers of the job's objects, each once.

    `compute_s` is its work when all of them have come. It runs when the requests in `after` are over.
    """

    id: RequestId
    objects: tuple[int, ...]
    after: tuple[RequestId, ...] = ()
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PlannedTier:
    """A tier that is filled from the one below it: at most `capacity_bytes` (None: no limit), at a measured speed.

    `alone_bytes_per_s` is the speed of a move with no other beside it, if that is slower. `evict_bytes_per_s` is the
    speed at which evicted objects are wiped, if that takes time.
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
        """Return how long it takes to evict so many bytes."""
        return length_bytes / self.evict_bytes_per_s if self.evict_bytes_per_s else 0.0

    def lead_s(self, length_bytes: int) -> float:
        """Return how much longer a move takes if it has no other beside it."""
        alone = self.alone_bytes_per_s or self.bytes_per_s
        return max(length_bytes / alone - length_bytes / self.bytes_per_s, 0.0)


@dataclass(frozen=True, slots=True)
class Job:
    """All that a plan depends on. `tiers` go from the target down; below the last of them is the source.

    `held` are objects that stay in the target tier from the first request to the last, as weights do.
    Without `tokens_per_s` nothing can be computed anew. `identity` is that of the KV whose blocks the objects are.
    Planning does not read it.
    """

    objects: tuple[Object, ...]
    requests: tuple[Request, ...]
    tiers: tuple[PlannedTier, ...]
    source: str = "local"
    held: tuple[int, ...] = ()
    tokens_per_s: float | None = None
    identity: tuple[tuple[str, object], ...] = ()

    def found(self, place: int) -> list[int]:
        """Return the numbers of the objects that a tier holds before the first move."""
        tier = self.tiers[place].name
        return [number for number, staged in enumerate(self.objects) if tier in staged.found]

    def found_bytes(self, place: int) -> int:
        return sum(self.objects[number].length_bytes for number in self.found(place))

    def recompute_s(self, number: int) -> float:
        """Return how long computing one object anew takes; infinity if that can't be done."""
        tokens = self.objects[number].tokens
        return tokens / self.tokens_per_s if tokens and self.tokens_per_s else inf

    def needs(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the objects that each request in this order needs in the target tier. The first needs `held` too."""
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
    """One object comes into a tier for step `step`; before that, the objects in `evict` leave.

    It waits until step `after` is over; NEVER means that it waits for none. `made` says that the object is not moved
    but computed in the target tier, by the request that needs it.
    """

    object: int
    step: int
    after: int = NEVER
    evict: tuple[int, ...] = ()
    made: bool = False


Lanes = Sequence[Sequence[Move]]


def check_job(job: Job) -> None:
    """Raise BadInput for a job that contradicts itself, NoRoom for one that can't fit in any order."""
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
    for number, staged in enumerate(job.objects):
        if staged.length_bytes < 0 or staged.tokens < 0:
            raise BadInput(f"object {staged.id}", "a size below 0")
        if not staged.stored and job.recompute_s(number) == inf:
            why = f"is not in {job.source} and can't be computed"
            raise BadInput(f"object {staged.id}", why, hint="give tokens_per_second under [recompute]")
    for request in job.requests:
        _check_needs(job, f"request {request.id}", request.objects)
        if not 0 <= request.compute_s < inf:
            raise BadInput(f"request {request.id}", f"compute_seconds is {request.compute_s}, wanted 0 or more")
    _check_needs(job, "what is held", job.held)
    _check_names("tier", [*(tier.name for tier in job.tiers), job.source])
    _check_names("object", [staged.id for staged in job.objects])
    _check_names("request", [request.id for request in job.requests])
    _check_room(job)


def _check_needs(job: Job, who: str, numbers: Sequence[int]) -> None:
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(job.objects):
        raise BadInput(who, "needs an object that is not listed")
    if len(set(numbers)) < len(numbers):
        raise BadInput(who, "needs an object twice")


def _check_names(noun: str, names: Sequence[RequestId]) -> None:
    seen: set[RequestId] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{noun} {name}", "is there twice")
        seen.add(name)


def _check_room(job: Job) -> None:
    """Raise NoRoom if a request, an object on its way up, or what a tier holds already is more than its budget."""
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
            loads += [(f"object {staged.id}", "", staged.length_bytes) for staged in job.objects if staged.stored]
        for load, more, length in loads:
            if length > tier.capacity_bytes:
                why = f"needs {length} bytes{more}, the budget of {tier.name} is {tier.capacity_bytes}"
                raise NoRoom(load, why, hint=f"raise the budget of {tier.name}, or stage less to {target}")


def replay(job: Job, order: Sequence[int], lanes: Lanes) -> list[int]:
    """Make the moves of every lane one by one, on paper; return the most bytes that each tier holds.

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
    """Return what the tier below a lane must hold for each of its moves: its object; none if it is computed."""
    return [() if move.made else (move.object,) for move in lane]


def _replay_lane(
    job: Job, tier: PlannedTier, steps: Sequence[tuple[int, ...]], lane: Sequence[Move], held: frozenset[int]
) -> int:
    sizes = [staged.length_bytes for staged in job.objects]
    last = {number: NEVER for number, staged in enumerate(job.objects) if tier.name in staged.found}
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
