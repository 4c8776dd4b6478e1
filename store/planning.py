"""Planning: a JOB file and what this store has of it, as the job that plan.py plans."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ..formats.errors import FormatError
from ..formats.manifest import parse_json
from .artifact import Artifact
from .errors import BadInput
from .job import JobFile, JobRequest, compose, hashed_objects, read_bounded, read_job
from .kv import Kv
from .plan import make_plan
from .planfile import Plan, parse_plan
from .prefixes import find_blocks, find_shape
from .staging import Object, Tier
from .tiers.arena import Arena
from .tiers.local import stored_artifact
from .tiers.probe import Speeds


def plan_job(
    path: Path, get: Callable[[str], Artifact], kv: Kv, host: Arena, speeds: Speeds, *, order: str, to: str | None
) -> Plan:  # fmt: skip
    """Return the plan of a JOB file; nothing moves. `to` goes before what the JOB says."""
    job = read_job(path)
    target = to or job.to
    if target != "host":
        raise BadInput(f"tier {target}", "can't be planned for on this machine, wanted host")
    blocks = hashed_objects(job)

    @cache
    def named(name: str) -> Object:
        artifact = get(name)
        found = ("host",) if host.find(artifact.summary.id) else ()
        text = f"{artifact.summary.name}@{artifact.summary.version}"
        return Object(text, stored_artifact(artifact).length_bytes, found=found)

    def objects_of(request: JobRequest) -> list[Object]:
        if request.hash_ids:
            return list(blocks(request))
        return [named(name) for name in request.artifacts] + _prefix_blocks(job, request, kv)

    budget: Mapping[str, int] = dict(job.budget)
    local, up = speeds["local"], speeds["host"]
    speed = min(local.bytes_per_s, up.bytes_per_s)
    tiers = [Tier("host", budget.get("host", host.capacity_bytes), speed, local.latency_s + up.latency_s)]
    held = [named(name) for name in job.weights]
    return make_plan(compose(job, tiers, source="local", held=held, objects_of=objects_of), order=order)


def names_in(path: Path) -> tuple[list[str], int | None]:
    """Return the artifacts that a JOB or PLAN file stages in the host tier, in their order, and its budget in bytes.

    Raises BadInput for a file that is neither, or that stages prefix blocks, which are staged with their artifact.
    """
    text = read_bounded(path)
    if not text.lstrip().startswith(b"{"):
        job = read_job(path)
        if any(request.tokens or request.hash_ids for request in job.requests):
            raise BadInput(str(path), "has requests of tokens or hash ids: stage what holds their KV by its name")
        if job.to != "host":
            raise BadInput(
                str(path), f"is to stage to {job.to}, wanted host", hint="name the artifacts with --to device"
            )
        names = [*job.weights, *(name for request in job.requests for name in request.artifacts)]
        return list(dict.fromkeys(names)), dict(job.budget).get("host")
    try:
        plan = parse_plan(parse_json(text), str(path))
    except FormatError as error:
        raise BadInput(str(path), str(error).lower()) from None
    moved = [plan.job.objects[move.object].id for lane in plan.lanes for move in lane if not move.made]
    names = list(dict.fromkeys([plan.job.objects[number].id for number in plan.job.held] + moved))
    if any(name.startswith("block ") for name in names):
        raise BadInput(str(path), "stages prefix blocks: stage what holds their KV by its name")
    return names, plan.job.tiers[0].capacity_bytes


def _prefix_blocks(job: JobFile, request: JobRequest, kv: Kv) -> list[Object]:
    """Return the prefix blocks of a request's tokens; those that are not stored have to be computed."""
    if not request.tokens:
        return []
    chain = kv.chain(request.tokens, dict(job.identity))
    shape = find_shape(kv.read.catalog, chain.root)
    if shape is None and not job.block_bytes:
        why = "of its tokens nothing is stored, so that nobody knows how large their KV is"
        raise BadInput(f"request {request.id}", why, hint="say block_bytes under [job]")
    found = []
    for number, named in enumerate(find_blocks(kv.read.catalog, chain.blocks)):
        tokens = chain.tokens_of(number)
        length = shape.block_bytes(tokens) if shape else job.block_bytes or 0
        found.append(Object(f"block {chain.blocks[number].hex()[:32]}", length, tokens, named is not None))
    return found
