"""Report: what a prefetch prints when it is done, and the timeline that it writes."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.artifacts.refs import split_object
from ..store.disk import Disk
from ..store.plan.model import BLOCK, RequestId
from ..store.staging.prefetch import StagedObject, StagingReport
from .render import rate, size
from .session import Session, degraded_values, tell

if TYPE_CHECKING:
    from ..store.plan.timeline import Timed

_LINES_MAX = 20
_DIGITS = 12


def report(
    session: Session,
    staging: StagingReport,
    predicted_s: float | None,
    *,
    to_stderr: bool,
    unfinished: Sequence[RequestId] = (),
) -> None:
    """Print what is staged, and the requests that a command did not finish.

    If a command runs, stdout is the command's, so this goes to stderr.
    """
    values: dict[str, object] = {
        "staged": [_values(one) for one in staging.staged],
        "failed": [{"name": name, "why": str(error)} for name, error in staging.failed],
        "unfinished": list(unfinished),
        "degraded": degraded_values(staging.degraded),
        "bytes": staging.bytes,
        "moved_bytes": staging.moved_bytes,
        "seconds": session.seconds,
        "predicted_seconds": None if predicted_s is None else round(predicted_s, 3),
    }
    session.warn_degraded(staging.degraded)
    lines = [*_lines(staging)]
    lines += [f"not staged: {_short(name)}: {error}" for name, error in staging.failed]
    if unfinished:
        shown = ", ".join(map(str, unfinished[:_LINES_MAX])) + (", …" if len(unfinished) > _LINES_MAX else "")
        lines.append(f"requests not finished: {len(unfinished)}: {shown}")
    moved, seconds = staging.moved_bytes, staging.moving_s
    lines.append(f"{size(moved)} moved in {seconds:.2f} s{rate(moved, seconds)}")
    if to_stderr and not session.quiet:
        tell(json.dumps(values) if session.json else "\n".join(f"arstore: {line}" for line in lines))
    elif not to_stderr:
        session.emit(values, lambda: "\n".join(lines))


def _values(one: StagedObject) -> dict[str, object]:
    name, version = split_object(one.wanted.id)
    return {
        "name": name,
        "version": version,
        "tier": one.tier,
        "from": one.source,
        "bytes": one.wanted.length_bytes,
        "seconds": round(one.seconds, 3),
    }


def _lines(staging: StagingReport) -> Iterator[str]:
    """Yield a line for each object or, where they are many, for each tier that they came from."""
    if len(staging.staged) <= _LINES_MAX:
        for one in staging.staged:
            yield f"staged {_short(one.wanted.id)} in {one.tier}, {size(one.wanted.length_bytes)}"
        return
    lengths: dict[str, list[int]] = {}
    for one in staging.staged:
        lengths.setdefault(one.source, []).append(one.wanted.length_bytes)
    for source, each in lengths.items():
        yield f"staged {len(each)} objects from {source} in {staging.staged[0].tier}, {size(sum(each))}"


def _short(id_: str) -> str:
    """Return an object's id for people. The digest of a prefix block is cut short."""
    return id_[: len(BLOCK) + _DIGITS] if id_.startswith(BLOCK) else id_


def write_timeline(path: Path | None, timed: Callable[[], "Timed"]) -> None:
    """Write what happened to a file, durably, if one is asked for."""
    if path is not None:
        from ..store.plan.timeline import trace

        Disk().write_output(path, json.dumps(trace(timed())).encode())
