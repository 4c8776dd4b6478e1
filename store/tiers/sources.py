"""Sources: brings an object from the nearest tier that has it. Where that tier fails, the local store gives it."""

import contextlib
from collections.abc import Sequence

from ..errors import Corrupt, NotFound, StorageFailed, StoreError, without_frames
from ..progress import BytesTold, ignore_bytes
from .tier import Held, ObjectSource, Tier


class Sources:
    """Where objects come from: the nearest tiers first, which may fail, then the local store, whose errors count."""

    def __init__(self, near: Sequence[Tier], truth: ObjectSource, failed: dict[str, StoreError] | None = None) -> None:
        """Take the near tiers, the local store, and the tiers that are gone already, each with its error."""
        self._near, self._truth = near, truth
        self.failed = failed or {}  # near tiers that were gone or gave something bad, each with its first error

    def bring(
        self, key: str, target: Tier, until_s: float = 0.0, *, wait: bool, on_bytes: BytesTold = ignore_bytes
    ) -> tuple[Held, str]:
        """Bring an object into `target`; return it, held in place, and the tier it came from.

        That tier is `target` if the object was there already. Raises Fenced if another process is bringing it, unless
        `wait`; NotFound if no tier has it, or if it was erased meanwhile; else what the store and `target` raise.
        """
        with target.filling(key, wait=wait):
            if resident := target.hold(key, until_s):
                return resident, target.tier
            for source in self._near:
                try:
                    if held := source.hold(key):
                        return target.fill(key, held, until_s, on_bytes), source.tier
                except (StorageFailed, NotFound, Corrupt) as error:
                    held = None  # a held object can't be removed below
                    self.failed.setdefault(source.tier, without_frames(error))
                    if isinstance(error, Corrupt):
                        with contextlib.suppress(StoreError):
                            source.remove(key)
            if (held := self._truth.hold(key)) is None:
                raise NotFound(key[:16], f"is not in {self._truth.tier} (any more)")
            return target.fill(key, held, until_s, on_bytes), self._truth.tier
