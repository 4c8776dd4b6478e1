"""Arenas: opens the tiers of one tenant, finds staged copies in them, measures and sweeps them."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...formats.keypage import Tenant
from ..disk import Disk
from ..errors import BadInput, StorageFailed, StoreError
from ..tiers.arena import Arena
from ..tiers.device import DeviceTier, kind_of, parse_device
from ..tiers.host import host_directory, open_host
from ..tiers.local import Local
from ..tiers.probe import probe
from ..tiers.shared import open_shared, shared_parent
from ..tiers.sources import Sources
from ..tiers.speeds import Speed, Speeds, read_speeds
from ..tiers.tier import Tier
from .unstage import StagedCopy

UPWARD = ("local", "shared", "host", "device")


@dataclass(frozen=True, slots=True)
class TierState:
    """One tier as it is now. `capacity_bytes` is None if it is unknown: for a device, or a tier that is gone."""

    tier: str
    path: str
    capacity_bytes: int | None
    used_bytes: int
    speed: Speed | None
    state: str


@dataclass(frozen=True, slots=True)
class Arenas:
    """Opens the tiers of one tenant. Nothing stays open in here."""

    root: Path
    store_id: bytes
    tenant: Tenant
    disk: Disk
    now: Callable[[], datetime]

    def host(self, budget_bytes: int | None = None) -> Arena:
        """Return the host tier; without a budget it may hold half of its memory file system."""
        return open_host(self.store_id, self.tenant.id, budget_bytes, self.disk)

    def shared(self, budget_bytes: int | None = None) -> Arena | None:
        """Return the shared tier; None if the user names none. Raises StorageFailed if it is gone."""
        parent = shared_parent()
        if parent is None:
            return None
        return open_shared(parent, self.store_id, self.tenant.id, self.tenant.digest_key, budget_bytes, self.disk)

    def target(self, to: str, budget_bytes: int | None = None) -> Tier:
        """Return the tier that `to` names; raise BadInput if it can't be staged to."""
        if to == "host":
            return self.host(budget_bytes)
        if to == "shared":
            if (shared := self.shared(budget_bytes)) is None:
                raise BadInput("tier shared", "is not there", hint="name a directory in memory by ARSTORE_SHARED_DIR")
            return shared
        return DeviceTier(parse_device(to), budget_bytes)

    def sources(self, local: Local, to: str, from_: str | None = None) -> Sources:
        """Return where the objects for a tier come from: `from_`, or the nearest tier that has them, then the store.

        A tier that is gone is left out, and is in `failed`. Raises BadInput if `from_` does not lie below `to`.
        """
        target = kind_of(to)
        below = UPWARD[: UPWARD.index(target)]
        if from_ is not None and from_ not in below:
            raise BadInput(f"--from {from_}", f"does not lie below {target}, wanted one of {', '.join(below)}")
        near, failed = self.present([tier for tier in reversed(below[1:]) if from_ in (None, tier)])
        if from_ == "shared" and not near and not failed:
            self.target("shared")  # raises BadInput: the user names none
        return Sources(near, local, failed)

    def present(self, wanted: Collection[str] = ("host", "shared")) -> tuple[list[Arena], dict[str, StoreError]]:
        """Return the arenas that may hold something, and the tiers that are gone, each with its error."""
        arenas, failed = list[Arena](), dict[str, StoreError]()
        for tier in wanted:
            try:
                if tier == "shared" and (arena := self.shared()):
                    arenas.append(arena)
                elif tier == "host" and host_directory(self.store_id, self.tenant.id).is_dir():
                    arenas.append(self.host())
            except StorageFailed as error:
                failed[tier] = error
        return arenas, failed

    def copies(self, key: str) -> list[StagedCopy]:
        """Return the staged copies of an object."""
        return [
            StagedCopy(arena, resident)
            for arena in self.present()[0]
            for resident in arena.residents()
            if resident.key == key
        ]

    def sweep(self) -> None:
        """Wipe copies that killed stagers left and expired ones that nobody uses, in all tiers that can be written."""
        for arena in self.present()[0]:
            with contextlib.suppress(StorageFailed):
                arena.sweep()

    def speeds(self) -> Speeds:
        """Return the speeds that were measured last; none if nothing was measured."""
        return read_speeds(self.root)

    def probe(self) -> Speeds:
        """Measure the tiers that are there, and keep the result for the planner."""
        arenas = [self.host(), *self.present(["shared"])[0]]
        return probe(self.root, arenas, self.now().strftime("%Y-%m-%dT%H:%M:%SZ"), self.disk)

    def states(self, disk_bytes: int, free_bytes: int) -> list[TierState]:
        """Return all tiers, the nearest to the run first. The store uses `disk_bytes`; its disk has `free_bytes`."""
        speeds = self.speeds()
        device, local = speeds.get("device"), speeds.get("local")
        arenas = (
            self._arena_state("host", self.host, host_directory(self.store_id, self.tenant.id), speeds),
            self._arena_state("shared", self.shared, shared_parent(), speeds),
        )
        return [
            TierState("device", "", None, 0, device, "ready" if device else "not probed"),
            *(state for state in arenas if state),
            TierState("local", str(self.root), disk_bytes + free_bytes, disk_bytes, local, "ready"),
        ]

    def _arena_state(
        self, tier: str, open_: Callable[[], Arena | None], path: Path | None, speeds: Speeds
    ) -> TierState | None:
        """Return the state of an arena; None if the user names none."""
        speed = speeds.get(tier)
        try:
            if (arena := open_()) is None:
                return None
            with contextlib.suppress(StorageFailed):  # an arena that can't be written can still be read
                arena.sweep()
            used_bytes = sum(resident.length_bytes for resident in arena.residents())
        except StorageFailed:
            return TierState(tier, str(path), None, 0, speed, "gone")
        return TierState(tier, str(arena.directory), arena.capacity_bytes, used_bytes, speed, "ready")
