"""Supply: brings the objects of one lane into its tier, from the lane below or from the tiers below."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Corrupt, Fenced, NotFound, StorageFailed, StoreError, fresh, without_frames
from ..progress import BytesTold
from ..tiers.sources import Sources
from ..tiers.tier import Held, Tier
from .steps import StepObjects, Steps

_RETRY_S = 0.02


@dataclass(frozen=True, slots=True)
class Supply:
    """Where a lane has its objects from: the lane `below`, if there is one, else or after a failure `sources`."""

    tier: Tier
    below: Steps | None
    sources: Sources | None
    on_bytes: BytesTold  # called as bytes come into the tier
    is_closed: Callable[[], bool]  # whether the lane has ended

    def bring(self, key: str, number: int, step: int) -> tuple[Held, str]:
        """Bring an object, which is `step` of the lane below; return it, held in place, and the tier it came from.

        Raises the error of the lane below if there are no sources, else the error of the sources.
        """
        if self.below is None:
            return self.bring_from_sources(key)
        why: StoreError = NotFound(key[:16], f"is not in {self.below.tier} (any more)")
        taken = StepObjects()
        try:
            taken = self.below.take(step)
            if held := taken.held.get(number):
                with self.tier.filling(key, wait=True):
                    resident = self.tier.hold(key)
                    return resident or self.tier.fill(key, held, on_bytes=self.on_bytes), self.below.tier
            why = taken.failed.get(number, why)
        except (Corrupt, StorageFailed, NotFound) as error:
            why = without_frames(error)
        finally:
            taken.held.clear()
            held = None  # the step is over only when nothing holds its object
            self.below.finish(step)
        if self.sources is None:
            raise fresh(why)
        return self.bring_from_sources(key)

    def bring_from_sources(self, key: str) -> tuple[Held, str]:
        """Bring an object from the nearest tier that has it; return it, held in place, and that tier.

        While another process is bringing it, try again and again; raise Fenced if the lane ends meanwhile.
        """
        if self.sources is None:
            raise NotFound(key[:16], f"is not in {self.tier.tier} (any more)")
        while True:  # not waiting in a lock, so that the run can be ended
            try:
                return self.sources.bring(key, self.tier, wait=False, on_bytes=self.on_bytes)
            except Fenced:
                if self.is_closed():
                    raise
                time.sleep(_RETRY_S)
