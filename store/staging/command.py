"""Command: runs a program while the objects that it reads are held in place. They are wiped after, even on a kill."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..disk import Disk
from ..errors import NotFound, StorageFailed, fresh, reason
from ..plan.model import BLOCK, RequestId
from ..tiers.device import DeviceTier, parse_device
from ..tiers.filling import take_lock
from ..tiers.ipc import Handle, share
from ..tiers.tier import Held
from .prefetch import Prefetched, StagedObject, StagingReport, WantedObject
from .requests import labels_of
from .run import Run
from .serve import serving
from .session import RunSession


def run_prefetched(
    prefetched: Prefetched,
    directory: Path,
    command: Sequence[str],
    to: str,
    disk: Disk,
    *,
    budget_bytes: int | None = None,
) -> int:
    """Run a command that finds prefetched objects in the host tier by `arstore.attach()`; return its exit code.

    Objects that the prefetch moved are held meanwhile and wiped after. Objects for an accelerator are brought there
    once, for all processes of the command. The terminal's signals reach the command itself.
    """
    with Janitor(directory, disk) as janitor:
        janitor.wipe_after_run(staged.wanted.key for staged in prefetched.staging.staged if staged.fresh)
        try:
            handles, kept = _on_accelerator(prefetched, to, budget_bytes)
            artifacts = tuple(prefetched.key_of.items())
            code = _run(command, RunSession(janitor.path, to, artifacts, (), handles, budget_bytes), disk)
            kept.clear()
            return code
        finally:
            prefetched.hand_over()


def _on_accelerator(prefetched: Prefetched, to: str, budget_bytes: int | None) -> tuple[dict[str, Handle], list[Held]]:
    """Bring objects to an accelerator, if `to` is one whose memory processes can share.

    Return a handle for each object, and the objects themselves, which must be kept while a handle is used.
    """
    if to == "host" or (device := parse_device(to)) == "cpu":
        return {}, []
    tier, handles, kept = DeviceTier(device, budget_bytes), dict[str, Handle](), list[Held]()
    for key, held in prefetched.held().items():
        on_device = tier.fill(key, held)
        if (handle := share(on_device)) is None:
            return {}, []
        handles[key] = handle
        kept.append(on_device)
    return handles, kept


def run_planned(
    run: Run,
    directory: Path,
    command: Sequence[str],
    to: str,
    disk: Disk,
    *,
    on_start: Callable[[], object],
    on_done: Callable[[RequestId], object] = lambda _: None,
) -> int:
    """Run a command while a plan is carried out for it in the tiers up to host; return the command's exit code.

    The command starts when all objects are in place or, if they don't fit at once, those of the first request. It finds
    the objects that stay for the whole run by `arstore.attach()`, and each request by `attach().requests()`. `on_start`
    is called just before it starts, `on_done` with each request that is done. `run.unfinished` has the other ones,
    unless the command never asked for a request. What a device's process has done is not known here.

    Raises, before it starts, NoRoom if the plan does not fit beside objects in use, and the error that kept away an
    object that every request needs.
    """
    plan, keys = run.plan, run.keys
    names = {number: name for number, name in labels_of(plan).items() if not name.startswith(BLOCK)}
    with Janitor(directory, disk) as janitor:
        janitor.wipe_after_run(keys)
        with run:
            run.wait_until_placed()
            failed = run.lanes[0].failed
            for number in plan.job.held:
                if number in failed:
                    raise fresh(failed[number])
            kept = [number for number in (names if run.whole else plan.job.held) if number not in failed]
            session = RunSession(janitor.path, to, tuple((names[number], keys[number]) for number in kept), tuple(keys))
            on_start()
            disk.replace_file(session.plan_path, json.dumps(plan.fields()).encode())
            ids = [plan.job.requests[number].id for number in plan.order] if not run.first else []

            def told(step: int) -> None:
                if step < len(ids):
                    on_done(ids[step])

            with serving(run.lanes[0], keys, session.socket_path, disk, told) as server:
                code = _run(command, session, disk)
            if server.given:
                run.unfinished = tuple(id_ for step, id_ in enumerate(ids) if step not in server.done)
            run.lanes[0].wait_for_moves(0)  # raises the error that broke the lane: CMD saw only that it ended
            return code


def report_run(run: Run) -> StagingReport:
    """Return what a run did in the tier that it serves: objects that were there, every move into it, and errors."""
    plan, tier = run.plan, run.lanes[0].tier
    numbers = {object_.id: number for number, object_ in enumerate(plan.job.objects)}

    def staged(number: int, source: str, start_s: float, end_s: float) -> StagedObject:
        object_ = plan.job.objects[number]
        wanted = WantedObject(run.keys[number], object_.id, object_.length_bytes)
        return StagedObject(wanted, tier, source, start_s, end_s - start_s)

    resident = [staged(number, tier, 0.0, 0.0) for number in plan.job.found(run.first)]
    moved = [
        staged(numbers[event.name], event.source, event.start_s, event.end_s)
        for event in run.timeline().events
        if (event.kind, event.tier) == ("move", tier)
    ]
    return StagingReport((*resident, *moved), tuple(run.failed.items()), run.degraded)


class Janitor:
    """Starts the process that wipes what was staged for one command, and ends the run as the with block is left.

    The process outlives this one and the command. So it wipes also if they are killed.
    """

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Take the directory of the host tier's extents; raise StorageFailed if no process can be started."""
        self.path = directory / f"session-{secrets.token_hex(8)}.json"
        self._lock = take_lock(self.path.with_suffix(".lock"), disk)
        try:
            # -P keeps modules that lie in the working directory from being imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.janitor", str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise StorageFailed("janitor", f"can't be started: {reason(error)}") from None

    def wipe_after_run(self, keys: Iterable[str]) -> None:
        """Have these objects wiped after the run. Call it before they are staged, so that a kill leaves nothing."""
        assert self._process.stdin
        try:
            self._process.stdin.writelines(f"{key}\n".encode() for key in keys)
            self._process.stdin.flush()
        except OSError:
            raise StorageFailed("janitor", "has died: nobody would wipe what is staged") from None

    def __enter__(self) -> "Janitor":
        return self

    def __exit__(self, *failure: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):  # the janitor has died; the next sweep of the tier does its work
            self._process.stdin.close()
        self._process.stdout.read()  # ends when all objects that nobody else uses are wiped
        os.close(self._lock)


_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# A terminal sends these to the command as well. Without one they are passed on.
_SENT_TO_ALL = (signal.SIGINT, signal.SIGQUIT)


def _run(command: Sequence[str], session: RunSession, disk: Disk) -> int:
    """Run a command that finds this session, to its end, whatever signals come; return its exit code as shells do."""
    disk.replace_file(session.path, session.packed())
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []
    passed: list[int] = []

    def passed_on(number: int, _: object) -> None:
        if process is None:
            early.append(number)
        elif number in _PASSED_ON or not _terminal_sends_all():
            passed.append(number)
            process.send_signal(number)

    # A signal that is ignored, as under nohup, stays ignored, so that the command ignores it as well.
    caught = [number for number in _PASSED_ON + _SENT_TO_ALL if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, passed_on) for number in caught}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, no exit code comes back
    try:
        try:
            process = subprocess.Popen(command, env={**os.environ, "ARSTORE_STAGED": str(session.path)})
        except OSError as error:
            raise NotFound(command[0], f"can't be run: {reason(error)}") from None
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in early + passed:  # the user ended the run, whatever the command made of it
        return 128 + signal.SIGINT
    return 128 - code if code < 0 else code


def _terminal_sends_all() -> bool:
    """Say whether a terminal is there whose Ctrl-C reaches this process and its command alike."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)
