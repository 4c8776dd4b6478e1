"""Prefetch: objects staged up from the tiers below, verified on the way, before a run asks for them.

room for all is made first, or nothing moves -> one after the other, each published when its last byte was checked.
Killed anywhere and run again, it goes on with what is not staged yet.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..artifacts.names import Names
from ..artifacts.refs import label_objects
from ..errors import Fenced, StoreError, fresh, without_frames
from ..progress import TierProgress, ignore_tiers
from ..tiers.arena import Arena
from ..tiers.sources import Sources
from ..tiers.staged import StagedTensors
from ..tiers.tier import Held, Resident, Tier

if TYPE_CHECKING:
    from ..plan.timeline import Timed


@dataclass(frozen=True, slots=True)
class Wanted:
    """One stored object that is to be staged; its id is NAME@N, or that of a prefix block."""

    key: str
    id: str
    length_bytes: int


@dataclass(frozen=True, slots=True)
class StagedOne:
    """One object that is staged now: `source` is the tier it was moved from, its own if it was there.

    Times are seconds, since the staging began and in all.
    """

    wanted: Wanted
    tier: str
    source: str
    start_s: float
    seconds: float

    @property
    def fresh(self) -> bool:
        """Whether this very staging moved it."""
        return self.source != self.tier


@dataclass(frozen=True, slots=True)
class Placed:
    """An object and the arena that it lies in."""

    arena: Arena
    what: Resident


@dataclass(frozen=True, slots=True)
class Staging:
    """What a prefetch did: what is staged, what could not be and why, and which tier was not there and why."""

    staged: tuple[StagedOne, ...]
    failed: tuple[tuple[str, StoreError], ...]
    degraded: Mapping[str, StoreError] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(one.wanted.length_bytes for one in self.staged)

    @property
    def moved_bytes(self) -> int:
        return sum(one.wanted.length_bytes for one in self.staged if one.fresh)

    @property
    def moving_s(self) -> float:
        """How many seconds something moved, of which a run may have had many without."""
        total = until = 0.0
        for start, end in sorted((one.start_s, one.start_s + one.seconds) for one in self.staged if one.fresh):
            total += max(end - max(start, until), 0.0)
            until = max(until, end)
        return total

    def timeline(self) -> "Timed":
        """Return what moved when."""
        from ..plan.timeline import Event, Timed  # with the planner, which few commands need

        events, found = list[Event](), dict[str, int]()
        for one in self.staged:
            what, length = one.wanted.id, one.wanted.length_bytes
            found[one.tier] = found.get(one.tier, 0) + (0 if one.fresh else length)
            if one.fresh:
                end = one.start_s + one.seconds
                events.append(Event("move", one.tier, what, one.start_s, end, length, one.source))
        return Timed(tuple(events), found)


@dataclass(frozen=True, slots=True)
class How:
    """How things are staged: to stay how many seconds after they are used, taken from which tier but the nearest,
    waiting or not for another process that stages the same, and who is told how far it is.
    """

    ttl_s: float = 0.0
    from_: str | None = None
    wait: bool = False
    progress: TierProgress = ignore_tiers


def stage(tier: Tier, sources: Sources, wanted: Sequence[Wanted], how: How, now_s: float) -> "Stage":
    """Stage objects in a tier and hold them.

    Raises NoRoom, before anything moves, if they can't all be there at once; and of one object alone what kept it.
    """
    tier.sweep()
    until_s = now_s + how.ttl_s if how.ttl_s else 0.0
    began = time.monotonic()
    held = {one.key: found for one in wanted if (found := tier.hold(one.key, until_s))}
    missing = {one.key: one.length_bytes for one in wanted if one.key not in held}
    total = sum(missing.values())
    tier.make_room(total, frozenset(one.key for one in wanted))

    def told(length_bytes: int) -> None:
        how.progress(tier.tier, length_bytes, total)

    staged: list[StagedOne] = []
    failed: list[tuple[str, StoreError]] = []
    try:
        for one in wanted:
            start = time.monotonic()
            source = tier.tier
            try:
                if one.key not in held:
                    held[one.key], source = sources.bring(one.key, tier, until_s, wait=how.wait, told=told)
            except StoreError as error:
                failed.append((one.id, without_frames(error)))
                continue
            staged.append(StagedOne(one, tier.tier, source, start - began, time.monotonic() - start))
    except BaseException:  # interrupted: nobody will release it
        _release(tier, held, missing)
        raise
    if len(wanted) == 1 and failed:
        raise fresh(failed[0][1])
    return Stage(tier, Staging(tuple(staged), tuple(failed), sources.failed), held)


def _release(tier: Tier, held: dict[str, Held], keys: Iterable[str]) -> None:
    held.clear()
    for key in keys:
        tier.remove(key, over=True)


class Stage(Mapping[str, StagedTensors]):
    """What a prefetch staged, by name, held until `release` or the end of a with block.

    What this call moved is wiped then, unless it was to stay for a time. Of two versions of a name each is `NAME@N`.
    """

    def __init__(self, tier: Tier, staging: Staging, held: dict[str, Held]) -> None:
        self.staging, self._tier, self._held = staging, tier, held
        staged = {one.wanted.id: one.wanted.key for one in staging.staged}
        labels = label_objects(staged)
        self.key_of = {labels[id_]: key for id_, key in staged.items()}

    def __getitem__(self, name: str) -> StagedTensors:
        return StagedTensors(self._held[self.key_of[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.key_of)

    def __len__(self) -> int:
        return len(self.key_of)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def held(self) -> dict[str, Held]:
        """Return what is held, by key."""
        return dict(self._held)

    def hand_over(self) -> None:
        """Let go without wiping: somebody else does that."""
        self.key_of = {}
        self._held.clear()

    def release(self) -> None:
        """Let go of it; what others or tensors of it still use stays until they are gone and somebody makes room."""
        self.key_of = {}
        _release(self._tier, self._held, [one.wanted.key for one in self.staging.staged if one.fresh])


def unstage(arenas: Sequence[Arena], names: Names, wanted: Sequence[str]) -> tuple[list[Placed], list[Placed]]:
    """Wipe what is staged of these names, or all; return what was wiped, and what is in use and stays."""
    there = [Placed(arena, one) for arena in arenas for one in arena.residents()]
    keys = set[str]() if wanted else {one.what.key for one in there}
    for name in wanted:
        named = {one.what.key for one in there if name in (one.what.name, one.what.name.partition("@")[0])}
        keys |= named or {names.resolve(name).summary.id}  # by a label or an id; NotFound for what is nowhere
    gone, busy = list[Placed](), list[Placed]()
    for one in there:
        if one.what.key in keys:
            (gone if one.arena.remove(one.what.key) else busy).append(one)
    for arena in arenas:
        arena.sweep()
    return gone, busy


def forget_staged(arenas: Sequence[Arena], keys: Collection[str] | None) -> None:
    """Wipe staged copies of these objects (None: of all) before they are erased; raise Fenced if one is in use."""
    for arena in arenas:
        arena.sweep()
        for key, name in _names(arena, keys).items():
            with arena.filling(key, wait=False):
                if not arena.remove(key):
                    raise Fenced(name, "is staged, and a process uses it", hint="end that process, then run it again")


def drop_staged(arenas: Sequence[Arena], keys: Collection[str] | None) -> list[str]:
    """Drop copies of these objects that were staged while they were erased; return which a process has in use.

    Those go with it. Raises nothing, because what is erased is erased: a tier that fails is in the list.
    """
    used = []
    for arena in arenas:
        try:
            used += [name for key, name in _names(arena, keys).items() if not arena.drop(key)]
        except (StoreError, OSError):
            used.append(f"tier {arena.tier}")
    return used


def _names(arena: Arena, keys: Collection[str] | None) -> dict[str, str]:
    """Return the names of what is staged, or being staged, of these keys."""
    names = {key: key[:16] for key in arena.coming()} | {one.key: one.name for one in arena.residents()}
    return {key: name for key, name in names.items() if keys is None or key in keys}
