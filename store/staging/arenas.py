"""Arenas: the tiers of one tenant opened, looked at, measured and swept."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.keypage import Tenant
from ..disk import Disk
from ..errors import BadInput, StorageFailed, StoreError
from ..tiers.arena import Arena
from ..tiers.device import DeviceTier, kind_of, parse_device
from ..tiers.host import host_directory, open_host
from ..tiers.local import Local
from ..tiers.probe import Speed, Speeds, probe, read_speeds
from ..tiers.shared import open_shared, shared_parent
from ..tiers.sources import Sources
from ..tiers.tier import Tier
from .prefetch import Placed

if TYPE_CHECKING:
    pass

UPWARD = ("local", "shared", "host", "device")


@dataclass(frozen=True, slots=True)
class TierState:
    """One tier as it is now. `capacity_bytes` is None where nobody knows: of a device, or of what is gone."""

    tier: str
    path: str
    capacity_bytes: int | None
    used_bytes: int
    speed: Speed | None
    state: str


@dataclass(frozen=True, slots=True)
class Arenas:
    """What opens the tiers of one tenant. Nothing stays open in here."""

    root: Path
    store_id: bytes
    tenant: Tenant
    disk: Disk
    now: Callable[[], datetime]

    def host(self, budget_bytes: int | None = None) -> Arena:
        """Return the host tier; without a budget it may hold half of its memory file system."""
        return open_host(self.store_id, self.tenant.id, budget_bytes, self.disk)

    def shared(self, budget_bytes: int | None = None) -> Arena | None:
        """Return the shared tier, None where the user names none; raise StorageFailed if it is gone."""
        parent = shared_parent()
        if parent is None:
            return None
        return open_shared(parent, self.store_id, self.tenant.id, self.tenant.digest_key, budget_bytes, self.disk)

    def target(self, to: str, budget_bytes: int | None = None) -> Tier:
        """Return the tier that `to` means; raise BadInput if it can't be staged to."""
        if to == "host":
            return self.host(budget_bytes)
        if to == "shared":
            if (found := self.shared(budget_bytes)) is None:
                raise BadInput("tier shared", "is not there", hint="name a directory in memory by ARSTORE_SHARED_DIR")
            return found
        return DeviceTier(parse_device(to), budget_bytes)

    def sources(self, local: Local, to: str, from_: str | None = None) -> Sources:
        """Return where objects for a tier come from: the nearest tier that has them, or `from_`; else the store.

        A tier that is gone is left out, and named in `failed`.
        """
        target = kind_of(to)
        below = UPWARD[: UPWARD.index(target)]
        if from_ is not None and from_ not in below:
            raise BadInput(f"--from {from_}", f"does not lie below {target}, wanted one of {', '.join(below)}")
        near, failed = self.present([tier for tier in reversed(below[1:]) if from_ in (None, tier)])
        if from_ == "shared" and not near and not failed:
            self.target("shared")
        return Sources(near, local, failed)

    def present(self, wanted: Collection[str] = ("host", "shared")) -> tuple[list[Arena], dict[str, StoreError]]:
        """Return those arenas in which something may lie, and those that are gone with the error that says so."""
        found, failed = list[Arena](), dict[str, StoreError]()
        for tier in wanted:
            try:
                if tier == "shared" and (arena := self.shared()):
                    found.append(arena)
                elif tier == "host" and host_directory(self.store_id, self.tenant.id).is_dir():
                    found.append(self.host())
            except StorageFailed as error:
                failed[tier] = error
        return found, failed

    def placed(self, key: str) -> list[Placed]:
        """Return where an object is staged."""
        return [Placed(arena, one) for arena in self.present()[0] for one in arena.residents() if one.key == key]

    def sweep(self) -> None:
        """Wipe staged copies that killed stagers left, or that are over time and nobody uses, where that can be."""
        for arena in self.present()[0]:
            with contextlib.suppress(StorageFailed):
                arena.sweep()

    def speeds(self) -> Speeds:
        """Return what was measured of the tiers last; empty where nothing was."""
        return read_speeds(self.root)

    def probe(self) -> Speeds:
        """Measure the tiers that are there, and keep the result for the planner."""
        arenas = [self.host(), *self.present(["shared"])[0]]
        return probe(self.root, arenas, self.now().strftime("%Y-%m-%dT%H:%M:%SZ"), self.disk)

    def states(self, disk_bytes: int, free_bytes: int) -> list[TierState]:
        """Return every tier from the nearest to the run down; the local store takes and leaves so many bytes."""
        speeds = self.speeds()
        found = [
            TierState("device", "", None, 0, speeds.get("device"), "ready" if "device" in speeds else "not probed")
        ]
        places = (
            ("host", self.host, host_directory(self.store_id, self.tenant.id)),
            ("shared", self.shared, shared_parent()),
        )
        for tier, open_, parent in places:
            try:
                if arena := open_():
                    with contextlib.suppress(StorageFailed):  # one that can only be read is there all the same
                        arena.sweep()
                    used = sum(one.length_bytes for one in arena.residents())
                    found.append(
                        TierState(tier, str(arena.directory), arena.capacity_bytes, used, speeds.get(tier), "ready")
                    )
            except StorageFailed:
                found.append(TierState(tier, str(parent), None, 0, speeds.get(tier), "gone"))
        return [
            *found,
            TierState("local", str(self.root), disk_bytes + free_bytes, disk_bytes, speeds.get("local"), "ready"),
        ]
