"""Fallback: objects from the nearest tier that has them; from the local store where that tier fails or is gone."""

import contextlib
from collections.abc import Sequence

from ..errors import Corrupt, NotFound, StorageFailed, StoreError, without_frames
from ..progress import BytesTold, ignore_bytes
from .tier import Held, ObjectSource, Tier


class Sources:
    """Where objects come from: tiers that may fail, the nearest first, and the local store, whose errors count."""

    def __init__(self, near: Sequence[Tier], truth: ObjectSource, failed: dict[str, StoreError] | None = None) -> None:
        """Take the tiers, and those that are gone already with the error that says so."""
        self._near, self._truth = near, truth
        self.failed = failed or {}  # near tiers that were not there or gave something bad: the first error of each

    def bring(
        self, key: str, target: Tier, until_s: float = 0.0, *, wait: bool, told: BytesTold = ignore_bytes
    ) -> tuple[Held, str]:
        """See that an object is in a tier; return it, held in place, and where it came from: `target`, if it was there.

        Raises Fenced if another process is bringing it, unless `wait`; NotFound if no tier has it, or if it was erased
        meanwhile; else what the store and `target` raise.
        """
        with target.filling(key, wait=wait):
            if there := target.hold(key, until_s):
                return there, target.tier
            for source in self._near:
                try:
                    if held := source.hold(key):
                        return target.fill(key, held, until_s, told), source.tier
                except (StorageFailed, NotFound, Corrupt) as error:
                    held = None
                    self.failed.setdefault(source.tier, without_frames(error))
                    if isinstance(error, Corrupt):
                        with contextlib.suppress(StoreError):
                            source.remove(key)
            if (held := self._truth.hold(key)) is None:
                raise NotFound(key[:16], f"is not in {self._truth.tier} (any more)")
            return target.fill(key, held, until_s, told), self._truth.tier
