"""Lane plan: the moves of one lane and what its steps need, as its run has them from the plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan.model import Move


@dataclass(frozen=True, slots=True)
class LanePlan:
    """The moves of one lane, in order, and the objects that each step needs. Objects are given by number."""

    keys: Sequence[str]  # of all objects, by number
    moves: Sequence[Move]
    needs: Sequence[Sequence[int]]  # for each step, the objects that it takes
    always: Sequence[int]  # objects that every step takes
    waits: Sequence[Sequence[int]]  # for each step, the steps that must be over before it; empty if none waits
    resident: Sequence[int]  # objects that were in the tier when the plan was made

    def needed(self, step: int) -> tuple[int, ...]:
        """Return all objects that a step takes."""
        return (*self.needs[step], *self.always)

    def waits_of(self, step: int) -> Sequence[int]:
        """Return the steps that must be over before a step."""
        return self.waits[step] if self.waits else ()

    def moves_until(self) -> list[int]:
        """Return for each step how many moves, from the first on, must have been made before it."""
        counts, at = [], 0
        for step in range(len(self.needs)):
            while at < len(self.moves) and self.moves[at].step <= step:
                at += 1
            counts.append(at)
        return counts
