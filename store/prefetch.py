"""Prefetch: artifacts staged up from the local store, verified on the way, before a run asks for them.

room for all is made first, or nothing moves -> one after the other, each published when its last byte was checked.
Killed anywhere and run again, it goes on with what is not staged yet.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.tensor import TensorSpan
from .artifact import Artifact
from .attach import StagedTensors
from .config import setting
from .disk import Disk
from .errors import BadInput, Fenced, NotFound, StoreError
from .kv import Kv
from .names import Names
from .prefix import Run
from .progress import Progress
from .tiers.host import HostTier, Resident

SESSION_FORMAT = 1


@dataclass(frozen=True, slots=True)
class StagedOne:
    """One artifact that is staged now: `fresh` if this very call moved it."""

    name: str
    version: int
    key: str
    tier: str
    length_bytes: int
    seconds: float
    fresh: bool


@dataclass(frozen=True, slots=True)
class Staging:
    """What a prefetch did: what is staged, and what could not be, with the error that says why."""

    staged: tuple[StagedOne, ...]
    failed: tuple[tuple[str, StoreError], ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One artifact to be staged, and how its bytes get into a buffer."""

    artifact: Artifact
    spans: tuple[TensorSpan, ...]
    fill: Callable[[memoryview], None]

    @property
    def key(self) -> str:
        return self.artifact.summary.id

    @property
    def length_bytes(self) -> int:
        return max((span.start + span.length for span in self.spans), default=0)


def wanted_of(artifact: Artifact, kv: Kv) -> Wanted:
    """Return what staging an artifact means: its tensors, and files that hold none, side by side; KV in its layout."""
    if artifact.manifest.shape:
        prefix = kv.open(f"{artifact.summary.name}@{artifact.summary.version}")
        assert prefix.shape
        count = prefix.tokens_count
        spans = prefix.spans(prefix.shape, count, prefix.layout, prefix.page_tokens)

        def load(out: memoryview) -> None:
            prefix.load([Run(0, count, 0)], None, range, None, None, into=out)

        return Wanted(artifact, spans, load)
    ranges, spans = artifact.side_by_side()

    def fill(out: memoryview) -> None:
        artifact.fill((place, out[at : at + place[2] - place[1]]) for place, at in ranges.items())

    return Wanted(artifact, spans, fill)


def stage(tier: HostTier, wanted: Sequence[Wanted], until_s: float, *, wait: bool, progress: Progress) -> "Stage":
    """Stage artifacts in the host tier and hold them.

    Raises NoRoom, before anything moves, if they can't all be there at once; and of one artifact alone what kept it.
    """
    tier.sweep()
    keys = frozenset(one.key for one in wanted)
    missing = {one.key: one.length_bytes for one in wanted if not tier.find(one.key)}
    if missing:
        tier.make_room(sum(missing.values()), keys)
    staged: list[StagedOne] = []
    failed: list[tuple[str, StoreError]] = []
    for one in wanted:
        began = time.monotonic()
        summary = one.artifact.summary
        name = f"{summary.name}@{summary.version}"
        try:
            with tier.filling(one.key, wait=wait) as mine:
                if mine:
                    with tier.fill(one.key, name, one.spans, until_s) as out:
                        one.fill(out)
                else:
                    tier.keep(one.key, until_s)
        except StoreError as error:
            failed.append((name, error))
            continue
        progress(one.length_bytes, sum(missing.values()))
        seconds = time.monotonic() - began
        staged.append(StagedOne(summary.name, summary.version, one.key, "host", one.length_bytes, seconds, mine))
    if len(wanted) == 1 and failed:
        raise failed[0][1]
    return Stage(tier, Staging(tuple(staged), tuple(failed)))


class Stage(Mapping[str, StagedTensors]):
    """What a prefetch staged, by name, held until `release` or the end of a with block.

    What this call moved is wiped then, unless it was to stay for a time.
    """

    def __init__(self, tier: HostTier, staging: Staging) -> None:
        self.staging, self.tier = staging, tier
        self._held = {one.name: StagedTensors(tier.attach(one.key)) for one in staging.staged}

    def __getitem__(self, name: str) -> StagedTensors:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def hand_over(self) -> None:
        """Let go without wiping: somebody else does that."""
        self._held.clear()

    def release(self) -> None:
        """Let go of it; what others or tensors of it still use stays until they are gone and somebody makes room."""
        self._held.clear()
        for one in self.staging.staged:
            if one.fresh:
                self.tier.remove_if_over(one.key)


def unstage(tier: HostTier, names: Names, wanted: Sequence[str]) -> tuple[list[Resident], list[Resident]]:
    """Wipe what is staged of these names, or all; return what was wiped, and what is in use and stays."""
    keys = {names.resolve(name).summary.id for name in wanted}
    gone, busy = list[Resident](), list[Resident]()
    for one in tier.residents():
        if not wanted or one.key in keys:
            (gone if tier.remove(one.key) else busy).append(one)
    tier.sweep()
    return gone, busy


def open_host(store_id: bytes, tenant: bytes, budget_bytes: int | None, disk: Disk) -> HostTier:
    """Return the host tier of a tenant; without a budget it is half of the memory file system."""
    directory = _host_directory(store_id, tenant)
    above = directory.parent.parent
    if not above.is_dir():
        raise BadInput(str(above), "is not there", hint="name a memory file system by ARSTORE_HOST_DIR")
    if budget_bytes is None:
        room = os.statvfs(above)
        budget_bytes = room.f_blocks * room.f_frsize // 2
    return HostTier(directory, budget_bytes, disk)


def forget_staged(store_id: bytes, tenant: bytes, keys: Collection[str] | None, disk: Disk) -> None:
    """Wipe staged copies of these artifacts (None: of all) before they are erased; raise Fenced if one is in use."""
    if not _host_directory(store_id, tenant).is_dir():
        return
    tier = open_host(store_id, tenant, None, disk)
    tier.sweep()
    for one in tier.residents():
        if (keys is None or one.key in keys) and not tier.remove(one.key):
            raise Fenced(one.name, "is staged, and a process uses it", hint="end that process, then run it again")


def _host_directory(store_id: bytes, tenant: bytes) -> Path:
    given = setting("host_dir")
    parent = Path(given) if given else Path(f"/dev/shm/arstore-{os.geteuid()}")
    return parent / f"{store_id.hex()}-{tenant.hex()}"


def run_staged(stage: Stage, command: Sequence[str], disk: Disk) -> int:
    """Run a command that finds what is staged by `arstore.attach()`; return its exit code.

    What the stage moved is held meanwhile and wiped after, by a process of its own that outlives this one: also when
    the command or this process is killed. Signals of the terminal reach the command itself.
    """
    session = stage.tier.directory / f"session-{secrets.token_hex(16)}.json"
    staged = stage.staging.staged
    names = [{"name": one.name, "version": one.version, "key": one.key} for one in staged]
    disk.replace_file(session, json.dumps({"format": SESSION_FORMAT, "artifacts": names}).encode())
    janitor = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.janitor", str(session), *(one.key for one in staged if one.fresh)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        return _run(command, {**os.environ, "ARSTORE_STAGED": str(session)})
    finally:
        stage.hand_over()
        assert janitor.stdin
        janitor.stdin.close()
        janitor.wait()


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end, whatever signals come; return its exit code as a shell does."""
    process: subprocess.Popen[bytes] | None = None
    pending: list[int] = []

    def passed_on(number: int, _: object) -> None:
        pending.append(number)
        if process is not None and number != signal.SIGINT:  # the terminal sends that to the command itself
            process.send_signal(number)

    before = {number: signal.signal(number, passed_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise NotFound(command[0], f"can't be run: {(error.strerror or str(error)).lower()}") from None
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
