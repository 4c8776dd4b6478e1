"""Planned: a plan, and what this store has of it: the keys of its objects, where they come from, and its run."""

from collections.abc import Callable
from dataclasses import dataclass

from ..artifacts.artifact import Artifact
from ..errors import BadInput, StorageFailed
from ..kv.kv import Kv
from ..plan.model import BLOCK
from ..plan.planfile import Plan
from ..progress import TierProgress
from ..tiers.extent import KEY
from ..tiers.local import Local, stored_artifact
from ..tiers.sources import Sources
from ..tiers.tier import Tier
from .arenas import Arenas
from .run import Run


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan over one store."""

    plan: Plan
    get: Callable[[str], Artifact]
    kv: Kv

    def keys(self) -> list[str]:
        """Return the key of each object of the plan; raise BadInput for what is not stored as it was planned."""
        keys = []
        for one in self.plan.job.objects:
            if not one.id.startswith(BLOCK):
                artifact = self.get(one.id)
                if stored_artifact(artifact).length_bytes != one.length_bytes:
                    raise BadInput(f"object {one.id}", "has another size than planned", hint="plan again")
                keys.append(artifact.summary.id)
            elif self.plan.job.identity and KEY.fullmatch(key := one.id.removeprefix(BLOCK)):
                keys.append(key)
            else:
                raise BadInput(f"object {one.id}", "is planned without the store holding it, so it can't be staged")
        return keys

    def local(self) -> Local:
        """Return the store as a tier that has the artifacts and the prefix blocks of the plan."""
        identity = dict(self.plan.job.identity)
        return Local(self.get, self.kv.blocks_of(identity) if identity else lambda key: None)

    def run(
        self, arenas: Arenas, to: str | None, from_: str | None, *, host_only: bool, progress: TierProgress
    ) -> Run:  # fmt: skip
        """Return a run of the plan, see `Tiers.run`."""
        plan = self.plan
        job, local = plan.job, self.local()
        tiers, sources = list[Tier](), list[Sources]()
        lower = [tier for tier in job.tiers if not (host_only and tier.name == "device")]
        if not lower:
            raise BadInput("plan", "has no host tier to bring a command's objects to", hint="plan again")
        for tier in lower:
            name = to if to is not None and tier.name == "device" else tier.name
            try:
                tiers.append(arenas.target(name, tier.capacity_bytes))
            except StorageFailed:
                if name != "shared":
                    raise
                break  # it is gone, and the last: its lane is left out, and the sources of the one above say so
            sources.append(arenas.sources(local, tier.name, from_ if tier is lower[-1] else None))
        return Run(plan, tiers, self.keys(), sources, first=len(job.tiers) - len(lower), progress=progress)
