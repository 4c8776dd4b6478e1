"""Steps: what a lane works for, as those who use it see them, one after the other."""

from dataclasses import dataclass, field
from typing import Protocol

from ..errors import StoreError
from ..tiers.tier import Held


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step needs, by the objects' numbers: in place and held, or with the error that kept it away.

    What is in neither has to be computed.
    """

    held: dict[int, Held] = field(default_factory=dict)
    failed: dict[int, StoreError] = field(default_factory=dict)


class Steps(Protocol):
    """What serves the steps of a lane, in this process or through feed.py in another."""

    @property
    def tier(self) -> str: ...

    def next(self) -> int | None:
        """Return the next step that nobody has been given yet; None after the last."""
        ...

    def take(self, step: int) -> Taken:
        """Return what a step needs, when all of it is there. Raises StorageFailed if the run has ended."""
        ...

    def over(self, step: int) -> None:
        """Say that a step is over: what it took may go."""
        ...

    def stop(self) -> None:
        """Make no further move; whoever waits in `take` is told that the run has ended."""
        ...
