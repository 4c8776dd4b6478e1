"""Jobs to plan: made by hand, at random, and like a trace of conversations."""

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from arstore.store.plan.model import Job, Object, PlannedTier, Request

BLOCK_BYTES, BLOCK_TOKENS = 4 << 20, 512
DISK = PlannedTier("host", None, 2e9)


def sized_job(needs: list[tuple[int, ...]], capacity: int | None, *, length: int = 1, **more: Any) -> Job:
    """Return a job over objects of one size, in one tier with room for `capacity` of them."""
    count = max((number for one in needs for number in one), default=0) + 1
    return Job(
        objects=tuple(Object(f"o{number}", length, 1) for number in range(count)),
        requests=tuple(Request(number, one) for number, one in enumerate(needs)),
        tiers=(PlannedTier("host", None if capacity is None else capacity * length, 1.0),),
        **more,
    )


def with_host(job: Job, capacity: int) -> Job:
    """Return a job whose one tier is the device, filled through a host of that many bytes."""
    return replace(job, tiers=(replace(job.tiers[0], name="device"), PlannedTier("host", capacity, 1.0)))


@st.composite
def needs_of_requests(draw: st.DrawFn, objects: int = 6, requests: int = 7, most: int = 3) -> list[tuple[int, ...]]:
    one = st.lists(st.integers(0, objects - 1), min_size=1, max_size=most, unique=True).map(tuple)
    return draw(st.lists(one, min_size=1, max_size=requests))


@st.composite
def jobs(draw: st.DrawFn, *, recompute: bool = True) -> Job:
    """Draw any job that fits: sizes, tiers, what lies there already, edges, held objects, and work of all kinds."""
    needs = draw(needs_of_requests(objects=8, requests=9, most=4))
    tokens_per_s = draw(st.sampled_from([None, 0.5, 2.0, 100.0])) if recompute else None
    names = draw(st.sampled_from([("device",), ("device", "host"), ("device", "host", "shared")]))
    objects = tuple(
        Object(
            f"o{number}",
            draw(st.integers(0, 9)),
            tokens := draw(st.integers(0, 3)),
            stored=not (tokens and tokens_per_s) or draw(st.booleans()),
            found=tuple(name for name in names if draw(st.integers(0, 9)) == 0),
        )
        for number in range(8)
    )
    requests = tuple(
        Request(
            number if draw(st.booleans()) else f"r{number}",
            one,
            compute_s=draw(st.sampled_from([0.0, 0.5, 3.0, 20.0])),
        )
        for number, one in enumerate(needs)
    )
    edges = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=4))
    shuffled = draw(st.permutations(range(len(requests))))
    for early, late in {(a, b) for a, b in edges if a < b < len(requests)}:
        before, behind = requests[shuffled[early]], requests[shuffled[late]]
        changed = replace(behind, after=(*behind.after, before.id))
        requests = tuple(changed if one is behind else one for one in requests)
    held = tuple(draw(st.lists(st.integers(0, 7), max_size=2, unique=True)))
    lengths = [one.length_bytes for one in objects]
    tiers: list[PlannedTier] = []
    for name in names:
        least = max(sum(lengths[n] for n in {*held, *one.objects}) for one in requests) if not tiers else max(lengths)
        least = max(least, sum(one.length_bytes for one in objects if name in one.found))
        room = draw(st.one_of(st.none(), st.integers(0, 12)))
        speed = draw(st.sampled_from([0.5, 1.0, 4.0]))
        tiers.append(
            PlannedTier(
                name,
                None if room is None else least + room,
                speed,
                draw(st.sampled_from([0.0, 0.25])),
                draw(st.sampled_from([None, speed / 2, 2 * speed])),
                draw(st.sampled_from([None, 4.0])),
            )
        )
    return Job(objects, requests, tuple(tiers), "local", held, tokens_per_s)


def conversations(seed: int = 7, count: int = 6600) -> list[tuple[int, ...]]:
    """Return requests shaped like the conversation trace: chats whose turns extend their prefix, interleaved."""
    random = Random(seed)
    fresh = iter(range(1 << 30))
    system = next(fresh)
    turns: list[tuple[float, tuple[int, ...]]] = []
    for chat in range(count):
        blocks = [system]
        at = float(chat)
        for turn in range(1 + int(random.expovariate(0.9))):
            grown = 1 + int(random.expovariate(1 / 9 if turn else 1 / 18))
            blocks += [next(fresh) for _ in range(min(grown, 240 - len(blocks)))]
            turns.append((at, tuple(blocks)))
            at += 60 + random.expovariate(1 / 300)
    turns.sort(key=lambda pair: pair[0])
    return [blocks for _, blocks in turns]


def block_job(needs: list[tuple[int, ...]], share: float) -> Job:
    """Return a job over the blocks of a trace with a tier for a share of them, beside a disk of 2 GB/s."""
    numbers: dict[int, int] = {}
    requests = tuple(
        Request(place, tuple(numbers.setdefault(block, len(numbers)) for block in one), (), 0.0015 * len(one))
        for place, one in enumerate(needs)
    )
    objects = tuple(Object(f"block {block}", BLOCK_BYTES, BLOCK_TOKENS) for block in numbers)
    return Job(objects, requests, (replace(DISK, capacity_bytes=int(share * len(objects)) * BLOCK_BYTES),))


JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    1 << 64,
    0.5,
    1e400,
    "",
    "x",
    "o0",
    "host",
    "\ud800",
    [],
    [0],
    [[]],
    {},
    {"x": 1},
]


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places_in(value[key])
