"""`arstore prefetch` and `arstore unstage`: what a run reads, in place before it starts; and out again."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..store.disk import Disk
from ..store.errors import BadInput, NotFound
from ..store.prefetch import Staging, run_staged
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
        str, typer.Option(metavar="TIER", help="The tier to stage to: host, device, device:cuda:0.")
    ] = "host",
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Most that the tier may hold.")] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it stays [default: 1h; with CMD, no longer]")
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
    if to != "host":
        parse_device(to)
    if to != "host" and not command:
        hint = "add '-- CMD': its attach() brings everything up there"
        raise BadInput(f"--to {to}", "device memory is a process's own", hint=hint)
    with session.open() as store, session.progress("prefetch") as progress:
        if len(names) == 1 and _is_file(names[0], store):
            from ..store.planning import names_in  # see cli/plan.py

            names, said_bytes = names_in(Path(names[0]))
            budget_bytes = said_bytes if budget_bytes is None else budget_bytes
        stage = store.tiers.prefetch_host(names, budget_bytes, ttl_s, wait=wait, progress=progress)
        slowest = min((one.bytes_per_s for one in store.tiers.speeds().values()), default=None)
    with stage:
        _report(session, stage.staging, slowest, quiet=bool(command) and not stage.staging.failed)
        if stage.staging.failed:
            raise typer.Exit(PARTIAL)
        if command:
            raise SystemExit(
                run_staged(stage, command, to, Disk())
            )  # a typer.Exit of 130 would be our own interruption


def unstage(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME…", help="What to release.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that is staged.")] = False,
) -> None:
    """Wipe staged copies and give their memory back. Exits 4 if one of them is in use and stays."""
    session = session_of(context)
    if bool(names) == all_:
        raise BadInput("unstage", "wanted names or --all")
    with session.open() as store:
        gone, busy = store.tiers.unstage(names or ())
    values: dict[str, object] = {
        "unstaged": [{"name": one.name, "tier": "host", "bytes": one.length_bytes} for one in gone],
        "in_use": [one.name for one in busy],
        "bytes": sum(one.length_bytes for one in gone),
    }
    session.emit(
        values, lambda: "\n".join([*(f"released {o.name}" for o in gone), *(f"in use: {o.name}" for o in busy)])
    )
    if busy:
        raise typer.Exit(PARTIAL)


def _is_file(name: str, store: Store) -> bool:
    """Say whether a name is that of a JOB or PLAN file; an artifact of that name goes before."""
    if not Path(name).is_file():
        return False
    try:
        store.show(name)
    except (BadInput, NotFound):
        return True
    return False


def _command(text: str) -> list[str]:
    command = json.loads(text)
    if not command:
        raise BadInput("--", "no command follows it")
    return [str(word) for word in command]


def _report(session: Session, staging: Staging, slowest: float | None, *, quiet: bool) -> None:
    """Print what is staged; where a command follows, stdout is its own and this goes to stderr.

    The prediction is of the slowest tier on the way, as it was measured.
    """
    total = sum(one.length_bytes for one in staging.staged)
    moved = sum(one.length_bytes for one in staging.staged if one.fresh)
    values: dict[str, object] = {
        "staged": [
            {
                "name": o.name,
                "version": o.version,
                "tier": o.tier,
                "bytes": o.length_bytes,
                "seconds": round(o.seconds, 3),
            }
            for o in staging.staged
        ],
        "failed": [{"name": name, "why": str(error)} for name, error in staging.failed],
        "bytes": total,
        "moved_bytes": moved,
        "seconds": session.seconds,
        "predicted_seconds": round(moved / slowest, 3) if slowest else None,
    }
    lines = [f"staged {o.name}@{o.version} in {o.tier}, {size(o.length_bytes)}" for o in staging.staged]
    lines += [f"not staged: {name}: {error}" for name, error in staging.failed]
    lines.append(f"{size(moved)} moved in {session.seconds:.2f} s{rate(moved, session.seconds)}")
    if quiet:
        print(json.dumps(values) if session.json else "\n".join(f"arstore: {line}" for line in lines), file=sys.stderr)
    else:
        session.emit(values, lambda: "\n".join(lines))
