"""Fetch: verified bytes from records straight into their final buffers, on every core.

A task is some MiB of frames, and one thread does all of it. Decrypting and waiting for the disk release the GIL, so
some threads read while others decrypt. They share nothing but the list of tasks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...formats.catalog import Place
from ...formats.digest import Digest
from ...formats.errors import FormatError
from ...formats.record import KIND_BLOB
from ..disk import FileSpan, Out
from ..errors import Corrupt
from ..keys.tenant_keys import TenantKeys
from ..workers import run_all
from .reader import SegmentReader
from .records import OpenRecord, corrupt, scratch

_TASK_BYTES, _COLD_TASK_BYTES = 8 << 20, 4 << 20


@dataclass(frozen=True, slots=True)
class Want:
    """Bytes [start, stop) of one blob, to be put into `out`: memory, or part of a file."""

    digest: Digest
    place: Place
    start: int
    stop: int
    out: Out


class BadBlob(Exception):
    """A blob's record failed its checks."""

    def __init__(self, want: Want, error: Corrupt) -> None:
        super().__init__(str(error))
        self.want, self.error = want, error


@dataclass(frozen=True, slots=True)
class _Run:
    """Frames [first, stop) of one want."""

    want: Want
    first: int
    stop: int


def fetch(segments: SegmentReader, keys: TenantKeys, wants: Iterable[Want], *, cold: bool = False) -> int:
    """Fill every want; return how many sealed bytes were read.

    With `cold`, bytes that the page cache does not hold are read past it. Raises BadBlob at the first record that
    fails. The buffers may hold verified bytes of other records then, never wrong bytes.
    """
    tasks = list(_tasks(wants, _COLD_TASK_BYTES if cold else _TASK_BYTES))

    def perform(task: list[_Run]) -> int:
        return sum(_read_run(segments, keys, run, cold=cold) for run in task)

    return sum(run_all(perform, tasks))


def read_want(segments: SegmentReader, keys: TenantKeys, want: Want) -> int:
    """Fill one want on this thread; return the sealed bytes read. Raises BadBlob."""
    return sum(_read_run(segments, keys, run, cold=False) for run in _runs(want, _TASK_BYTES))


def _runs(want: Want, task_bytes: int) -> Iterator[_Run]:
    frame_bytes = want.place.frame_bytes
    step = max(task_bytes // frame_bytes, 1)
    first, last = want.start // frame_bytes, (want.stop - 1) // frame_bytes
    for frame in range(first, last + 1, step):
        yield _Run(want, frame, min(frame + step, last + 1))


def _tasks(wants: Iterable[Want], task_bytes: int) -> Iterator[list[_Run]]:
    task: list[_Run] = []
    size = 0
    for want in wants:
        for run in _runs(want, task_bytes) if want.stop > want.start else ():
            task.append(run)
            size += (run.stop - run.first) * min(want.place.frame_bytes, want.place.plain_bytes)
            if size >= task_bytes:
                yield task
                task, size = [], 0
    if task:
        yield task


def _read_run(segments: SegmentReader, keys: TenantKeys, run: _Run, *, cold: bool) -> int:
    want, frame_bytes = run.want, run.want.place.frame_bytes
    try:
        record = OpenRecord(segments, keys, want.place, KIND_BLOB)
        record.need(run.first, run.stop, cold=cold)
        if run.first == 0 and want.stop - want.start == want.place.plain_bytes:
            record.check_ends(want.digest)
        total = 0
        for index in range(run.first, run.stop):
            at = index * frame_bytes
            start, stop = max(want.start - at, 0), min(want.stop - at, frame_bytes)
            out = want.out[at + start - want.start : at + stop - want.start]
            part = scratch.take(len(out), "plain") if isinstance(out, FileSpan) else out
            total += record.read(index, start, stop, part)
            if isinstance(out, FileSpan):
                out[:] = part
    except FormatError as error:
        raise BadBlob(want, corrupt(want.place, want.digest, error)) from None
    except Corrupt as error:
        raise BadBlob(want, error) from None
    return total
