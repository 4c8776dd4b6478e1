"""Planned: a plan over one store. It gives the keys of the plan's objects, where they come from, and the plan's run."""

from collections.abc import Callable
from dataclasses import dataclass

from ..artifacts.artifact import Artifact
from ..errors import BadInput, StorageFailed
from ..kv.kv import Kv
from ..plan.model import BLOCK, Object
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
    """A plan, and the store that its objects come from."""

    plan: Plan
    get: Callable[[str], Artifact]
    kv: Kv

    def keys(self) -> list[str]:
        """Return the key of each object of the plan; raise BadInput for an object that is not stored as planned."""
        return [self._key(object_) for object_ in self.plan.job.objects]

    def _key(self, object_: Object) -> str:
        where = f"object {object_.id}"
        if not object_.id.startswith(BLOCK):
            artifact = self.get(object_.id)
            if stored_artifact(artifact).length_bytes != object_.length_bytes:
                raise BadInput(where, "has another size than planned", hint="plan again")
            return artifact.summary.id
        key = object_.id.removeprefix(BLOCK)
        if self.plan.job.identity and KEY.fullmatch(key):
            return key
        raise BadInput(where, "is planned without the store holding it, so it can't be staged")

    def local(self) -> Local:
        """Return the store as a tier that has the artifacts and the prefix blocks of the plan."""
        identity = dict(self.plan.job.identity)
        return Local(self.get, self.kv.blocks_of(identity) if identity else lambda key: None)

    def run(self, arenas: Arenas, to: str | None, from_: str | None, *, host_only: bool, progress: TierProgress) -> Run:
        """Return a run of the plan, see `Tiers.run`."""
        job, local = self.plan.job, self.local()
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
                break  # shared is the lowest tier: without its lane, the sources of the tier above say that it is gone
            sources.append(arenas.sources(local, tier.name, from_ if tier is lower[-1] else None))
        return Run(self.plan, tiers, self.keys(), sources, first=len(job.tiers) - len(lower), progress=progress)
