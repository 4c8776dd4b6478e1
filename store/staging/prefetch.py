"""Prefetch: stages objects from the tiers below, verified on the way, before a run asks for them.

Room for all objects is made first, or nothing moves. Then they are staged one after the other. Each is published when
its last byte was checked. If a prefetch is killed and run again, it goes on with the objects that are not staged yet.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..artifacts.refs import label_objects
from ..errors import StoreError, fresh, without_frames
from ..progress import TierProgress, ignore_tiers
from ..tiers.sources import Sources
from ..tiers.staged import StagedTensors
from ..tiers.tier import Held, Tier

if TYPE_CHECKING:
    from ..plan.timeline import Timed


@dataclass(frozen=True, slots=True)
class WantedObject:
    """One stored object that is to be staged. Its id is NAME@N, or that of a prefix block."""

    key: str
    id: str
    length_bytes: int


@dataclass(frozen=True, slots=True)
class StagedObject:
    """One object that is staged now. `source` is the tier it was moved from, or `tier` if it was there already.

    `start_s` is in seconds since the staging began, `seconds` how long it took.
    """

    wanted: WantedObject
    tier: str
    source: str
    start_s: float
    seconds: float

    @property
    def fresh(self) -> bool:
        """Whether this staging moved it."""
        return self.source != self.tier


@dataclass(frozen=True, slots=True)
class StagingReport:
    """What a prefetch did: the objects that are staged, those that failed, and the tiers that were not there.

    Failed objects and degraded tiers have the error that says why.
    """

    staged: tuple[StagedObject, ...]
    failed: tuple[tuple[str, StoreError], ...]
    degraded: Mapping[str, StoreError] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(staged.wanted.length_bytes for staged in self.staged)

    @property
    def moved_bytes(self) -> int:
        return sum(staged.wanted.length_bytes for staged in self.staged if staged.fresh)

    @property
    def moving_s(self) -> float:
        """For how many seconds at least one object was moving. A run may have long times without."""
        total = until = 0.0
        moved = (staged for staged in self.staged if staged.fresh)
        for start, end in sorted((staged.start_s, staged.start_s + staged.seconds) for staged in moved):
            total += max(end - max(start, until), 0.0)
            until = max(until, end)
        return total

    def timeline(self) -> "Timed":
        """Return what moved when."""
        from ..plan.timeline import Event, Timed  # loaded with the planner, which few commands need

        events, resident_bytes = list[Event](), dict[str, int]()
        for staged in self.staged:
            tier, id_, length = staged.tier, staged.wanted.id, staged.wanted.length_bytes
            resident_bytes[tier] = resident_bytes.get(tier, 0) + (0 if staged.fresh else length)
            if staged.fresh:
                end = staged.start_s + staged.seconds
                events.append(Event("move", tier, id_, staged.start_s, end, length, staged.source))
        return Timed(tuple(events), resident_bytes)


@dataclass(frozen=True, slots=True)
class StagingOptions:
    """How objects are staged."""

    ttl_s: float = 0.0  # how long they stay after the caller has released them
    from_: str | None = None  # the tier that they are taken from; None: the nearest
    wait: bool = False  # whether to wait for another process that stages the same object
    progress: TierProgress = ignore_tiers


def stage(
    tier: Tier, sources: Sources, wanted: Sequence[WantedObject], options: StagingOptions, now_s: float
) -> "Prefetched":
    """Stage objects in a tier and hold them.

    Raises NoRoom, before anything moves, if they can't all be there at once. If only one is wanted, raises the error
    that kept it away.
    """
    tier.sweep()
    until_s = now_s + options.ttl_s if options.ttl_s else 0.0
    began = time.monotonic()
    held = {object_.key: resident for object_ in wanted if (resident := tier.hold(object_.key, until_s))}
    missing = {object_.key: object_.length_bytes for object_ in wanted if object_.key not in held}
    total = sum(missing.values())
    tier.make_room(total, frozenset(object_.key for object_ in wanted))

    def report_bytes(length_bytes: int) -> None:
        options.progress(tier.tier, length_bytes, total)

    staged: list[StagedObject] = []
    failed: list[tuple[str, StoreError]] = []
    try:
        for object_ in wanted:
            start = time.monotonic()
            source = tier.tier
            try:
                if object_.key not in held:
                    held[object_.key], source = sources.bring(
                        object_.key, tier, until_s, wait=options.wait, on_bytes=report_bytes
                    )
            except StoreError as error:
                failed.append((object_.id, without_frames(error)))
                continue
            staged.append(StagedObject(object_, tier.tier, source, start - began, time.monotonic() - start))
    except BaseException:  # an interruption: the caller gets nothing that it could release
        _release(tier, held, missing)
        raise
    if len(wanted) == 1 and failed:
        raise fresh(failed[0][1])
    return Prefetched(tier, StagingReport(tuple(staged), tuple(failed), sources.failed), held)


def _release(tier: Tier, held: dict[str, Held], keys: Iterable[str]) -> None:
    held.clear()
    for key in keys:
        tier.remove(key, expired_only=True)


class Prefetched(Mapping[str, StagedTensors]):
    """The objects that a prefetch staged, by name, held until `release` or the end of a with block.

    Those that it moved are wiped then, unless they were to stay for a time. If two versions of a name are staged, each
    goes by `NAME@N`.
    """

    def __init__(self, tier: Tier, staging: StagingReport, held: dict[str, Held]) -> None:
        self.staging, self._tier, self._held = staging, tier, held
        keys = {staged.wanted.id: staged.wanted.key for staged in staging.staged}
        labels = label_objects(keys)
        self.key_of = {labels[id_]: key for id_, key in keys.items()}

    def __getitem__(self, name: str) -> StagedTensors:
        return StagedTensors(self._held[self.key_of[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.key_of)

    def __len__(self) -> int:
        return len(self.key_of)

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def held(self) -> dict[str, Held]:
        """Return the held objects, by key."""
        return dict(self._held)

    def hand_over(self) -> None:
        """Stop holding the objects, and leave wiping to somebody else."""
        self.key_of = {}
        self._held.clear()

    def release(self) -> None:
        """Stop holding the objects, and wipe those that this prefetch moved.

        An object stays if its time has not passed, or if another process or a tensor uses it. It is then removed when
        it is free and somebody makes room.
        """
        self.key_of = {}
        _release(self._tier, self._held, [staged.wanted.key for staged in self.staging.staged if staged.fresh])
