"""Plan job: reads a JOB file, looks up what this store and its tiers have of it, and has `plan/` plan it."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..artifacts.artifact import Artifact
from ..errors import BadInput
from ..kv.kv import Kv
from ..kv.match import find_blocks, find_shape
from ..plan.job import JobFile, JobRequest, compose, hashed_objects, read_job
from ..plan.model import BLOCK, Object, PlannedTier, RequestId
from ..plan.planfile import Plan
from ..plan.planner import make_plan
from ..tiers.device import kind_of
from ..tiers.local import stored_artifact, version_id
from ..tiers.speeds import Speeds
from ..tiers.tier import Tier
from .arenas import Arenas


def plan_file(
    arenas: Arenas,
    get: Callable[[str], Artifact],
    kv: Kv,
    path: Path,
    *,
    order: str,
    to: str | None,
    budget_bytes: int | None,
    done: Set[RequestId] = frozenset(),
) -> Plan:
    """Return the plan of a JOB file without requests that are `done`, see `Tiers.plan`."""
    job = read_job(path).without(done)
    to = to or job.to
    target = kind_of(to)
    if target not in ("host", "device"):
        raise BadInput(f"tier {to}", "can't be planned for, wanted host or device")
    budget = dict(job.budget) | ({target: budget_bytes} if budget_bytes is not None else {})
    tiers = [arenas.target(to, budget.get(target))]
    tiers += [arenas.host(budget.get("host"))] if target == "device" else []
    tiers += arenas.present(["shared"])[0] if "shared" in budget else []
    speeds = arenas.speeds()
    if not speeds.keys() >= {"local", *(tier.tier for tier in tiers)}:
        speeds = arenas.probe()
    return plan_job(StoredJob(job, get, kv, tiers), speeds, order=order)


def plan_job(stored: "StoredJob", speeds: Speeds, *, order: str) -> Plan:
    """Return the plan of a job. Nothing moves."""
    planned = compose(
        stored.job,
        _planned_tiers(stored.tiers, speeds),
        source="local",
        held=[stored.artifact_object(name) for name in stored.job.weights],
        objects_of=stored.objects_of,
    )
    return make_plan(replace(planned, objects=_fitting(planned.objects, planned.tiers)), order=order)


@dataclass(slots=True)
class StoredJob:
    """A job over one store: finds the objects that its requests need. `tiers` are those on the way, target first."""

    job: JobFile
    get: Callable[[str], Artifact]
    kv: Kv
    tiers: Sequence[Tier]
    _artifacts: dict[str, Object] = field(default_factory=dict)  # by name: a large one takes a while to lay out

    def objects_of(self, request: JobRequest) -> list[Object]:
        """Return the objects that a request needs."""
        if request.hash_ids:
            return list(hashed_objects(self.job)(request))
        return [*map(self.artifact_object, request.artifacts), *self._prefix_blocks(request)]

    def artifact_object(self, name: str) -> Object:
        """Return an artifact as an object of the plan."""
        if name not in self._artifacts:
            artifact = self.get(name)
            length, tiers = stored_artifact(artifact).length_bytes, self._tiers_with(artifact.summary.id)
            self._artifacts[name] = Object(version_id(artifact), length, found=tiers)
        return self._artifacts[name]

    def _prefix_blocks(self, request: JobRequest) -> list[Object]:
        """Return the prefix blocks of a request's tokens. Blocks that are not stored must be computed."""
        if not request.tokens:
            return []
        job, catalog = self.job, self.kv.read.catalog
        chain = self.kv.chain(request.tokens, dict(job.identity))
        shape = find_shape(catalog, chain.root)
        if shape is None and not job.block_bytes:
            why = "of its tokens nothing is stored, so that nobody knows how large their KV is"
            raise BadInput(f"request {request.id}", why, hint="say block_bytes under [job]")
        objects = []
        for number, block in enumerate(find_blocks(catalog, chain.blocks, whole=True)):
            tokens, key, is_stored = chain.tokens_of(number), chain.blocks[number].hex(), block is not None
            length = shape.block_bytes(tokens) if shape else job.block_bytes or 0
            objects.append(Object(BLOCK + key, length, tokens, is_stored, self._tiers_with(key) if is_stored else ()))
        missing = sum(object_.tokens for object_ in objects if not object_.stored)
        if missing and job.tokens_per_s is None:
            tokens_count = len(request.tokens)
            why = f"{missing} of its {tokens_count} tokens are not stored, and how fast they are computed is unknown"
            raise BadInput(f"request {request.id}", why, hint="say tokens_per_second under [recompute]")
        return objects

    def _tiers_with(self, key: str) -> tuple[str, ...]:
        """Return the tiers in which an object lies already."""
        return tuple(tier.tier for tier in self.tiers if tier.find(key))


def _planned_tiers(tiers: Sequence[Tier], speeds: Speeds) -> list[PlannedTier]:
    """Return tiers as a plan has them. The last is filled from the disk, so it is no faster than the disk reads."""
    planned = []
    for tier in tiers:
        speed = speeds[tier.tier]
        bytes_per_s = (
            speed.bytes_per_s if tier is not tiers[-1] else min(speed.bytes_per_s, speeds["local"].bytes_per_s)
        )
        planned.append(
            PlannedTier(
                tier.tier,
                tier.capacity_bytes,
                bytes_per_s,
                speed.latency_s,
                speed.alone_bytes_per_s,
                speed.evict_bytes_per_s,
            )
        )
    return planned


def _fitting(objects: Sequence[Object], tiers: Sequence[PlannedTier]) -> tuple[Object, ...]:
    """Return objects, each `found` only in tiers whose budget has room for it.

    Objects that are used first have the room; those that are used last may have to leave the tier.
    """
    room = {tier.name: tier.capacity_bytes for tier in tiers}
    fitting = []
    for object_ in objects:
        kept = []
        for name in object_.found:
            left = room[name]
            if left is None or object_.length_bytes <= left:
                kept.append(name)
                room[name] = None if left is None else left - object_.length_bytes
        fitting.append(replace(object_, found=tuple(kept)))
    return tuple(fitting)
