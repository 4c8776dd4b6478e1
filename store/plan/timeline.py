"""When things happen, as planned or as measured: events, what each tier holds meanwhile, and the file that keeps both.

The file is a trace in Chrome's event format, which chrome://tracing and ui.perfetto.dev open. Requests, moves and what
is computed are bars; bars that overlap stand in several rows. Evictions are marks. The bytes of a tier are a curve.

Invariant: events stand in the order in which they start. Events that start at the same time stand in the order in which
they happen. A file is taken only if `trace` would write exactly the same of its events. Its times are whole
microseconds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from ..errors import BadInput
from .fields import Fields
from .planfile import Plan
from .simulate import simulate

EVENTS_MAX_COUNT = 4_000_000
TIERS_MAX_COUNT = 64
_FORMAT = "arstore timeline 1"
_KINDS = ("request", "move", "compute", "reserve", "evict")
_MARKS = ("reserve", "evict")
_ROW = ("name", "cat", "ph", "s", "pid", "tid", "ts", "dur", "args")
_PROCESS = 1


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to the object or request `name`. Times are seconds since the beginning.

    move: it came into `tier` from `source`; it takes room from the start on. compute: it was computed in `tier`.
    reserve: `tier` keeps room for it until it is computed. evict: it left `tier`. These two take no time.
    request: it ran, with its objects in `tier`.
    """

    kind: str
    tier: str
    name: str
    start_s: float
    end_s: float
    length_bytes: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Timed:
    """Events, which it sorts by their start, and the bytes that each tier held before the first of them.

    Tiers go from the target down.
    """

    events: tuple[Event, ...]
    found: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(sorted(self.events, key=lambda event: event.start_s)))

    @property
    def seconds(self) -> float:
        return max((event.end_s for event in self.events), default=0.0)


def planned(plan: Plan) -> Timed:
    """Return the events of a plan, as `simulate` times them. What a move evicts leaves when the move starts."""
    job, times = plan.job, simulate(plan.job, plan.order, plan.lanes)
    requests = [job.requests[number] for number in plan.order]
    events = [
        Event("request", job.tiers[0].name, str(request.id), *span)
        for request, span in zip(requests, times.requests, strict=True)
    ]
    for place in range(len(job.tiers)):
        users = times.moves[place - 1] if place else times.requests
        events += _lane(plan, place, times.moves[place], [end for _, end in users])
    found = {tier.name: job.found_bytes(place) for place, tier in enumerate(job.tiers)}
    return Timed(tuple(events), found)


def _lane(plan: Plan, place: int, spans: tuple[tuple[float, float], ...], ends: list[float]) -> Iterator[Event]:
    """Yield the events of one lane; `ends` is when each of its steps is over."""
    job = plan.job
    tier = job.tiers[place].name
    below = job.tiers[place + 1].name if place + 1 < len(job.tiers) else job.source
    clock = 0.0  # when the lane's worker is free; it gives out room in turn, also to objects that are computed later
    for move, (start, end) in zip(plan.lanes[place], spans, strict=True):
        staged = job.objects[move.object]
        turn = max(clock, ends[move.after] if move.after >= 0 else 0.0) if move.made else start
        clock = turn if move.made else end
        for number in move.evict:
            yield Event("evict", tier, job.objects[number].id, turn, turn, job.objects[number].length_bytes)
        if move.made:
            yield Event("reserve", tier, staged.id, turn, turn, staged.length_bytes)
            yield Event("compute", tier, staged.id, start, end, staged.length_bytes)
        else:
            yield Event("move", tier, staged.id, start, end, staged.length_bytes, below)


def occupancy(timed: Timed) -> dict[str, list[tuple[float, int]]]:
    """Return for each tier the bytes it holds from each moment on, reserved room included. The first is at second 0."""
    curves = {tier: [(0.0, length)] for tier, length in timed.found.items()}
    held: dict[tuple[str, str], int] = {}
    for event in timed.events:
        if event.kind == "request":
            continue
        resident = (event.tier, event.name)
        if event.kind == "evict":
            change = -held.pop(resident, event.length_bytes)
        else:  # a computed object uses the room that was reserved for it
            change = event.length_bytes - held.get(resident, 0)
            held[resident] = event.length_bytes
        curve = curves.setdefault(event.tier, [(0.0, 0)])
        if change:
            curve.append((event.start_s, curve[-1][1] + change))
    return curves


def trace(timed: Timed) -> dict[str, Any]:
    """Return a JSON value in Chrome's event format; `parse_trace` takes nothing else."""
    labels, threads = _threads(timed)
    rows = [_named("process_name", 0, "arstore")]
    rows += [_named("thread_name", thread, label) for thread, label in enumerate(labels, 1)]
    rows += [_row(event, thread) for event, thread in zip(timed.events, threads, strict=True)]
    for tier, curve in occupancy(timed).items():
        last = {_micros(moment): length for moment, length in curve}  # the last of each microsecond
        rows += [
            {"name": f"bytes in {tier}", "ph": "C", "pid": _PROCESS, "ts": moment, "args": {"bytes": length}}
            for moment, length in last.items()
        ]
    found = [{"tier": tier, "bytes": length} for tier, length in timed.found.items()]
    return {"traceEvents": rows, "displayTimeUnit": "ms", "otherData": {"format": _FORMAT, "found": found}}


def parse_trace(value: Any, where: str) -> Timed:
    """Return the events in a JSON value; raise BadInput for anything that `trace` would not write."""
    top = Fields(value, where, ("traceEvents", "displayTimeUnit", "otherData"))
    other = Fields(top.get("otherData"), f"{where}: otherData", ("format", "found"))
    if other.text("format") != _FORMAT:
        other.refuse("format", other.get("format"), _FORMAT)
    found: dict[str, int] = {}
    for number, row in enumerate(other.rows("found", most=TIERS_MAX_COUNT)):
        fields = Fields(row, f"{where}: found[{number}]", ("tier", "bytes"))
        found[fields.text("tier")] = fields.whole("bytes")
    rows = top.rows("traceEvents", most=EVENTS_MAX_COUNT)
    timed = Timed(
        tuple(
            _event(row, f"{where}: traceEvents[{number}]")
            for number, row in enumerate(rows)
            if isinstance(row, dict) and row.get("ph") in ("X", "i")
        ),
        found,
    )
    again = trace(timed)
    if value != again:
        pairs = enumerate(zip(rows, again["traceEvents"], strict=False))
        wrong = next((number for number, (row, wanted) in pairs if row != wanted), None)
        place = "it" if wrong is None else f"traceEvents[{wrong}]"
        raise BadInput(where, f"{place} is not what follows from its events")
    for tier, curve in occupancy(timed).items():
        if min(length for _, length in curve) < 0:
            raise BadInput(where, f"more leaves {tier} than it held")
    return timed


def _event(row: Any, where: str) -> Event:
    fields = Fields(row, where, _ROW)
    kind = fields.text("cat")
    if kind not in _KINDS:
        fields.refuse("cat", kind, f"one of {', '.join(_KINDS)}")
    more = Fields(fields.get("args"), f"{where}: args", ("tier", "bytes", "from"))
    start = fields.whole("ts")
    end = start if kind in _MARKS else start + fields.whole("dur")
    source = more.text("from") if "from" in more else ""
    name, tier = fields.text("name"), more.text("tier")
    return Event(kind, tier, name, start / 1e6, end / 1e6, more.whole("bytes"), source)


def _row(event: Event, thread: int) -> dict[str, Any]:
    args = {"tier": event.tier, "bytes": event.length_bytes} | ({"from": event.source} if event.source else {})
    start, end = _micros(event.start_s), _micros(event.end_s)
    shape = {"ph": "i", "s": "t"} if event.kind in _MARKS else {"ph": "X", "dur": end - start}
    place = {"pid": _PROCESS, "tid": thread, "ts": start}
    return {"name": event.name, "cat": event.kind, **shape, **place, "args": args}


def _named(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": thread, "args": {"name": name}}


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)


def _threads(timed: Timed) -> tuple[list[str], list[int]]:
    """Return the labels of the trace's threads, and each event's thread, from 1. Bars that overlap never share one."""
    tracks: dict[str, tuple[list[tuple[int, int]], list[int]]] = {"requests": ([], [])}
    tracks |= {tier: ([], []) for tier in timed.found}
    seats: list[tuple[str, int]] = []
    for event in timed.events:
        track = {"request": "requests", "compute": f"computing in {event.tier}"}.get(event.kind, event.tier)
        busy, free = tracks.setdefault(track, ([], []))
        seat = 1
        if event.kind not in _MARKS:
            start = _micros(event.start_s)
            while busy and busy[0][0] <= start:
                heappush(free, heappop(busy)[1])
            seat = heappop(free) if free else len(busy) + 1
            heappush(busy, (_micros(event.end_s), seat))
        seats.append((track, seat))
    rank = {track: number for number, track in enumerate(tracks)}
    used = sorted(set(seats), key=lambda place: (rank[place[0]], place[1]))
    thread = {place: number for number, place in enumerate(used, 1)}
    return [track if seat == 1 else f"{track} {seat}" for track, seat in used], [thread[place] for place in seats]
