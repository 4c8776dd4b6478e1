"""Tiering: the tiers above the local store of one tenant, staged to, released, measured and planned for."""

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.keypage import Tenant
from ..artifacts.artifact import Artifact
from ..artifacts.names import Names
from ..artifacts.put import PutParts
from ..disk import Disk
from ..errors import BadInput, NoRoom, StorageFailed, StoreError
from ..kv.kv import Kv
from ..maintenance.heal import heal
from ..maintenance.scrub import Scrubbed
from ..plan.model import BLOCK
from ..progress import TierProgress, ignore_tiers
from ..tiers.arena import Arena
from ..tiers.device import DeviceTier, kind_of, parse_device
from ..tiers.extent import KEY
from ..tiers.host import host_directory, open_host
from ..tiers.local import Local, stored_artifact
from ..tiers.probe import Speed, Speeds, probe, read_speeds
from ..tiers.shared import open_shared, shared_parent
from ..tiers.sources import Sources
from ..tiers.tier import Tier
from .prefetch import How, Placed, Stage, Wanted, drop_staged, forget_staged, stage, unstage

if TYPE_CHECKING:
    from ..plan.planfile import Plan
    from .run import Run

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
class Unstaged:
    """What was wiped; what is in use and stays; and which tier is gone, so that what it held can't be wiped."""

    gone: list[Placed]
    in_use: list[Placed]
    degraded: dict[str, StoreError]


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers of one tenant."""

    root: Path
    store_id: bytes
    tenant: Tenant
    names: Names
    get: Callable[[str], Artifact]
    kv: Kv
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
        near, failed = self._arenas([tier for tier in reversed(below[1:]) if from_ in (None, tier)])
        if from_ == "shared" and not near and not failed:
            self.target("shared")
        return Sources(near, local, failed)

    def prefetch(
        self, names: Sequence[str], to: str, budget_bytes: int | None, how: How, *, host_only: bool = False
    ) -> Stage:  # fmt: skip
        """Stage artifacts up to a tier, each byte verified, and hold them.

        In host and shared tier they stay for any process, on a device for this one. With `host_only` what is meant for
        a device goes as far as the host tier: its processes bring it further. Raises NoRoom before anything moves. Of
        several, `staging.failed` says which could not be staged.
        """
        versions = {f"{one.summary.name}@{one.summary.version}": one for one in map(self.get, dict.fromkeys(names))}
        found = {one.summary.id: one for one in versions.values()}  # of the same bytes by two names there is one
        local = Local(self.get, lambda key: None, found.values())
        wanted = [Wanted(one.summary.id, id_, local.length_bytes(one.summary.id)) for id_, one in versions.items()]
        if host_only and to != "host":
            lengths = {one.key: one.length_bytes for one in wanted}
            self.target(to, budget_bytes).make_room(sum(lengths.values()), frozenset())
            to, budget_bytes = "host", None
        return self._stage(wanted, local, to, budget_bytes, how)

    def prefetch_plan(self, plan: "Plan", how: How) -> Stage:
        """Stage all that a plan moves into its target, as `prefetch` does; raise NoRoom if it can't all be there."""
        target, objects = plan.job.tiers[0], plan.job.objects
        wanted = [
            Wanted(key, one.id, one.length_bytes)
            for one, key in zip(objects, self.keys(plan), strict=True)
            if one.stored
        ]
        try:
            return self._stage(wanted, self._local(plan), target.name, target.capacity_bytes, how)
        except NoRoom as error:
            hint = "raise the budget, or add '-- CMD': then it comes as the requests of CMD need it"
            raise NoRoom(error.where, error.why, hint=hint) from None

    def _stage(self, wanted: Sequence[Wanted], local: Local, to: str, budget_bytes: int | None, how: How) -> Stage:
        target = self.target(to, budget_bytes)
        return stage(target, self.sources(local, to, how.from_), wanted, how, self.now().timestamp())

    def unstage(self, names: Sequence[str] = ()) -> Unstaged:
        """Wipe what is staged of these names, or all, in every tier that is there."""
        arenas, failed = self._arenas()
        return Unstaged(*unstage(arenas, self.names, names), failed)

    def forget(self, tenant: Tenant, keys: Collection[str] | None, *, late: bool = False) -> list[str]:
        """Wipe staged copies of these objects of a tenant before they are erased, see `forget_staged`.

        Raises StorageFailed if the shared tier is gone: what it holds can't be wiped then. `late`: see `drop_staged`.
        """
        arenas, failed = replace(self, tenant=tenant)._arenas()
        if late:
            return [*(f"tier {one}" for one in failed), *drop_staged(arenas, keys)]
        for error in failed.values():
            raise error
        forget_staged(arenas, keys)
        return []

    def placed(self, key: str) -> list[Placed]:
        """Return where an object is staged."""
        return [Placed(arena, one) for arena in self._arenas()[0] for one in arena.residents() if one.key == key]

    def heal(self, scrubbed: Scrubbed, parts: PutParts) -> Scrubbed:
        """Store bad blobs anew from what is staged; see `heal`."""
        for arena in self._arenas()[0]:
            scrubbed = heal(parts, arena, scrubbed) if scrubbed.corrupt else scrubbed
        return scrubbed

    def sweep(self) -> None:
        """Wipe staged copies that killed stagers left, or that are over time and nobody uses, where that can be."""
        for arena in self._arenas()[0]:
            with contextlib.suppress(StorageFailed):
                arena.sweep()

    def _arenas(self, wanted: Collection[str] = ("host", "shared")) -> tuple[list[Arena], dict[str, StoreError]]:
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

    def speeds(self) -> Speeds:
        """Return what was measured of the tiers last; empty where nothing was."""
        return read_speeds(self.root)

    def probe(self) -> Speeds:
        """Measure the tiers that are there, and keep the result for the planner."""
        arenas = [self.host(), *self._arenas(["shared"])[0]]
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

    def plan(
        self, path: str | Path, *, order: str = "given", to: str | None = None, budget_bytes: int | None = None
    ) -> "Plan":  # fmt: skip
        """Return the staging plan of a JOB file; nothing moves. Tiers that were never measured are measured first.

        `to` and the budget of the target go before what the JOB says.
        """
        from ..plan.job import read_job  # loaded where it is used, so that other commands start faster
        from .plan_job import plan_job

        job = read_job(Path(path))
        to = to or job.to
        target = kind_of(to)
        if target not in ("host", "device"):
            raise BadInput(f"tier {to}", "can't be planned for, wanted host or device")
        budget = dict(job.budget) | ({target: budget_bytes} if budget_bytes is not None else {})
        tiers = [self.target(to, budget.get(target))]
        tiers += [self.host(budget.get("host"))] if target == "device" else []
        tiers += self._arenas(["shared"])[0] if "shared" in budget else []
        speeds = self.speeds()
        if not speeds.keys() >= {"local", *(one.tier for one in tiers)}:
            speeds = self.probe()
        return plan_job(job, self.get, self.kv, tiers, speeds, order=order)

    def run(
        self, plan: "Plan", *, to: str | None = None, from_: str | None = None, host_only: bool = False,
        progress: TierProgress = ignore_tiers,
    ) -> "Run":  # fmt: skip
        """Return a run of a plan, to be used in a with block. `to` names the device, where the plan is for one.

        With `host_only` the lane of a device is another process's, see run_planned. Raises BadInput for a plan of
        blocks that no store holds, NotFound if an object is not stored any more.
        """
        from .run import Run

        job, local = plan.job, self._local(plan)
        tiers, sources = list[Tier](), list[Sources]()
        lower = [tier for tier in job.tiers if not (host_only and tier.name == "device")]
        if not lower:
            raise BadInput("plan", "has no host tier to bring a command's objects to", hint="plan again")
        for tier in lower:
            name = to if to is not None and tier.name == "device" else tier.name
            try:
                tiers.append(self.target(name, tier.capacity_bytes))
            except StorageFailed:
                if name != "shared":
                    raise
                break  # it is gone, and the last: its lane is left out, and the sources of the one above say so
            sources.append(self.sources(local, tier.name, from_ if tier is lower[-1] else None))
        return Run(plan, tiers, self.keys(plan), sources, first=len(job.tiers) - len(lower), progress=progress)

    def _local(self, plan: "Plan") -> Local:
        identity = dict(plan.job.identity)
        return Local(self.get, self.kv.blocks_of(identity) if identity else lambda key: None)

    def keys(self, plan: "Plan") -> list[str]:
        """Return the key of each object of a plan; raise BadInput for what is not stored as it was planned."""
        keys = []
        for one in plan.job.objects:
            if not one.id.startswith(BLOCK):
                artifact = self.get(one.id)
                if stored_artifact(artifact).length_bytes != one.length_bytes:
                    raise BadInput(f"object {one.id}", "has another size than planned", hint="plan again")
                keys.append(artifact.summary.id)
            elif plan.job.identity and KEY.fullmatch(key := one.id.removeprefix(BLOCK)):
                keys.append(key)
            else:
                raise BadInput(f"object {one.id}", "is planned without the store holding it, so it can't be staged")
        return keys
