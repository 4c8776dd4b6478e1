"""Timelines: what they say of a plan is what the plan promises, and a file says all of it and nothing else."""

import contextlib
import json
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arstore.store.errors import BadInput
from arstore.store.plan.model import Job
from arstore.store.plan.planner import make_plan
from arstore.store.plan.timeline import TIERS_MAX_COUNT, Event, Timed, occupancy, parse_trace, planned, trace
from tests.support.jobs import JUNK, jobs, places_in, sized_job

PAIR = Timed(
    (
        Event("move", "host", "a", 0.0, 2.0, 4, "local"),
        Event("move", "host", "b", 1.0, 3.0, 4, "local"),
        Event("request", "host", "first", 3.0, 3.5),
        Event("evict", "host", "a", 3.5, 3.5, 4),
        Event("reserve", "host", "c", 3.5, 3.5, 5),
        Event("move", "host", "d", 3.5, 4.0, 1, "local"),
        Event("compute", "host", "c", 4.0, 5.0, 5),
    ),
    {"host": 10},
)


def as_read(timed: Timed) -> Any:
    return json.loads(json.dumps(trace(timed)))


@st.composite
def timelines(draw: st.DrawFn) -> Timed:
    """Draw anything a run may bring: overlaps of all kinds, events at once, two tiers, sub-microsecond times."""
    moments = st.sampled_from([0.0, 1.0, 2.0, 1e-6, 2e-6, 3e-6, 1.000001])
    events = []
    for number in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["request", "move", "compute", "evict"]))
        start = draw(st.one_of(moments, st.floats(0, 10)))
        end = start if kind == "evict" else start + draw(st.one_of(moments, st.floats(0, 5)))
        tier = draw(st.sampled_from(["device", "host", "requests"]))
        source = "local" if kind == "move" else ""
        events.append(Event(kind, tier, f"o{number}", start, end, 0 if kind == "evict" else number, source))
    return Timed(tuple(events), {"device": 3, "host": 0})


# --- what happens in a plan


@settings(max_examples=200, deadline=None)
@given(jobs(), st.sampled_from(["given", "prefix"]))
def test_by_the_clock_each_tier_holds_what_the_plan_says_and_no_more(job: Job, order: str) -> None:
    plan = make_plan(job, order=order)
    timed = planned(plan)
    names = [tier.name for tier in job.tiers]
    for read in (timed, parse_trace(as_read(timed), "FILE")):
        curves = occupancy(read)
        assert [*curves] == names
        assert [max(length for _, length in curves[name]) for name in names] == [*plan.peak_bytes]
        assert min(length for curve in curves.values() for _, length in curve) >= 0
    assert timed.seconds == plan.predicted_s


@settings(max_examples=100, deadline=None)
@given(jobs())
def test_every_move_of_a_plan_is_an_event_from_the_tier_below(job: Job) -> None:
    plan = make_plan(job)
    below = dict(zip([tier.name for tier in job.tiers], [*(tier.name for tier in job.tiers[1:]), "local"], strict=True))
    wanted = sorted(
        (tier.name, "compute" if move.made else "move", job.objects[move.object].id)
        for tier, lane in zip(job.tiers, plan.lanes, strict=True)
        for move in lane
    )
    events = planned(plan).events
    assert sorted((e.tier, e.kind, e.name) for e in events if e.kind in ("move", "compute")) == wanted
    assert all(e.source == (below[e.tier] if e.kind == "move" else "") for e in events)
    assert [e.name for e in events if e.kind == "request"] == [str(job.requests[n].id) for n in plan.order]
    assert sum(e.kind == "evict" for e in events) == sum(len(m.evict) for lane in plan.lanes for m in lane)
    starts = [e.start_s for e in events]
    assert starts == sorted(starts)


def test_room_is_taken_when_a_move_starts_and_kept_for_what_is_computed() -> None:
    assert occupancy(PAIR) == {"host": [(0.0, 10), (0.0, 14), (1.0, 18), (3.5, 14), (3.5, 19), (3.5, 20)]}
    plan = make_plan(sized_job([(0, 1), (2,)], 2))
    held = [(0.0, 0), (0.0, 1), (1.0, 2), (2.0, 1), (2.0, 2)]
    assert occupancy(planned(plan)) == {"host": held}


# --- the file


@settings(max_examples=200, deadline=None)
@given(timelines())
def test_a_timeline_comes_back_to_the_microsecond(timed: Timed) -> None:
    value = as_read(timed)
    read = parse_trace(value, "FILE")
    assert as_read(read) == value
    assert (len(read.events), read.found) == (len(timed.events), timed.found)
    for event, was in zip(read.events, timed.events, strict=True):
        assert abs(event.start_s - was.start_s) <= 0.51e-6
        assert abs(event.end_s - was.end_s) <= 0.51e-6
        assert [getattr(event, name) for name in ("kind", "tier", "name", "length_bytes", "source")] == [
            getattr(was, name) for name in ("kind", "tier", "name", "length_bytes", "source")
        ]


@settings(max_examples=200, deadline=None)
@given(timelines())
def test_bars_that_overlap_never_share_a_thread(timed: Timed) -> None:
    threads = defaultdict(list)
    for row in trace(timed)["traceEvents"]:
        if row["ph"] == "X":
            threads[row["tid"]].append((row["ts"], row["ts"] + row["dur"]))
    for spans in threads.values():
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_trace_is_what_its_viewers_open() -> None:
    value = trace(PAIR)
    rows = value["traceEvents"]
    assert value["displayTimeUnit"] == "ms"
    named = {row["tid"]: row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert [*named.values()] == ["requests", "host", "host 2", "computing in host"]
    shown = [(named[row["tid"]], row["name"], row["ts"], row.get("dur")) for row in rows if row["ph"] in "Xi"]
    assert shown == [
        ("host", "a", 0, 2_000_000),
        ("host 2", "b", 1_000_000, 2_000_000),
        ("requests", "first", 3_000_000, 500_000),
        ("host", "a", 3_500_000, None),
        ("host", "c", 3_500_000, None),
        ("host", "d", 3_500_000, 500_000),
        ("computing in host", "c", 4_000_000, 1_000_000),
    ]
    assert next(row for row in rows if row["name"] == "b")["args"] == {"tier": "host", "bytes": 4, "from": "local"}
    counted = [(row["ts"], row["args"]["bytes"]) for row in rows if row["ph"] == "C"]
    assert counted == [(0, 14), (1_000_000, 18), (3_500_000, 20)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_file_changed_anywhere_is_refused_or_is_another_timeline(draw: st.DataObject) -> None:
    value = as_read(PAIR)
    before = json.dumps(value)
    spots = list(places_in(value))
    holder, key = spots[draw.draw(st.integers(0, len(spots) - 1))]
    if draw.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = draw.draw(st.sampled_from([*JUNK, "move", "evict", "X", "i"]))
    assume(json.dumps(value) != before)
    with contextlib.suppress(BadInput):
        assert trace(parse_trace(value, "FILE")) == value


def changed(**rows: Any) -> Any:
    """Return the file of PAIR with fields of its first bar changed, those of `top` in the file itself."""
    value, top = as_read(PAIR), rows.pop("top", {})
    next(row for row in value["traceEvents"] if row["ph"] == "X").update(rows)
    return value | top


EMPTY = Timed((), {})
REFUSED = [
    (None, "None stands where fields were wanted"),
    ([], "stands where fields were wanted"),
    ({}, "otherData is missing"),
    ({"traceEvents": []}, "otherData is missing"),
    (changed(top={"more": 1}), "'more' is not known"),
    (changed(top={"traceEvents": {}}), "traceEvents is {}, wanted a list"),
    (changed(top={"displayTimeUnit": "ns"}), "it is not what follows from its events"),
    (changed(top={"otherData": {"format": "arstore timeline 2", "found": []}}), "format is 'arstore timeline 2'"),
    (changed(cat="moved"), "cat is 'moved', wanted one of request, move"),
    (changed(ts=-1), "ts is -1, wanted a whole number"),
    (changed(ts=1.5), "ts is 1.5, wanted a whole number"),
    (changed(ts=1 << 62), "is not what follows from its events"),
    (changed(ts=1_500_000), "is not what follows from its events"),  # out of order
    (changed(dur=1), "is not what follows from its events"),  # then b needs no thread of its own
    (changed(tid=7), "is not what follows from its events"),
    (changed(name=""), "name is '', wanted text"),
    (changed(name="a\nb"), "wanted printable text"),
    (changed(args={"tier": "host", "bytes": -1}), "bytes is -1"),
    (changed(args={"tier": "host", "bytes": 1, "to": "x"}), "'to' is not known"),
    (changed(colour="red"), "'colour' is not known"),
    (as_read(Timed((Event("evict", "host", "a", 1.0, 1.0, 2),), {"host": 1})), "more leaves host than it held"),
    (as_read(Timed((), {f"t{n}": 0 for n in range(TIERS_MAX_COUNT + 1)})), "found lists 65, at most 64 are taken"),
]


@pytest.mark.parametrize(("value", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_no_timeline_is_refused_in_one_line(value: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_trace(value, "FILE")
    assert str(caught.value).startswith("FILE")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_events_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    value = as_read(PAIR)
    assert parse_trace(as_read(EMPTY), "FILE") == EMPTY
    monkeypatch.setattr("arstore.store.plan.timeline.EVENTS_MAX_COUNT", len(value["traceEvents"]) - 1)
    with pytest.raises(BadInput, match="at most"):
        parse_trace(value, "FILE")
