"""`arstore prefetch`: stage artifacts before a run starts."""

import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..store.errors import BadInput, NotFound, StoreError
from ..store.quantities import parse_duration, parse_size
from ..store.staging.prefetch import StagingOptions
from ..store.store import Store
from ..store.tiers.device import kind_of, parse_device
from ..store.tiers.speeds import predict_s
from .commands import RunsAnother, foreign_words
from .report import report, write_timeline
from .session import PARTIAL, Session, session_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..store.plan.model import RequestId
    from ..store.plan.planfile import Plan
    from ..store.staging.done_list import DoneList

_TTL = "1h"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be staged, and how; `to` is None where a JOB or PLAN says it."""

    session: Session
    names: list[str]
    to: str | None
    budget_bytes: int | None
    ttl_s: float
    from_: str | None
    wait: bool
    command: list[str]
    timeline: Path | None
    redo: bool = False
    from_start: bool = False


_Names = Annotated[
    list[str], typer.Argument(metavar="NAME…", help="Names or ids of artifacts, or one JOB or PLAN file.")
]
_To = Annotated[
    str | None,
    typer.Option(metavar="TIER", help="host, shared, device or device:cuda:0. [default: host, or as JOB says]"),
]
_Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that stages the same object.")]
_Timeline = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write what moved when, in Chrome's trace format.")
]
_Redo = Annotated[bool, typer.Option("--redo", help="Run CMD again for the requests of a JOB that it did not finish.")]
_FromStart = Annotated[
    bool, typer.Option("--from-start", help="Do all requests of a JOB, also those that an earlier run did.")
]


def register(app: typer.Typer) -> None:
    app.command(cls=RunsAnother)(prefetch)


def prefetch(
    context: typer.Context,
    names: _Names,
    to: _To = None,
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="The most bytes the tier may hold.")] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long copies stay. [default: 1h; with CMD: until it ends]")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIER", help="Read from this tier first: local or shared.")
    ] = None,
    wait: _Wait = False,
    timeline: _Timeline = None,
    redo: _Redo = False,
    from_start: _FromStart = False,
) -> None:
    """Stage artifacts in host or device memory. Every byte is verified on the way.

    With `-- CMD …`, the copies are held while CMD runs and wiped after it. CMD opens them by `arstore.attach()`. The
    exit code is CMD's, and the report goes to stderr. Only CMD can use a device.

    All objects must fit into the budget together, which is half of the memory file system unless set. If they don't,
    nothing is staged and the exit code is 14. Of a JOB or PLAN with CMD, what does not fit is staged while CMD works.
    If some of several objects can't be staged, the exit code is 4.

    If CMD ends before all requests of a JOB are done, the exit code is 4 (or CMD's), and the report names them. The
    file JOB.done lists those that are done, and the next run of the same JOB goes on with the others.
    """
    command = foreign_words(context)
    if command == []:
        raise BadInput("--", "no command follows it")
    command = command or []
    asked = Asked(
        session_of(context),
        names,
        to,
        parse_size(budget) if budget is not None else None,
        parse_duration(ttl if ttl is not None else "0s" if command else _TTL),
        from_,
        wait,
        command,
        timeline,
        redo,
        from_start,
    )
    code = _carry_out(asked)
    if command:
        raise SystemExit(code)  # typer would take an Exit of 130 for an interruption of arstore itself
    if code:
        raise typer.Exit(code)


def _carry_out(asked: Asked) -> int:
    """Stage what is asked for, with the command if there is one; return the exit code."""
    if asked.command:  # if a process of the command dies, the next write to it must not end this one
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if asked.timeline is not None:
        asked.session.check_report(asked.timeline)
    with asked.session.open() as store:
        done = _done_list(asked, store)
        plan = _plan_in(asked, store, done)
        _check_target(asked.to or (plan.job.tiers[0].name if plan else "host"), asked.command)
        if plan is None or not asked.command:
            return _stage(asked, store, plan)
        while True:
            before = len(done.ids) if done else 0
            code, unfinished = _run_planned(asked, store, plan, done)
            if done is None or not (unfinished or code):
                break
            if not (asked.redo and unfinished and len(done.ids) > before):
                return code
            asked.session.say(f"runs the command again for {len(unfinished)} requests")
            plan = store.tiers.plan(asked.names[0], to=asked.to, budget_bytes=asked.budget_bytes, done=done.ids)
        if done:
            done.clear()
        return code


def _done_list(asked: Asked, store: Store) -> "DoneList | None":
    """Return the list of the requests that are done; None if no command works through those of a JOB."""
    from ..store.plan.job import holds_plan, read_bounded

    is_job = bool(asked.command) and len(asked.names) == 1 and _is_file(asked.names[0], store)
    if not is_job or holds_plan(read_bounded(Path(asked.names[0]))):
        if asked.redo or asked.from_start:
            raise BadInput("--redo, --from-start", "are for a JOB and a command that works through its requests")
        return None
    say = asked.session.say
    done = store.tiers.done_list(asked.names[0], lambda error: say(f"warning: no list of what is done: {error}"))
    if asked.from_start:
        done.clear()
    if done.ids:
        say(f"{len(done.ids)} requests are done already, see {done.path}; --from-start does all")
    return done


def _stage(asked: Asked, store: Store, plan: "Plan | None") -> int:
    """Stage all that is asked for, then run the command if there is one; return the exit code."""
    command, tiers = asked.command, store.tiers
    to = asked.to or (plan.job.tiers[0].name if plan else "host")
    with asked.session.progress_of_tiers() as progress:
        options = StagingOptions(asked.ttl_s, asked.from_, asked.wait, progress)
        if plan is not None:
            prefetched = tiers.prefetch_plan(plan, options)
        else:
            prefetched = tiers.prefetch(asked.names, to, asked.budget_bytes, options, host_only=bool(command))
    with prefetched:
        staging = prefetched.staging
        predicted_s = predict_s(tiers.arenas.speeds(), to, staging.moved_bytes)
        report(asked.session, staging, predicted_s, to_stderr=bool(command) and not staging.failed)
        write_timeline(asked.timeline, staging.timeline)
        if staging.failed:
            return PARTIAL
        if not command:
            return 0
        from ..store.staging.command import run_prefetched

        directory = tiers.arenas.host().directory
        store.close()  # the plan is not needed while the command runs
        return run_prefetched(prefetched, directory, command, to, tiers.arenas.disk, budget_bytes=asked.budget_bytes)


def _run_planned(
    asked: Asked, store: Store, plan: "Plan", done: "DoneList | None"
) -> "tuple[int, Sequence[RequestId]]":
    """Run the command while the plan is carried out; return the exit code, and the requests that are not finished."""
    from ..store.staging.command import report_run, run_planned

    tiers = store.tiers
    to = asked.to or plan.job.tiers[0].name
    directory = tiers.arenas.host().directory
    with ExitStack() as shown:
        progress = shown.enter_context(asked.session.progress_of_tiers())
        run = tiers.run(plan, from_=asked.from_, host_only=True, progress=progress)
        on_done = done.add if done else lambda _: None
        disk = tiers.arenas.disk
        code = run_planned(run, directory, asked.command, to, disk, on_start=shown.close, on_done=on_done)
    staging = report_run(run)
    report(asked.session, staging, plan.predicted_s, to_stderr=True, unfinished=run.unfinished)
    try:
        write_timeline(asked.timeline, run.timeline)
    except StoreError as error:
        if not code:
            raise
        asked.session.say(f"error: {error}")
    return code or (PARTIAL if staging.failed or run.unfinished else 0), run.unfinished


def _plan_in(asked: Asked, store: Store, done: "DoneList | None") -> "Plan | None":
    """Return the plan of the one JOB or PLAN file that is asked for; None where artifacts are."""
    if len(asked.names) > 1 or not _is_file(asked.names[0], store):
        return None
    from ..store.plan.job import holds_plan, read_bounded
    from ..store.plan.planfile import unpack_plan

    path = Path(asked.names[0])
    if asked.command and asked.ttl_s:
        raise BadInput("--ttl", "what is staged for the requests of a command does not stay")
    text = read_bounded(path)
    if not holds_plan(text):
        ids = done.ids if done else frozenset()
        return store.tiers.plan(path, to=asked.to, budget_bytes=asked.budget_bytes, done=ids)
    plan = unpack_plan(text, str(path))
    if asked.to is not None and kind_of(asked.to) != plan.job.tiers[0].name:
        raise BadInput(f"--to {asked.to}", f"the plan is to {plan.job.tiers[0].name}", hint="plan again")
    return plan if asked.budget_bytes is None else plan.within(asked.budget_bytes)


def _check_target(to: str, command: list[str]) -> None:
    """Raise BadInput for a tier that can't be staged to. Only the processes of a command can use a device's memory."""
    if to == "shared" and command:
        raise BadInput("--to shared", "a command reads what is in the host tier", hint="leave out --to")
    if to not in ("host", "shared"):
        parse_device(to)
        if not command:
            hint = "add '-- CMD': its attach() has everything there"
            raise BadInput(f"--to {to}", "device memory is a process's own", hint=hint)


def _is_file(name: str, store: Store) -> bool:
    """Say whether a name is that of a JOB or PLAN file; an artifact of that name goes before."""
    if not Path(name).is_file():
        return False
    try:
        store.show(name)
    except (BadInput, NotFound):
        return True
    return False
