"""JOB files: what a user writes about a run, as a TOML file, with the requests as JSON lines in a file beside it.

Invariant: a JobFile is complete and in range. Everything else is refused in one line, which names file, line and field.
Only these two files are read, and no store is asked: `compose` gets the objects of a request from its caller.
"""

import tomllib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from ...formats.errors import FormatError
from ...formats.strict_json import parse_json
from ..artifacts.identity import take_identity
from ..artifacts.refs import parse_ref
from ..disk import file_name
from ..errors import BadInput, NotFound, StorageFailed, reason
from ..quantities import parse_size
from ..user_file import open_user_file
from .fields import WHOLE_MAX, Fields
from .model import BLOCK, Job, Object, PlannedTier, Request, RequestId

JOB_MAX_BYTES = 1 << 20
PLAN_MAX_BYTES = 1 << 28
LINE_MAX_BYTES = 1 << 26
REQUESTS_MAX_COUNT = 1_000_000
REFERENCES_MAX_COUNT = 50_000_000
WEIGHTS_MAX_COUNT = 10_000
BLOCK_TOKENS = 512
TARGETS = ("device", "host")
BUDGETS = ("device", "host", "shared")
_TABLES = ("job", "budget", "recompute", "identity")
_JOB = ("to", "weights", "requests", "block_bytes", "block_tokens")
_NEEDS = ("tokens", "hash_ids", "artifacts")
# Published traces have the last three. They are allowed, and ignored.
_LINE = ("id", *_NEEDS, "after", "compute_seconds", "timestamp", "input_length", "output_length")
_WEIGHTS_ALONE = "weights"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One line of requests. It has tokens, hash ids or artifact names; the other two are empty."""

    id: RequestId
    tokens: tuple[int, ...] = ()
    hash_ids: tuple[int, ...] = ()
    artifacts: tuple[str, ...] = ()
    after: tuple[RequestId, ...] = ()
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobFile:
    """What a JOB says. `budget` is bytes by tier. `block_bytes` is not None if a request has hash ids."""

    path: Path
    to: str
    weights: tuple[str, ...] = ()
    requests: tuple[JobRequest, ...] = ()
    budget: tuple[tuple[str, int], ...] = ()
    tokens_per_s: float | None = None
    block_bytes: int | None = None
    block_tokens: int = BLOCK_TOKENS
    identity: tuple[tuple[str, object], ...] = ()  # of the KV that requests' tokens stand for
    requests_path: Path | None = field(default=None, compare=False)

    def without(self, done: Set[RequestId]) -> "JobFile":
        """Return the job without the requests that are done; nobody waits for them."""
        left = [request for request in self.requests if request.id not in done]
        freed = [replace(request, after=tuple(id_ for id_ in request.after if id_ not in done)) for request in left]
        return replace(self, requests=tuple(freed))


ObjectsOf = Callable[[JobRequest], Sequence[Object]]


def read_job(path: Path) -> JobFile:
    """Return what a JOB file and its requests say.

    Raises NotFound if one of the two isn't there, StorageFailed if it can't be read, BadInput for anything wrong in it.
    """
    tables = _read_tables(path)
    job = Fields(tables.get("job"), f"{path}: [job]", _JOB)
    budget = _optional_table(tables, path, "budget", BUDGETS)
    recompute = _optional_table(tables, path, "recompute", ("tokens_per_second",))
    to = job.text("to") if "to" in job else "host"
    if to not in TARGETS:
        job.refuse("to", to, " or ".join(TARGETS))
    weights = job.texts("weights", most=WEIGHTS_MAX_COUNT) if "weights" in job else ()
    for name in weights:
        _check_ref(name, f"{path}: [job]: weights")
    if "requests" not in job and not weights:
        raise BadInput(f"{path}: [job]", "neither weights nor requests: nothing to stage")
    tokens_per_s = recompute.real("tokens_per_second") if "tokens_per_second" in recompute else None
    if tokens_per_s == 0:
        recompute.refuse("tokens_per_second", 0, "more than 0")
    read = JobFile(
        path=path,
        to=to,
        weights=weights,
        budget=tuple((tier, _size(budget, tier)) for tier in BUDGETS if tier in budget),
        tokens_per_s=tokens_per_s,
        block_bytes=_size(job, "block_bytes") if "block_bytes" in job else None,
        block_tokens=job.whole("block_tokens", least=1) if "block_tokens" in job else BLOCK_TOKENS,
        identity=_identity(tables, f"{path}: [identity]") if "identity" in tables else (),
    )
    return _with_requests(read, path.parent / file_name(job.text("requests"))) if "requests" in job else read


def _read_tables(path: Path) -> Fields:
    text = read_bounded(path, JOB_MAX_BYTES)
    try:
        value = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        hint = "a PLAN goes to 'arstore prefetch'" if holds_plan(text) else ""
        raise BadInput(str(path), f"not valid TOML ({str(error).lower()})", hint=hint) from None
    return Fields(value, str(path), _TABLES)


def _optional_table(tables: Fields, path: Path, name: str, known: Sequence[str]) -> Fields:
    """Return the fields of a table; none if there is no such table."""
    return Fields(tables.get(name) if name in tables else {}, f"{path}: [{name}]", known)


def read_bounded(path: Path, most_bytes: int = PLAN_MAX_BYTES) -> bytes:
    """Return the bytes of a file; raise BadInput if there are more than `most_bytes`."""
    with _opened(path) as file:
        text = file.read(most_bytes + 1)
    if len(text) > most_bytes:
        raise BadInput(str(path), f"longer than {most_bytes} bytes")
    return text


def holds_plan(text: bytes) -> bool:
    """Say whether the text of a file is a plan, good or bad. If not, it may be a JOB."""
    return text.lstrip().startswith(b"{")


def compose(
    job: JobFile, tiers: Sequence[PlannedTier], *, source: str, held: Sequence[Object], objects_of: ObjectsOf
) -> Job:
    """Return the job to plan, with the objects of all requests and the weights (`held`), each once, in order of use.

    A JOB that has weights and no requests becomes one request, which needs only the weights.
    """
    numbers: dict[str, int] = {}
    objects: list[Object] = []

    def numbered(wanted: Sequence[Object]) -> tuple[int, ...]:
        for staged in wanted:
            if numbers.setdefault(staged.id, len(objects)) == len(objects):
                objects.append(staged)
        return tuple(dict.fromkeys(numbers[staged.id] for staged in wanted))

    always = numbered(held)
    lines = job.requests or (JobRequest(_WEIGHTS_ALONE),)
    requests = tuple(Request(line.id, numbered(objects_of(line)), line.after, line.compute_s) for line in lines)
    return Job(tuple(objects), requests, tuple(tiers), source, always, job.tokens_per_s, job.identity)


def hashed_objects(job: JobFile) -> ObjectsOf:
    """Return how hash ids become objects: blocks of the size that the JOB states, whether or not they are stored."""

    def blocks(request: JobRequest) -> list[Object]:
        return [Object(f"{BLOCK}{name}", job.block_bytes or 0, job.block_tokens) for name in request.hash_ids]

    return blocks


def _with_requests(job: JobFile, path: Path) -> JobFile:
    requests: list[JobRequest] = []
    lines: dict[RequestId, int] = {}
    references = 0
    for line, text in _lines(path):
        where = f"{path} line {line}"
        request = _request(text, where, line)
        if lines.setdefault(request.id, line) != line:
            raise BadInput(where, f"id is {request.id!r}, which line {lines[request.id]} has already")
        if request.hash_ids and not job.block_bytes:
            raise BadInput(where, "hash_ids need block_bytes under [job]")
        references += len(request.hash_ids) + len(request.artifacts) + len(request.tokens)
        if len(requests) >= REQUESTS_MAX_COUNT or references > REFERENCES_MAX_COUNT:
            limits = f"{REQUESTS_MAX_COUNT} requests and {REFERENCES_MAX_COUNT} ids and tokens"
            raise BadInput(where, f"more than a job may have, {limits}")
        requests.append(request)
    if not requests:
        raise BadInput(str(path), "holds no request")
    for request in requests:
        for name in request.after:
            if name not in lines:
                raise BadInput(f"{path} line {lines[request.id]}", f"after is {name!r}, which is no request's id")
    return replace(job, requests=tuple(requests), requests_path=path)


def _request(text: bytes, where: str, line: int) -> JobRequest:
    """Return the request of one line. If it has no id, the number of the line is its id."""
    try:
        value = parse_json(text)
    except FormatError as error:
        raise BadInput(where, str(error).lower()) from None
    fields = Fields(value, where, _LINE)
    given = [name for name in _NEEDS if name in fields]
    if len(given) != 1:
        raise BadInput(where, f"has {' and '.join(given) or 'nothing to need'}, wanted one of {', '.join(_NEEDS)}")
    artifacts = fields.texts("artifacts") if "artifacts" in fields else ()
    for name in artifacts:
        _check_ref(name, f"{where}: artifacts")
    return JobRequest(
        id=fields.id("id") if "id" in fields else line,
        tokens=fields.wholes("tokens") if "tokens" in fields else (),
        hash_ids=fields.wholes("hash_ids") if "hash_ids" in fields else (),
        artifacts=artifacts,
        after=fields.ids("after") if "after" in fields else (),
        compute_s=fields.real("compute_seconds") if "compute_seconds" in fields else 0.0,
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line that isn't blank, with its number, counted from 1."""
    with _opened(path) as file:
        number = 0
        while text := file.readline(LINE_MAX_BYTES + 1):
            number += 1
            if len(text) > LINE_MAX_BYTES:
                raise BadInput(f"{path} line {number}", f"longer than {LINE_MAX_BYTES} bytes")
            if not text.isspace():
                yield number, text


def _size(fields: Fields, name: str) -> int:
    """Return a size in bytes, given as a number or as text like 16GiB; raise BadInput unless it is above 0."""
    given = fields.get(name)
    value = given
    with suppress(BadInput):
        value = parse_size(given) if isinstance(given, str) else given
    if type(value) is not int or not 0 < value <= WHOLE_MAX:
        fields.refuse(name, given, "a size above 0, as 16GiB")
    return value


def _identity(tables: Fields, where: str) -> tuple[tuple[str, object], ...]:
    fields = tables.table("identity")
    take_identity(fields, where)
    return tuple(fields.items())


def _check_ref(name: str, where: str) -> None:
    try:
        parse_ref(name)
    except BadInput as error:
        raise BadInput(where, str(error)) from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_user_file(path) as file:
            yield file
    except FileNotFoundError:
        raise NotFound(str(path), "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise StorageFailed(str(path), reason(error)) from None
