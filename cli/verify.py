"""`arstore verify`: read back and check."""

from typing import Annotated

import typer

from ..store.errors import BadInput, Corrupt
from ..store.maintenance.scrub import Scrubbed
from ..store.quantities import parse_duration, parse_size
from .render import rate, size
from .session import Reported, session_of


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names or ids to check. [default: everything]")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Check everything, which is also the default.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also hash the plaintext and compare its digest.")] = False,
    tier: Annotated[str | None, typer.Option(help="The tier to read: local.")] = None,
    max_duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop after this long. The next verify goes on with the rest.")
    ] = None,
    max_rate: Annotated[str | None, typer.Option(metavar="SIZE", help="Read at most this many bytes a second.")] = None,
) -> None:
    """Read back what is stored and check every byte.

    A bad blob is quarantined, so that no read returns it. A staged copy heals it where there is one. If a bad one is
    left, the exit code is 13. Blobs that were checked longest ago come first. Other tenants are not checked.
    """
    session = session_of(context)
    if tier not in (None, "local"):
        raise BadInput(f"--tier {tier}", "this store has the tier local")
    rate_bytes = parse_size(max_rate) if max_rate is not None else None
    if rate_bytes == 0:
        raise BadInput(f"--max-rate {max_rate}", "would never end; leave it out for no limit")
    duration_s = parse_duration(max_duration) if max_duration is not None else None
    with session.open() as store, session.progress("verify") as progress:
        result = store.verify(
            () if all_ else names or (),
            deep=deep,
            bytes_per_second=rate_bytes,
            duration_s=duration_s,
            progress=progress,
        )
    seconds = session.seconds
    values: dict[str, object] = {
        "checked": result.checked,
        "left": result.left,
        "checked_bytes": result.checked_bytes,
        "corrupt": [{"what": bad.what, "why": bad.why, "artifacts": list(bad.artifacts)} for bad in result.corrupt],
        "healed": list(result.healed),
        "seconds": seconds,
    }
    if not (result.corrupt and session.json):
        session.emit(values, lambda: _text(result, seconds))
    if result.corrupt:
        where = f"{len(result.corrupt)} of {result.checked} records"
        raise Reported(Corrupt(where, "found bad, and quarantined", hint=_hint(result)), values)


def _text(result: Scrubbed, seconds: float) -> str:
    lines = [f"bad: {bad.what}: {bad.why}; needed by {', '.join(bad.artifacts)}" for bad in result.corrupt]
    lines += [f"healed from what is staged: {what}" for what in result.healed]
    speed = rate(result.checked_bytes, seconds)
    lines.append(f"checked {result.checked} records, {size(result.checked_bytes)} in {seconds:.2f} s{speed}")
    if result.left:
        lines.append(f"{result.left} blobs are left for the next time")
    return "\n".join(lines)


def _hint(result: Scrubbed) -> str:
    names = sorted({name for bad in result.corrupt for name in bad.artifacts})
    return f"put {', '.join(names[:8])} again from the source: that heals it"
