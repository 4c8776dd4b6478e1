"""A plan as a value, and as the JSON in which it is kept, shown and handed to `prefetch`.

A refetch brings an object into a tier that held it earlier in the plan and evicted it, by a move or by computing it.
`refetches` counts them in all tiers. It is 0 if no object comes into any tier twice. A refetch from a tier just below
is cheaper than one from the source, but counts as much.

Invariant: a plan read back keeps every rule of `model`, and its sums and its seconds follow from its moves.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from ...formats.errors import FormatError
from ...formats.strict_json import parse_json
from ..errors import BadInput, NoRoom
from .fields import Fields
from .job import read_bounded
from .model import Job, Lanes, Move, Object, PlannedTier, Request, check_job, replay
from .order import check_order, live_peak_bytes
from .simulate import simulate

_FORMAT = 1
_JOB = ("format", "source", "tiers", "tokens_per_second", "identity", "objects", "held", "requests")
_MOVES = ("order", "moves")
_SUMS = ("peak_bytes", "live_peak_bytes", "refetches", "predicted_seconds")
_RATES = ("alone_bytes_per_second", "evict_bytes_per_second")
_TIER = ("name", "capacity_bytes", "bytes_per_second", "latency_seconds", *_RATES)
_OBJECT = ("id", "bytes", "tokens", "stored", "found")
_REQUEST = ("id", "objects", "after", "compute_seconds")
_MOVE = ("to", "object", "step", "after", "evict", "recompute")


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, the order of its requests as numbers, the moves into each of its tiers, and what follows from them.

    `peak_bytes` is the most that each tier holds. For `live_peak_bytes` see `order`.
    """

    job: Job
    order: tuple[int, ...]
    lanes: tuple[tuple[Move, ...], ...]
    peak_bytes: tuple[int, ...]
    live_peak_bytes: int
    refetches: int
    predicted_s: float

    def fields(self) -> dict[str, Any]:
        """Return the plan as JSON has it. `parse_plan` takes nothing else.

        A request names its objects by their number in `objects`, a move by id. For `step` and `after` see `model`.
        """
        job, names = self.job, [staged.id for staged in self.job.objects]
        stated = _row(
            _JOB,
            _FORMAT,
            job.source,
            [_row(_TIER, *astuple(t)) for t in job.tiers],
            job.tokens_per_s,
            dict(job.identity),
            [_row(_OBJECT, o.id, o.length_bytes, o.tokens, o.stored, list(o.found)) for o in job.objects],
            list(job.held),
            [_row(_REQUEST, r.id, list(r.objects), list(r.after), r.compute_s) for r in job.requests],
        )
        moves = [
            _row(_MOVE, tier.name, names[m.object], m.step, m.after, [names[n] for n in m.evict], m.made)
            for tier, lane in zip(job.tiers, self.lanes, strict=True)
            for m in lane
        ]
        return stated | _row(_MOVES, [job.requests[number].id for number in self.order], moves) | self.sums()

    def within(self, budget_bytes: int) -> "Plan":
        """Return the plan with another budget of its target; raise NoRoom if it takes more."""
        target, *lower = self.job.tiers
        if self.peak_bytes[0] > budget_bytes:
            why = f"takes {self.peak_bytes[0]} bytes of {target.name}, the budget is {budget_bytes}"
            raise NoRoom("plan", why, hint="plan again with that budget")
        return replace(self, job=replace(self.job, tiers=(replace(target, capacity_bytes=budget_bytes), *lower)))

    def sums(self) -> dict[str, Any]:
        """Return what follows from the moves, as JSON has it."""
        peaks = {tier.name: peak for tier, peak in zip(self.job.tiers, self.peak_bytes, strict=True)}
        return _row(_SUMS, peaks, self.live_peak_bytes, self.refetches, self.predicted_s)


def plan_of_lanes(job: Job, order: Sequence[int], lanes: Lanes) -> Plan:
    """Return the plan that consists of these moves; raise BadInput if they break a rule of `model`."""
    peaks = tuple(replay(job, order, lanes))  # this comes first: only moves that keep the rules can be simulated
    frozen = tuple(tuple(lane) for lane in lanes)
    live, again = live_peak_bytes(job, order), count_refetches(job, lanes)
    return Plan(job, tuple(order), frozen, peaks, live, again, simulate(job, order, lanes).seconds)


def count_refetches(job: Job, lanes: Lanes) -> int:
    """Return how many moves bring an object into a tier that held it before."""
    return sum(len(lane) - len({m.object for m in lane}.difference(job.found(n))) for n, lane in enumerate(lanes))


def parse_plan(value: Any, where: str) -> Plan:
    """Return the plan in a JSON value; raise BadInput for anything that `fields` would not write.

    Raises NoRoom for a plan whose budgets hold less than its requests need.
    """
    top = Fields(value, where, _JOB + _MOVES + _SUMS)
    if top.whole("format") != _FORMAT:
        top.refuse("format", top.get("format"), str(_FORMAT))
    job = Job(
        tuple(_object(row, f"{where}: objects[{n}]") for n, row in enumerate(top.rows("objects"))),
        tuple(_request(row, f"{where}: requests[{n}]") for n, row in enumerate(top.rows("requests"))),
        tuple(_tier(row, f"{where}: tiers[{n}]") for n, row in enumerate(top.rows("tiers"))),
        top.text("source"),
        top.wholes("held"),
        None if top.get("tokens_per_second") is None else top.real("tokens_per_second"),
        tuple(top.table("identity").items()),
    )
    try:
        check_job(job)
        requests = {request.id: number for number, request in enumerate(job.requests)}
        order = [requests.get(name, len(requests)) for name in top.ids("order")]
        check_order(job, order)
        lanes = _parse_lanes(job, top.rows("moves"))
        plan = plan_of_lanes(job, order, lanes)
    except BadInput as error:
        raise BadInput(where, str(error), hint=error.hint) from None
    sums = plan.sums()
    for name in _SUMS:
        if top.get(name) != sums[name]:
            raise BadInput(where, f"{name} is not what follows from the moves, which is {sums[name]}")
    return plan


def _row(names: Sequence[str], *values: Any) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def _parse_lanes(job: Job, rows: list[Any]) -> Lanes:
    objects = {staged.id: number for number, staged in enumerate(job.objects)}
    lanes: dict[str, list[Move]] = {tier.name: [] for tier in job.tiers}
    for number, row in enumerate(rows):
        fields = Fields(row, f"moves[{number}]", _MOVE)
        to = fields.text("to")
        names = (fields.text("object"), *fields.texts("evict"))
        if to not in lanes or not objects.keys() >= set(names):
            raise BadInput(f"moves[{number}]", "names a tier or an object that the plan doesn't list")
        moved, *evicted = (objects[name] for name in names)
        after = fields.whole("after", least=-1)
        lanes[to].append(Move(moved, fields.whole("step"), after, tuple(evicted), fields.flag("recompute")))
    return list(lanes.values())


def _object(row: Any, where: str) -> Object:
    fields = Fields(row, where, _OBJECT)
    sizes = fields.whole("bytes"), fields.whole("tokens")
    return Object(fields.text("id"), *sizes, fields.flag("stored"), fields.texts("found"))


def _request(row: Any, where: str) -> Request:
    fields = Fields(row, where, _REQUEST)
    return Request(fields.id("id"), fields.wholes("objects"), fields.ids("after"), fields.real("compute_seconds"))


def _tier(row: Any, where: str) -> PlannedTier:
    fields = Fields(row, where, _TIER)
    capacity = None if fields.get("capacity_bytes") is None else fields.whole("capacity_bytes")
    alone, evict = (None if fields.get(name) is None else fields.real(name) for name in _RATES)
    speed = fields.real("bytes_per_second"), fields.real("latency_seconds")
    return PlannedTier(fields.text("name"), capacity, *speed, alone, evict)


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raise BadInput if the file is not a plan, or a bad one."""
    return unpack_plan(read_bounded(path), str(path))


def unpack_plan(text: bytes, where: str) -> Plan:
    """Return the plan in the text of a file; `where` names the file. Raises BadInput as `read_plan` does."""
    try:
        return parse_plan(parse_json(text), where)
    except FormatError as error:
        raise BadInput(where, str(error).lower()) from None
