"""Command: a program that runs while what it reads is held in place for it, wiped after, whatever is killed."""

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
from ..errors import NotFound, StorageFailed, fresh
from ..plan.model import BLOCK
from ..tiers.device import DeviceTier, parse_device
from ..tiers.filling import take_lock
from ..tiers.ipc import Handle, share
from ..tiers.tier import Held
from .attach import RunSession
from .prefetch import Stage, StagedOne, Staging, Wanted
from .requests import labels_of
from .run import Run
from .serve import serving


def run_staged(
    stage: Stage, directory: Path, command: Sequence[str], to: str, disk: Disk, *, budget_bytes: int | None = None
) -> int:  # fmt: skip
    """Run a command that finds what is staged in the host tier by `arstore.attach()`; return its exit code.

    What the stage moved is held meanwhile and wiped after. Signals of the terminal reach the command itself. What is
    to be on an accelerator is brought there once, for all processes of the command.
    """
    with Janitor(directory, disk) as janitor:
        janitor.will_stage(one.wanted.key for one in stage.staging.staged if one.fresh)
        try:
            handles, kept = _on_accelerator(stage, to, budget_bytes)
            artifacts = tuple(stage.key_of.items())
            code = _run(command, RunSession(janitor.path, to, artifacts, (), handles, budget_bytes), disk)
            kept.clear()
            return code
        finally:
            stage.hand_over()


def _on_accelerator(
    stage: Stage, to: str, budget_bytes: int | None
) -> tuple[dict[str, Handle], list[Held]]:  # fmt: skip
    """Bring what is staged to an accelerator, if that is what it is for and its memory can be shared between processes;
    return a handle for each object, and what is to be kept meanwhile.
    """
    if to == "host" or (device := parse_device(to)) == "cpu":
        return {}, []
    tier, handles, kept = DeviceTier(device, budget_bytes), dict[str, Handle](), list[Held]()
    for key, held in stage.held().items():
        on_device = tier.fill(key, held)
        if (handle := share(on_device)) is None:
            return {}, []
        handles[key] = handle
        kept.append(on_device)
    return handles, kept


def run_planned(
    run: Run, directory: Path, command: Sequence[str], to: str, disk: Disk, *, placed: Callable[[], object]
) -> int:  # fmt: skip
    """Run a command while a plan is carried out for it, down from the host tier; return its exit code.

    It starts when all is in place that fits at once, or else what the first request needs. It finds what stays for the
    whole run by `arstore.attach()`, and each request by `attach().requests()`. Raises NoRoom if the plan does not fit
    beside what is in use, and what kept an object away that is needed all the time, before it starts. Just before that
    `placed` is called.
    """
    plan, keys = run.plan, run.keys
    names = {number: name for number, name in labels_of(plan).items() if not name.startswith(BLOCK)}
    with Janitor(directory, disk) as janitor:
        janitor.will_stage(keys)
        with run:
            run.wait_until_placed()
            failed = run.lanes[0].failed
            for number in plan.job.held:
                if number in failed:
                    raise fresh(failed[number])
            kept = [number for number in (names if run.whole else plan.job.held) if number not in failed]
            session = RunSession(janitor.path, to, tuple((names[number], keys[number]) for number in kept), tuple(keys))
            placed()
            disk.replace_file(session.plan_path, json.dumps(plan.fields()).encode())
            with serving(run.lanes[0], keys, session.socket_path, disk):
                code = _run(command, session, disk)
            run.lanes[0].ready(0)  # or it broke, which CMD was told, but not why
            return code


def staging_of(run: Run) -> Staging:
    """Return what a run found in the tier that it serves, every move into that, and what went wrong."""
    plan, tier = run.plan, run.lanes[0].tier
    numbers = {one.id: number for number, one in enumerate(plan.job.objects)}

    def staged(number: int, source: str, start_s: float, end_s: float) -> StagedOne:
        one = plan.job.objects[number]
        wanted = Wanted(run.keys[number], one.id, one.length_bytes)
        return StagedOne(wanted, tier, source, start_s, end_s - start_s)

    found = plan.job.found(run.first)
    moves = [event for event in run.timeline().events if (event.kind, event.tier) == ("move", tier)]
    return Staging(
        (*(staged(number, tier, 0.0, 0.0) for number in found),
         *(staged(numbers[one.name], one.source, one.start_s, one.end_s) for one in moves)),
        tuple(run.failed.items()), run.degraded,
    )  # fmt: skip


class Janitor:
    """Who wipes what was staged for one run of a command, when the with block is left or whatever happens before that.

    A process of its own: it outlives this one and the command, also where they are killed.
    """

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Take the directory of the host tier's extents; raise StorageFailed if no process can be started."""
        self.path = directory / f"session-{secrets.token_hex(8)}.json"
        self._lock = take_lock(self.path.with_suffix(".lock"), disk)
        try:
            # -P: what lies in the working directory is no module of ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.janitor", str(self.path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise StorageFailed("janitor", f"can't be started: {(error.strerror or str(error)).lower()}") from None

    def will_stage(self, keys: Iterable[str]) -> None:
        """Say what is, or is going to be, staged for this run alone: before it is there, so that nothing stays."""
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
        with contextlib.suppress(OSError):  # it has died: whoever sweeps the tier next does its work
            self._process.stdin.close()
        self._process.stdout.read()  # to its end: what nobody else uses is wiped
        os.close(self._lock)


_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SENT_TO_ALL = (signal.SIGINT, signal.SIGQUIT)  # by the terminal: the command has it already


def _run(command: Sequence[str], session: RunSession, disk: Disk) -> int:
    """Run a command that finds this session to its end, whatever signals come; return its exit code as a shell does."""
    disk.replace_file(session.path, session.packed())
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
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, exit codes would not come back
    try:
        try:
            process = subprocess.Popen(command, env={**os.environ, "ARSTORE_STAGED": str(session.path)})
        except OSError as error:
            raise NotFound(command[0], f"can't be run: {(error.strerror or str(error)).lower()}") from None
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
