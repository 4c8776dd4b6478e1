"""Planning: a JOB file and what this store has of it, as the job that plan.py plans."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ..artifacts.artifact import Artifact
from ..errors import BadInput
from ..kv.kv import Kv
from ..kv.match import find_blocks, find_shape
from ..plan.job import JobFile, JobRequest, compose, hashed_objects, read_job
from ..plan.model import BLOCK, Object, PlannedTier
from ..plan.planfile import Plan
from ..plan.planner import make_plan
from ..tiers.device import kind_of
from ..tiers.local import stored_artifact
from ..tiers.probe import Speeds
from ..tiers.tier import Tier
from .arenas import Arenas


def plan_file(
    arenas: Arenas, get: Callable[[str], Artifact], kv: Kv, path: Path, *, order: str, to: str | None,
    budget_bytes: int | None,
) -> Plan:  # fmt: skip
    """Return the plan of a JOB file, see `Tiers.plan`."""
    job = read_job(path)
    to = to or job.to
    target = kind_of(to)
    if target not in ("host", "device"):
        raise BadInput(f"tier {to}", "can't be planned for, wanted host or device")
    budget = dict(job.budget) | ({target: budget_bytes} if budget_bytes is not None else {})
    tiers = [arenas.target(to, budget.get(target))]
    tiers += [arenas.host(budget.get("host"))] if target == "device" else []
    tiers += arenas.present(["shared"])[0] if "shared" in budget else []
    speeds = arenas.speeds()
    if not speeds.keys() >= {"local", *(one.tier for one in tiers)}:
        speeds = arenas.probe()
    return plan_job(job, get, kv, tiers, speeds, order=order)


def plan_job(
    job: JobFile, get: Callable[[str], Artifact], kv: Kv, tiers: Sequence[Tier], speeds: Speeds, *, order: str
) -> Plan:  # fmt: skip
    """Return the plan of a job; nothing moves. `tiers` are those on its way, from the target down."""
    blocks = hashed_objects(job)

    def found(key: str) -> tuple[str, ...]:
        return tuple(one.tier for one in tiers if one.find(key))

    @cache
    def named(name: str) -> Object:
        artifact = get(name)
        text = f"{artifact.summary.name}@{artifact.summary.version}"
        return Object(text, stored_artifact(artifact).length_bytes, found=found(artifact.summary.id))

    def objects_of(request: JobRequest) -> list[Object]:
        if request.hash_ids:
            return list(blocks(request))
        return [named(name) for name in request.artifacts] + _prefix_blocks(job, request, kv, found)

    held = [named(name) for name in job.weights]
    planned = compose(job, _planned(tiers, speeds), source="local", held=held, objects_of=objects_of)
    return make_plan(replace(planned, objects=_fitting(planned.objects, planned.tiers)), order=order)


def _planned(tiers: Sequence[Tier], speeds: Speeds) -> list[PlannedTier]:
    """Return tiers as a plan has them; the last is filled from the disk, and no faster than that reads."""
    planned = []
    for one in tiers:
        here = speeds[one.tier]
        speed = here.bytes_per_s if one is not tiers[-1] else min(here.bytes_per_s, speeds["local"].bytes_per_s)
        more = here.alone_bytes_per_s, here.evict_bytes_per_s
        planned.append(PlannedTier(one.tier, one.capacity_bytes, speed, here.latency_s, *more))
    return planned


def _fitting(objects: Sequence[Object], tiers: Sequence[PlannedTier]) -> tuple[Object, ...]:
    """Return objects without those places that a budget has no room for: what is used last may have to go there."""
    room = {tier.name: tier.capacity_bytes for tier in tiers}
    fitting = []
    for one in objects:
        kept = []
        for name in one.found:
            left = room[name]
            if left is None or one.length_bytes <= left:
                kept.append(name)
                room[name] = None if left is None else left - one.length_bytes
        fitting.append(replace(one, found=tuple(kept)))
    return tuple(fitting)


def _prefix_blocks(
    job: JobFile, request: JobRequest, kv: Kv, found: Callable[[str], tuple[str, ...]]
) -> list[Object]:  # fmt: skip
    """Return the prefix blocks of a request's tokens; those that are not stored have to be computed."""
    if not request.tokens:
        return []
    chain = kv.chain(request.tokens, dict(job.identity))
    shape = find_shape(kv.read.catalog, chain.root)
    if shape is None and not job.block_bytes:
        why = "of its tokens nothing is stored, so that nobody knows how large their KV is"
        raise BadInput(f"request {request.id}", why, hint="say block_bytes under [job]")
    objects = []
    for number, named in enumerate(find_blocks(kv.read.catalog, chain.blocks, whole=True)):
        tokens, key = chain.tokens_of(number), chain.blocks[number].hex()
        length = shape.block_bytes(tokens) if shape else job.block_bytes or 0
        stored = named is not None
        objects.append(Object(BLOCK + key, length, tokens, stored, found(key) if stored else ()))
    missing = sum(one.tokens for one in objects if not one.stored)
    if missing and job.tokens_per_s is None:
        why = f"{missing} of its {len(request.tokens)} tokens are not stored, and how fast they are computed is unknown"
        raise BadInput(f"request {request.id}", why, hint="say tokens_per_second under [recompute]")
    return objects
