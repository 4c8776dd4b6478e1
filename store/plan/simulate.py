"""When everything in a plan happens: a pipeline of one worker a lane and one accelerator.

Moves. The worker of a lane makes its moves one after the other. A move starts when three things are so: the worker is
free, the object has arrived in the tier below, and the step that the move waits for is over. A move takes latency +
bytes / bandwidth.

Moves alone. The one worker stands for several, which together are faster than one. A move with no other beside it takes
longer. The difference lies in the time of the move before it. If it waits for that very move, as where room is short,
the difference comes on top.

Requests. A request is computed in its order, when the accelerator is free. First it recomputes the objects at its
front, while the others arrive. When all have arrived it does its other work. An object that is computed gets its room
in the turn of its move, so no later move takes room that an earlier one has yet to make.

Invariant: pure, and each time follows from earlier ones, so that equal plans give equal times to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .model import Job, Lanes

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Times:
    """Start and end in seconds of every move, lane by lane, and of every request in its order."""

    moves: tuple[tuple[Span, ...], ...]
    requests: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        return self.requests[-1][1] if self.requests else 0.0


def simulate(job: Job, order: Sequence[int], lanes: Lanes, *, ahead: int | None = None, roomy: bool = False) -> Times:
    """Return when each move and request starts and ends.

    `ahead` is how many requests the moves may run ahead of the one being computed. 0 is on demand, None is no limit.
    With `roomy` no move waits for what it evicts, as if there were room for all. No timing of these moves is shorter.
    """
    spans: list[list[Span]] = [[] for _ in lanes]
    clocks, turns = [0.0] * len(lanes), [0.0] * len(lanes)  # when a lane's last move ended, and began
    requests: list[Span] = []

    def serve(place: int, step: int, start: float) -> float:
        """Time the moves of a lane that serve one step; return when the last ends, or `start` if there is none."""
        lane, tier, lane_spans = lanes[place], job.tiers[place], spans[place]
        users = spans[place - 1] if place else requests
        ready = start
        while len(lane_spans) < len(lane) and lane[len(lane_spans)].step == step:
            move = lane[len(lane_spans)]
            may = max(turns[place], start, users[move.after][1] if move.after >= 0 and not roomy else 0.0)
            evicting = tier.evict_s(sum(job.objects[number].length_bytes for number in move.evict))
            if move.made:  # the accelerator makes it: its times are set below, when its request is computed
                clocks[place] = turns[place] = max(clocks[place], may) + evicting
                lane_spans.append((start, start))
                continue
            length_bytes = job.objects[move.object].length_bytes
            lead = tier.lead_s(length_bytes)
            begin = turns[place] = max(may, clocks[place] - lead)
            if place + 1 < len(lanes):
                begin = max(begin, serve(place + 1, len(lane_spans), start))
            ready = clocks[place] = max(clocks[place], begin + lead) + evicting + tier.seconds(length_bytes)
            lane_spans.append((begin, ready))
        return ready

    over = 0.0
    for step, number in enumerate(order):
        behind = step - 1 - ahead if ahead is not None else -1
        first = len(spans[0])
        loaded = serve(0, step, requests[behind][1] if behind >= 0 else 0.0)
        moves = lanes[0][first : len(spans[0])]
        front = next((place for place, move in enumerate(moves) if not move.made), len(moves))
        begin = over if front else max(over, loaded)
        over = begin
        for place, move in enumerate(moves):
            if place == front:
                over = max(over, loaded)
            if move.made:
                spans[0][first + place] = (over, over + job.recompute_s(move.object))
                over = spans[0][first + place][1]
        over = max(over, loaded) + job.requests[number].compute_s
        requests.append((begin, over))
    return Times(tuple(tuple(lane) for lane in spans), tuple(requests))
