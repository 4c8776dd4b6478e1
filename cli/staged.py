"""What a prefetch says when it is done: objects, tiers, bytes, and a timeline of the moves."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.disk import Disk
from ..store.prefetch import Staging
from .render import rate, size
from .session import Session, degraded_values

if TYPE_CHECKING:
    from ..store.timeline import Timed

_LINES_MAX = 20


def report(session: Session, staging: Staging, predicted_s: float | None, *, to_stderr: bool) -> None:
    """Print what is staged; where a command has stdout, this goes to stderr."""
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
        "bytes": staging.bytes,
        "moved_bytes": staging.moved_bytes,
        "seconds": session.seconds,
        "predicted_seconds": None if predicted_s is None else round(predicted_s, 3),
    }
    session.warn_degraded(staging.degraded)
    lines = [*_lines(staging)]
    lines += [f"not staged: {name}: {error}" for name, error in staging.failed]
    moved, seconds = staging.moved_bytes, session.seconds
    lines.append(f"{size(moved)} moved in {seconds:.2f} s{rate(moved, seconds)}")
    if to_stderr and not session.quiet:
        print(json.dumps(values) if session.json else "\n".join(f"arstore: {line}" for line in lines), file=sys.stderr)
    elif not to_stderr:
        session.emit(values, lambda: "\n".join(lines))


def _lines(staging: Staging) -> Iterator[str]:
    """Yield a line for each object or, where they are many, for each tier that they came from."""
    if len(staging.staged) <= _LINES_MAX:
        for one in staging.staged:
            yield f"staged {one.wanted.text} in {one.tier}, {size(one.wanted.length_bytes)}"
        return
    lengths: dict[str, list[int]] = {}
    for one in staging.staged:
        lengths.setdefault(one.source, []).append(one.wanted.length_bytes)
    for source, each in lengths.items():
        yield f"staged {len(each)} objects from {source} in {staging.staged[0].tier}, {size(sum(each))}"


def write_timeline(path: Path | None, timed: Callable[[], "Timed"] | None = None) -> None:
    """Write what happened to a file, if one is asked for; before it has, nothing, to see that it can be written."""
    if path is not None and timed is None:
        Disk().replace_file(path.absolute(), b"", 0o644)
    elif path is not None and timed is not None:
        from ..store.timeline import trace

        Disk().replace_file(path.absolute(), json.dumps(trace(timed())).encode(), 0o644)
