"""`arstore prefetch` and `arstore unstage`: what a run reads, in place before it starts; and out again."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..store.command import run_staged
from ..store.disk import Disk
from ..store.errors import BadInput, NotFound, StoreError
from ..store.prefetch import Staging
from ..store.quantities import parse_duration, parse_size
from ..store.store import Store
from ..store.tiers.device import parse_device
from .render import rate, size
from .session import Session, session_of

PARTIAL = 4
_TTL = "1h"


def register(app: typer.Typer) -> None:
    app.command()(prefetch)
    app.command()(unstage)


def split_command(words: list[str]) -> list[str]:
    """Return the words of a prefetch with what follows `--` as one hidden option: typer would take it for names."""
    at = words.index("--") if "--" in words else 0
    if "prefetch" not in words[:at]:
        return words
    return [*words[:at], "--run", json.dumps(words[at + 1 :])]


def prefetch(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="What to stage: names, ids, or one JOB or PLAN file.")
    ],
    to: Annotated[
        str, typer.Option(metavar="TIER", help="The tier to stage to: host, shared, device, device:cuda:0.")
    ] = "host",
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Most that the tier may hold.")] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it stays [default: 1h; with CMD, no longer]")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIER", help="Take it from there: local or shared, not the nearest.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another process that stages the same.")] = False,
    run: Annotated[str | None, typer.Option("--run", hidden=True)] = None,
) -> None:
    """Stage artifacts up, verified. With `-- CMD …`, hold them while CMD runs and exit with its code.

    CMD finds them by `arstore.attach()`, uncopied. Exits 4 if some of several could not be staged.
    """
    session = session_of(context)
    command = _command(run) if run is not None else []
    ttl_s = parse_duration(ttl if ttl is not None else "0s" if command else _TTL)
    budget_bytes = parse_size(budget) if budget is not None else None
    stop = _own_part(to, command)
    with session.open() as store, session.progress("prefetch") as progress:
        if len(names) == 1 and _is_file(names[0], store):
            from ..store.planning import names_in  # see cli/plan.py

            names, said_bytes = names_in(Path(names[0]))
            budget_bytes = said_bytes if budget_bytes is None else budget_bytes
        stage = store.tiers.prefetch(names, stop, budget_bytes, ttl_s, from_=from_, wait=wait, progress=progress)
        directory = store.tiers.host().directory if command else Path()
        slowest = min((one.bytes_per_s for one in store.tiers.speeds().values()), default=None)
    with stage:
        _report(session, stage.staging, slowest, quiet=bool(command) and not stage.staging.failed)
        if stage.staging.failed:
            raise typer.Exit(PARTIAL)
        if command:
            raise SystemExit(
                run_staged(stage, directory, command, to, Disk())
            )  # a typer.Exit of 130 would be our own interruption


def unstage(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="What to release.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that is staged.")] = False,
) -> None:
    """Wipe staged copies and give their memory back. Exits 4 if one is in use and stays, or a tier is gone."""
    session = session_of(context)
    if bool(names) == all_:
        raise BadInput("unstage", "wanted names or --all")
    with session.open() as store:
        done = store.tiers.unstage(names or ())
    values: dict[str, object] = {
        "unstaged": [{"name": o.what.name, "tier": o.arena.tier, "bytes": o.what.length_bytes} for o in done.gone],
        "in_use": [one.what.name for one in done.in_use],
        "degraded": degraded_values(done.degraded),
        "bytes": sum(one.what.length_bytes for one in done.gone),
    }
    lines = [f"released {o.what.name} from {o.arena.tier}" for o in done.gone]
    lines += [f"in use: {o.what.name}" for o in done.in_use]
    warn_degraded(session, done.degraded)
    session.emit(values, lambda: "\n".join(lines))
    if done.in_use or done.degraded:
        raise typer.Exit(PARTIAL)


def _own_part(to: str, command: list[str]) -> str:
    """Return the tier that this process stages to: what a command wants on a device it brings up there itself."""
    if to == "shared" and command:
        raise BadInput("--to shared", "a command reads what is in the host tier", hint="leave out --to")
    if not to.startswith("device"):
        return to
    parse_device(to)
    if not command:
        hint = "add '-- CMD': its attach() brings everything up there"
        raise BadInput(f"--to {to}", "device memory is a process's own", hint=hint)
    return "host"


def _is_file(name: str, store: Store) -> bool:
    """Say whether a name is that of a JOB or PLAN file; an artifact of that name goes before."""
    if not Path(name).is_file():
        return False
    try:
        store.show(name)
    except (BadInput, NotFound):
        return True
    return False


def degraded_values(degraded: Mapping[str, StoreError]) -> list[dict[str, str]]:
    """Return the tiers that were not there, as JSON has them."""
    return [{"tier": tier, "why": str(error)} for tier, error in degraded.items()]


def warn_degraded(session: Session, degraded: Mapping[str, StoreError]) -> None:
    for tier, error in degraded.items():
        session.say(f"warning: without tier {tier}: {error}")


def _command(text: str) -> list[str]:
    command = json.loads(text)
    if not command:
        raise BadInput("--", "no command follows it")
    return [str(word) for word in command]


def _report(session: Session, staging: Staging, slowest: float | None, *, quiet: bool) -> None:
    """Print what is staged; where a command follows, stdout is its own and this goes to stderr.

    The prediction is of the slowest tier on the way, as it was measured.
    """
    total = sum(one.wanted.length_bytes for one in staging.staged)
    moved = sum(one.wanted.length_bytes for one in staging.staged if one.fresh)
    values: dict[str, object] = {
        "staged": [
            {
                "name": o.wanted.name,
                "version": o.wanted.version,
                "tier": o.tier,
                "from": o.source,
                "bytes": o.wanted.length_bytes,
                "seconds": round(o.seconds, 3),
            }
            for o in staging.staged
        ],
        "failed": [{"name": name, "why": str(error)} for name, error in staging.failed],
        "degraded": degraded_values(staging.degraded),
        "bytes": total,
        "moved_bytes": moved,
        "seconds": session.seconds,
        "predicted_seconds": round(moved / slowest, 3) if slowest else None,
    }
    lines = [
        f"staged {o.wanted.name}@{o.wanted.version} in {o.tier}, {size(o.wanted.length_bytes)}" for o in staging.staged
    ]
    warn_degraded(session, staging.degraded)
    lines += [f"not staged: {name}: {error}" for name, error in staging.failed]
    lines.append(f"{size(moved)} moved in {session.seconds:.2f} s{rate(moved, session.seconds)}")
    if quiet:
        print(json.dumps(values) if session.json else "\n".join(f"arstore: {line}" for line in lines), file=sys.stderr)
    else:
        session.emit(values, lambda: "\n".join(lines))
