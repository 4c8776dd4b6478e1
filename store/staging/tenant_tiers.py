"""Tiering: the tiers above the local store of one tenant, staged to, released, measured and planned for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats.keypage import Tenant
from ..artifacts.artifact import Artifact
from ..artifacts.names import Names
from ..errors import NoRoom, StoreError
from ..kv.kv import Kv
from ..progress import TierProgress, ignore_tiers
from ..tiers.local import Local
from .arenas import Arenas
from .prefetch import How, Placed, Stage, Wanted, drop_staged, forget_staged, stage, unstage

if TYPE_CHECKING:
    from ..plan.planfile import Plan
    from .run import Run


@dataclass(frozen=True, slots=True)
class Unstaged:
    """What was wiped; what is in use and stays; and which tier is gone, so that what it held can't be wiped."""

    gone: list[Placed]
    in_use: list[Placed]
    degraded: dict[str, StoreError]


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers of one tenant."""

    arenas: Arenas
    names: Names
    get: Callable[[str], Artifact]
    kv: Kv

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
            self.arenas.target(to, budget_bytes).make_room(sum(lengths.values()), frozenset())
            to, budget_bytes = "host", None
        return self._stage(wanted, local, to, budget_bytes, how)

    def prefetch_plan(self, plan: "Plan", how: How) -> Stage:
        """Stage all that a plan moves into its target, as `prefetch` does; raise NoRoom if it can't all be there."""
        from .planned import Planned

        planned = Planned(plan, self.get, self.kv)
        target, objects = plan.job.tiers[0], plan.job.objects
        wanted = [
            Wanted(key, one.id, one.length_bytes)
            for one, key in zip(objects, planned.keys(), strict=True)
            if one.stored
        ]
        try:
            return self._stage(wanted, planned.local(), target.name, target.capacity_bytes, how)
        except NoRoom as error:
            hint = "raise the budget, or add '-- CMD': then it comes as the requests of CMD need it"
            raise NoRoom(error.where, error.why, hint=hint) from None

    def _stage(self, wanted: Sequence[Wanted], local: Local, to: str, budget_bytes: int | None, how: How) -> Stage:
        target = self.arenas.target(to, budget_bytes)
        return stage(target, self.arenas.sources(local, to, how.from_), wanted, how, self.arenas.now().timestamp())

    def unstage(self, names: Sequence[str] = ()) -> Unstaged:
        """Wipe what is staged of these names, or all, in every tier that is there."""
        arenas, failed = self.arenas.present()
        return Unstaged(*unstage(arenas, self.names, names), failed)

    def forget(self, tenant: Tenant, keys: Collection[str] | None) -> None:
        """Wipe staged copies of these objects of a tenant (None: of all) before they are erased.

        Raises Fenced if a process uses one, StorageFailed if the shared tier is gone: what it holds can't be wiped.
        """
        present, failed = replace(self.arenas, tenant=tenant).present()
        for error in failed.values():
            raise error
        forget_staged(present, keys)

    def forget_late(self, tenant: Tenant, keys: Collection[str] | None) -> list[str]:
        """Wipe copies that were staged while they were erased; return what can't be wiped. Raises nothing."""
        present, failed = replace(self.arenas, tenant=tenant).present()
        return [*(f"tier {tier}" for tier in failed), *drop_staged(present, keys)]

    def plan(
        self, path: str | Path, *, order: str = "given", to: str | None = None, budget_bytes: int | None = None
    ) -> "Plan":  # fmt: skip
        """Return the staging plan of a JOB file; nothing moves. Tiers that were never measured are measured first.

        `to` and the budget of the target go before what the JOB says.
        """
        from .plan_job import plan_file  # loaded where it is used, so that other commands start faster

        return plan_file(self.arenas, self.get, self.kv, Path(path), order=order, to=to, budget_bytes=budget_bytes)

    def run(
        self, plan: "Plan", *, to: str | None = None, from_: str | None = None, host_only: bool = False,
        progress: TierProgress = ignore_tiers,
    ) -> "Run":  # fmt: skip
        """Return a run of a plan, to be used in a with block. `to` names the device, where the plan is for one.

        With `host_only` the lane of a device is another process's, see run_planned. Raises BadInput for a plan of
        blocks that no store holds, NotFound if an object is not stored any more.
        """
        from .planned import Planned

        return Planned(plan, self.get, self.kv).run(self.arenas, to, from_, host_only=host_only, progress=progress)
