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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.tensor import TensorSpan, data_bytes
from .artifact import Artifact
from .attach import StagedTensors
from .config import setting
from .disk import Disk, FileSpan
from .errors import BadInput, Fenced, NotFound, StorageFailed, StoreError
from .kv import Kv
from .names import Names
from .prefix import Run
from .progress import Progress
from .refs import label_artifacts
from .tiers.extent import Extent
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
    # Puts bytes of what the spans lie in, from a position on, into a buffer or a file.
    fill: Callable[[int, memoryview | FileSpan], None]

    @property
    def key(self) -> str:
        return self.artifact.summary.id

    @property
    def length_bytes(self) -> int:
        return data_bytes(self.spans)


def wanted_of(artifact: Artifact, kv: Kv) -> Wanted:
    """Return what staging an artifact means: its tensors, and files that hold none, side by side; KV in its layout."""
    if artifact.manifest.shape:
        prefix = kv.open(f"{artifact.summary.name}@{artifact.summary.version}")
        assert prefix.shape
        count = prefix.tokens_count
        spans = prefix.spans(prefix.shape, count, prefix.layout, prefix.page_tokens)

        def load(at: int, out: memoryview | FileSpan) -> None:
            if isinstance(out, FileSpan):  # KV is turned into its layout there
                out = out.mapped()
            if at == 0 and len(out) >= data_bytes(spans):
                prefix.load([Run(0, count, 0)], None, range, None, None, into=out)
                return
            if not whole:  # of KV in other layouts no part can be had by itself
                whole.append(prefix.load([Run(0, count, 0)], None, range, None, None).buffer)
            out[:] = whole[0][at : at + len(out)]

        whole: list[memoryview] = []
        return Wanted(artifact, spans, load)
    ranges, spans = artifact.side_by_side()

    def fill(at: int, out: memoryview | FileSpan) -> None:
        pieces = []
        for (file, start, stop), to in ranges.items():
            first, last = max(to, at), min(to + stop - start, at + len(out))
            if first < last:
                pieces.append(((file, start + first - to, start + last - to), out[first - at : last - at]))
        artifact.fill(pieces)

    return Wanted(artifact, spans, fill)


def stage(tier: HostTier, wanted: Sequence[Wanted], until_s: float, *, wait: bool, progress: Progress) -> "Stage":
    """Stage artifacts in the host tier and hold them.

    Raises NoRoom, before anything moves, if they can't all be there at once; and of one artifact alone what kept it.
    """
    tier.sweep()
    held = {one.key: extent for one in wanted if (extent := tier.hold(one.key, until_s))}
    missing = {one.key: one.length_bytes for one in wanted if one.key not in held}
    tier.make_room(sum(missing.values()), frozenset(one.key for one in wanted))
    staged: list[StagedOne] = []
    failed: list[tuple[str, StoreError]] = []
    try:
        for one in wanted:
            began = time.monotonic()
            summary = one.artifact.summary
            try:
                fresh = one.key not in held and _bring(tier, one, held, until_s, wait=wait)
            except StoreError as error:
                failed.append((f"{summary.name}@{summary.version}", error))
                continue
            if one.key in missing:
                progress(one.length_bytes, sum(missing.values()))
            seconds = time.monotonic() - began
            staged.append(StagedOne(summary.name, summary.version, one.key, "host", one.length_bytes, seconds, fresh))
    except BaseException:  # interrupted: nobody will release it
        _release(tier, held, missing)
        raise
    if len(wanted) == 1 and failed:
        raise failed[0][1]
    return Stage(tier, Staging(tuple(staged), tuple(failed)), held)


def _bring(tier: HostTier, one: Wanted, held: dict[str, Extent], until_s: float, *, wait: bool) -> bool:
    """See that an artifact is staged and held; return whether this very call moved it."""
    with tier.filling(one.key, wait=wait):
        if there := tier.hold(one.key, until_s):
            held[one.key] = there
            return False
        summary = one.artifact.summary
        held[one.key] = tier.fill(
            one.key, f"{summary.name}@{summary.version}", one.spans, until_s, lambda out: one.fill(0, out)
        )
        return True


def _release(tier: HostTier, held: dict[str, Extent], keys: Iterable[str]) -> None:
    held.clear()
    for key in keys:
        tier.remove(key, over=True)


class Stage(Mapping[str, StagedTensors]):
    """What a prefetch staged, by name, held until `release` or the end of a with block.

    What this call moved is wiped then, unless it was to stay for a time. Of two versions of a name each is `NAME@N`.
    """

    def __init__(self, tier: HostTier, staging: Staging, held: dict[str, Extent]) -> None:
        self.staging, self.tier, self._held = staging, tier, held
        labels = label_artifacts((one.name, one.version, one.key) for one in staging.staged)
        self.key_of = {label: key for key, label in labels.items()}

    def __getitem__(self, name: str) -> StagedTensors:
        return StagedTensors(self._held[self.key_of[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.key_of)

    def __len__(self) -> int:
        return len(self.key_of)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def hand_over(self) -> None:
        """Let go without wiping: somebody else does that."""
        self.key_of = {}
        self._held.clear()

    def release(self) -> None:
        """Let go of it; what others or tensors of it still use stays until they are gone and somebody makes room."""
        self.key_of = {}
        _release(self.tier, self._held, [one.key for one in self.staging.staged if one.fresh])


def unstage(tier: HostTier, names: Names, wanted: Sequence[str]) -> tuple[list[Resident], list[Resident]]:
    """Wipe what is staged of these names, or all; return what was wiped, and what is in use and stays."""
    there = tier.residents()
    keys = set[str]() if wanted else {one.key for one in there}
    for name in wanted:
        named = {one.key for one in there if name in (one.name, one.name.partition("@")[0])}
        keys |= named or {names.resolve(name).summary.id}  # by a label or an id; NotFound for what is nowhere
    gone, busy = list[Resident](), list[Resident]()
    for one in there:
        if one.key in keys:
            (gone if tier.remove(one.key) else busy).append(one)
    tier.sweep()
    return gone, busy


def open_host(store_id: bytes, tenant: bytes, budget_bytes: int | None, disk: Disk) -> HostTier:
    """Return the host tier of a tenant; without a budget it is half of the memory file system."""
    directory = host_directory(store_id, tenant)
    above = directory.parent.parent
    if not above.is_dir():
        raise BadInput(str(above), "is not there", hint="name a memory file system by ARSTORE_HOST_DIR")
    if budget_bytes is None:
        room = os.statvfs(directory.parent if directory.parent.is_dir() else above)
        budget_bytes = room.f_blocks * room.f_frsize // 2
    return HostTier(directory, budget_bytes, disk)


def forget_staged(store_id: bytes, tenant: bytes, keys: Collection[str] | None, disk: Disk) -> None:
    """Wipe staged copies of these artifacts (None: of all) before they are erased; raise Fenced if one is in use."""
    if not host_directory(store_id, tenant).is_dir():
        return
    tier = open_host(store_id, tenant, None, disk)
    tier.sweep()
    names = {key: key[:16] for key in tier.partials()} | {one.key: one.name for one in tier.residents()}
    for key, name in names.items():
        if keys is None or key in keys:
            with tier.filling(key, wait=False):
                if not tier.remove(key):
                    raise Fenced(name, "is staged, and a process uses it", hint="end that process, then run it again")


def host_directory(store_id: bytes, tenant: bytes) -> Path:
    """Return where a tenant's extents are, which is there if anything of it was ever staged."""
    given = setting("host_dir")
    parent = Path(given) if given else Path(f"/dev/shm/arstore-{os.geteuid()}")
    return parent / f"{store_id.hex()}-{tenant.hex()}"


def run_staged(stage: Stage, command: Sequence[str], to: str, disk: Disk) -> int:
    """Run a command that finds what is staged by `arstore.attach()`; return its exit code.

    What the stage moved is held meanwhile and wiped after, by a process of its own that outlives this one: also when
    the command or this process is killed. Signals of the terminal reach the command itself.
    """
    session = stage.tier.directory / f"session-{secrets.token_hex(16)}.json"
    fresh = [one.key for one in stage.staging.staged if one.fresh]
    try:
        # -P: what lies in the working directory is no module of ours.
        janitor = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.janitor", str(session), *fresh],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise StorageFailed("janitor", f"can't be started: {(error.strerror or str(error)).lower()}") from None
    try:
        artifacts = [{"name": name, "key": key} for name, key in stage.key_of.items()]
        disk.replace_file(session, json.dumps({"format": SESSION_FORMAT, "to": to, "artifacts": artifacts}).encode())
        return _run(command, {**os.environ, "ARSTORE_STAGED": str(session)})
    finally:
        stage.hand_over()
        assert janitor.stdin
        assert janitor.stdout
        janitor.stdin.close()
        janitor.stdout.read()  # to its end: what nobody else uses is wiped


_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SENT_TO_ALL = (signal.SIGINT, signal.SIGQUIT)  # by the terminal: the command has it already


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end, whatever signals come; return its exit code as a shell does."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def passed_on(number: int, _: object) -> None:
        if process is None:
            early.append(number)
        elif number in _PASSED_ON:
            process.send_signal(number)

    # What is ignored, as nohup has it, the command is to ignore as well.
    caught = [number for number in _PASSED_ON + _SENT_TO_ALL if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, passed_on) for number in caught}
    try:
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise NotFound(command[0], f"can't be run: {(error.strerror or str(error)).lower()}") from None
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
