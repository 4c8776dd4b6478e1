"""Session: the flags that every command shares, the store they lead to, and where output goes."""

import contextlib
import getpass
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..store.errors import StorageFailed, StoreError, reason
from ..store.progress import Progress, TierProgress, ignore_progress, ignore_tiers

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ..store.store import Store

STDOUT = "standard output"
PARTIAL = 4  # the exit code if some of several objects failed


class Reported(Exception):
    """An error that comes with a result. The text is printed already; the JSON object holds both."""

    def __init__(self, error: StoreError, values: dict[str, object]) -> None:
        super().__init__(str(error))
        self.error, self.values = error, values


@dataclass(slots=True)
class Session:
    """One run of the command line."""

    store: Path | None = None
    tenant: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    read_only: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def root(self) -> Path:
        from ..store.config import default_store

        return self.store or default_store()

    @property
    def seconds(self) -> float:
        """Seconds since the command began, to the millisecond."""
        return round(time.perf_counter() - self.started, 3)

    def open(self) -> "Store":
        from ..store.access import open_store

        return open_store(self.root, tenant=self.tenant, read_only=self.read_only, ask=ask_passphrase)

    def check_report(self, path: Path) -> None:
        """Raise BadInput or StorageFailed unless a report may be written to `path`; see `Outputs.check_report`."""
        from ..store.config import read_config
        from ..store.disk import Disk
        from ..store.outputs import Outputs

        Outputs(self.root, read_config(self.root), Disk()).check_report(path)

    def emit(self, values: dict[str, object], text: Callable[[], str]) -> None:
        """Print one JSON object or its rendering to stdout."""
        if self.json:
            put_out(json.dumps(values))
        elif not self.quiet and (shown := text()):
            put_out(shown)

    def say(self, line: str) -> None:
        """Talk to the person, on stderr."""
        if not self.quiet:
            tell(f"arstore: {line}")

    def warn_degraded(self, degraded: Mapping[str, StoreError]) -> None:
        """Warn of tiers that were not there."""
        for tier, error in degraded.items():
            self.say(f"warning: without tier {tier}: {error}")

    def warn_staged(self, still_staged: Iterable[str]) -> None:
        """Warn of copies that were staged during an erase and could not be wiped."""
        for one in still_staged:
            self.say(f"warning: {one}: staged meanwhile, and not wiped: it goes with the process that uses it")

    @contextlib.contextmanager
    def progress_of_tiers(self) -> Iterator[TierProgress]:
        """Show a line with a bar for each tier that is filled while work runs, if a person is watching."""
        with self._bars() as bars:
            if bars is None:
                yield ignore_tiers
                return
            tasks: dict[str, TaskID] = {}

            def advance(tier: str, advance_bytes: int, total_bytes: int) -> None:
                if tier not in tasks:
                    tasks[tier] = bars.add_task(f"to {tier}", total=total_bytes)
                bars.update(tasks[tier], advance=advance_bytes)

            yield advance

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Show bytes, rate and time left while work runs, if a person is watching."""
        with self._bars() as bars:
            if bars is None:
                yield ignore_progress
                return
            task = bars.add_task(what, total=None)
            yield lambda advance_bytes, total_bytes: bars.update(task, advance=advance_bytes, total=total_bytes)

    @contextlib.contextmanager
    def _bars(self) -> "Iterator[Bars | None]":
        if self.quiet or self.json or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield bars


def put_out(text: str) -> None:
    """Print to stdout, before what stderr says later. Raises StorageFailed if it can't be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise StorageFailed(STDOUT, reason(error)) from None


def tell(text: str) -> None:
    """Print to stderr. Once nobody reads stderr, print nowhere, so that the command goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = io.StringIO()


def degraded_values(degraded: Mapping[str, StoreError]) -> list[dict[str, str]]:
    """Return the tiers that were not there, as JSON has them."""
    return [{"tier": tier, "why": str(error)} for tier, error in degraded.items()]


def session_of(context: typer.Context) -> Session:
    """Return the session that the global flags made."""
    session = context.obj
    assert isinstance(session, Session)
    return session


def ask_passphrase() -> bytes | None:
    """Ask the person for a passphrase; None where nobody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return getpass.getpass("arstore: passphrase: ", stream=sys.stderr).encode() or None
