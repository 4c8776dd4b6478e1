"""Steps: what a lane works for, one after the other, as their users see them. A step is a request or a move above."""

from dataclasses import dataclass, field
from typing import Protocol

from ..errors import StoreError
from ..tiers.tier import Held


@dataclass(frozen=True, slots=True)
class StepObjects:
    """The objects of one step, by number: held in place, or failed with the error that kept it away.

    An object in neither must be computed.
    """

    held: dict[int, Held] = field(default_factory=dict)
    failed: dict[int, StoreError] = field(default_factory=dict)


class Steps(Protocol):
    """Serves the steps of a lane: `lane` in its own process, `serve` in other processes."""

    @property
    def tier(self) -> str: ...

    def next(self) -> int | None:
        """Return the next step that nobody has been given yet; None after the last."""
        ...

    def take(self, step: int) -> StepObjects:
        """Return the objects of a step, once all of them came or failed. Raises StorageFailed if the run has ended."""
        ...

    def finish(self, step: int, *, done: bool = True) -> None:
        """Say that a step is over, and whether its work was done. Its objects may then be evicted."""
        ...

    def stop(self) -> None:
        """Make no further move. Whoever waits in `take` gets StorageFailed."""
        ...
