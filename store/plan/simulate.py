"""When everything in a plan happens: a pipeline of one worker a lane and one accelerator.

A worker makes its moves one after the other. A move starts when the worker is free, what it moves has arrived in the
tier below, and the step it waits for is over: that request has been computed, or that move of the lane above was made.
The worker stands for several, who are faster than one: what a move takes longer alone lies in the time of the one
before it, unless it has to wait for that very one, as it does where room is short.
What is computed gets its room in the same turn: no later move takes what an earlier one has yet to evict.
A request is computed in order, when the accelerator is free: first what it recomputes at its front, while the rest
still arrives; then, with all of it there, its other work. A move takes latency + bytes / bandwidth, alone on its way.

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

    `ahead`: how many requests the moves may run ahead of the one being computed; 0: on demand, None: without limit.
    `roomy`: as if there were room for all, so that no move waits for what it evicts: what these moves can't go below.
    """
    spans: list[list[Span]] = [[] for _ in lanes]
    clocks, turns = [0.0] * len(lanes), [0.0] * len(lanes)  # when a lane's last move ended, and began
    requests: list[Span] = []

    def serve(place: int, step: int, start: float) -> float:
        """Make the moves of a lane that serve one step; return when the last ends, or `start` if there is none."""
        lane, tier, lane_spans = lanes[place], job.tiers[place], spans[place]
        users = spans[place - 1] if place else requests
        ready = start
        while len(lane_spans) < len(lane) and lane[len(lane_spans)].step == step:
            move = lane[len(lane_spans)]
            may = max(turns[place], start, users[move.after][1] if move.after >= 0 and not roomy else 0.0)
            evicting = tier.evict_s(sum(job.objects[number].length_bytes for number in move.evict))
            if move.made:  # the accelerator's: its times are known when the request has been computed
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
