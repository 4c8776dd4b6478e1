"""Tenant tiers: the tiers above the local store of one tenant, as the store's users see them."""

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
from ..tiers.local import Local, version_id
from .arenas import Arenas
from .prefetch import Prefetched, StagingOptions, WantedObject, stage
from .unstage import StagedCopy, drop_after_erase, unstage, wipe_before_erase

if TYPE_CHECKING:
    from collections.abc import Set

    from ..plan.model import RequestId
    from ..plan.planfile import Plan
    from .done_list import DoneList
    from .run import Run


@dataclass(frozen=True, slots=True)
class Unstaged:
    """What `unstage` did: copies that were wiped, copies in use, which stay, and tiers that are gone.

    Copies in a tier that is gone can't be wiped.
    """

    gone: list[StagedCopy]
    in_use: list[StagedCopy]
    degraded: dict[str, StoreError]


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers of one tenant. Objects are staged to them and wiped in them; jobs are planned for them and run."""

    arenas: Arenas
    names: Names
    get: Callable[[str], Artifact]
    kv: Kv

    # ---- stage and wipe

    def prefetch(
        self,
        names: Sequence[str],
        to: str,
        budget_bytes: int | None,
        options: StagingOptions,
        *,
        host_only: bool = False,
    ) -> Prefetched:
        """Stage artifacts in a tier, each byte verified, and hold them.

        In the host and shared tier any process can use them, on a device only this one. With `host_only`, artifacts for
        a device are staged in the host tier; the processes that use them bring them to the device.

        Raises NoRoom before anything moves. If some of several artifacts fail, they are in `staging.failed`.
        """
        artifacts = {version_id(artifact): artifact for artifact in map(self.get, dict.fromkeys(names))}
        by_key = {artifact.summary.id: artifact for artifact in artifacts.values()}  # two names may have the same bytes
        local = Local(self.get, lambda key: None, by_key.values())
        wanted = [
            WantedObject(artifact.summary.id, id_, local.length_bytes(artifact.summary.id))
            for id_, artifact in artifacts.items()
        ]
        if host_only and to != "host":
            lengths = {object_.key: object_.length_bytes for object_ in wanted}
            self.arenas.target(to, budget_bytes).make_room(sum(lengths.values()), frozenset())
            to, budget_bytes = "host", None
        return self._stage_from(local, wanted, to, budget_bytes, options)

    def prefetch_plan(self, plan: "Plan", options: StagingOptions) -> Prefetched:
        """Stage all objects that a plan moves into its target, as `prefetch` does; raise NoRoom if they don't fit."""
        from .planned import Planned

        planned = Planned(plan, self.get, self.kv)
        target, objects = plan.job.tiers[0], plan.job.objects
        wanted = [
            WantedObject(key, object_.id, object_.length_bytes)
            for object_, key in zip(objects, planned.keys(), strict=True)
            if object_.stored
        ]
        try:
            return self._stage_from(planned.local(), wanted, target.name, target.capacity_bytes, options)
        except NoRoom as error:
            hint = "raise the budget, or add '-- CMD': then it comes as the requests of CMD need it"
            raise NoRoom(error.where, error.why, hint=hint) from None

    def _stage_from(
        self, local: Local, wanted: Sequence[WantedObject], to: str, budget_bytes: int | None, options: StagingOptions
    ) -> Prefetched:
        """Open the target and the tiers below it, and stage objects."""
        target = self.arenas.target(to, budget_bytes)
        sources = self.arenas.sources(local, to, options.from_)
        return stage(target, sources, wanted, options, self.arenas.now().timestamp())

    def unstage(self, names: Sequence[str] = ()) -> Unstaged:
        """Wipe the staged copies of these names, or all copies, in every tier that is there."""
        arenas, failed = self.arenas.present()
        return Unstaged(*unstage(arenas, self.names, names), failed)

    def wipe_before_erase(self, tenant: Tenant, keys: Collection[str] | None) -> None:
        """Wipe staged copies of these objects of a tenant (None: of all), which are to be erased.

        Raises Fenced if a process uses one, StorageFailed if the shared tier is gone: copies in it can't be wiped.
        """
        arenas, failed = replace(self.arenas, tenant=tenant).present()
        for error in failed.values():
            raise error
        wipe_before_erase(arenas, keys)

    def drop_after_erase(self, tenant: Tenant, keys: Collection[str] | None) -> list[str]:
        """Drop copies that were staged during an erase; return what can't be wiped, see `unstage`. Raises nothing."""
        arenas, failed = replace(self.arenas, tenant=tenant).present()
        return [*(f"tier {tier}" for tier in failed), *drop_after_erase(arenas, keys)]

    # ---- plan and run

    def plan(
        self,
        path: str | Path,
        *,
        order: str = "given",
        to: str | None = None,
        budget_bytes: int | None = None,
        done: "Set[RequestId]" = frozenset(),
    ) -> "Plan":
        """Return the staging plan of a JOB file. Nothing moves; tiers that were never measured are measured first.

        `to` and the target's budget override those of the JOB. Requests that are `done` are left out.
        """
        from .plan_job import plan_file  # loaded here so that commands that plan nothing start faster

        return plan_file(
            self.arenas, self.get, self.kv, Path(path), order=order, to=to, budget_bytes=budget_bytes, done=done
        )

    def done_list(self, path: str | Path, on_failure: "Callable[[StoreError], object]") -> "DoneList":
        """Return the list of the requests of a JOB file that are done. One of all requests is begun anew."""
        from ..plan.job import read_job
        from .done_list import DoneList

        job = read_job(Path(path))
        done = DoneList(Path(path), job.requests_path, self.arenas.disk, on_failure)
        if done.ids.issuperset(request.id for request in job.requests):
            done.clear()
        return done

    def run(
        self,
        plan: "Plan",
        *,
        to: str | None = None,
        from_: str | None = None,
        host_only: bool = False,
        progress: TierProgress = ignore_tiers,
    ) -> "Run":
        """Return a run of a plan, for a with block. If the plan is for a device, `to` names which one.

        With `host_only` another process runs the lane of the device, see `run_planned`. Raises BadInput for a plan of
        blocks that no store holds, NotFound if an object is not stored any more.
        """
        from .planned import Planned

        return Planned(plan, self.get, self.kv).run(self.arenas, to, from_, host_only=host_only, progress=progress)
