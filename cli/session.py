"""Session: the flags that every command shares, the store they lead to, and where output goes."""

import contextlib
import getpass
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer

from ..store.access import open_store
from ..store.config import default_store
from ..store.errors import StoreError
from ..store.progress import Progress
from ..store.store import Store


class Reported(Exception):
    """An error that comes with a result: text went out already, JSON is to hold both."""

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
    started: float = field(default_factory=time.perf_counter)

    @property
    def root(self) -> Path:
        return self.store or default_store()

    @property
    def seconds(self) -> float:
        """Seconds since the command began, to the millisecond."""
        return round(time.perf_counter() - self.started, 3)

    def open(self) -> Store:
        return open_store(self.root, tenant=self.tenant, ask=ask_passphrase)

    def emit(self, values: dict[str, object], text: Callable[[], str]) -> None:
        """Print one JSON object or its rendering to stdout."""
        if self.json:
            print(json.dumps(values), flush=True)
        elif not self.quiet and (shown := text()):
            print(shown, flush=True)  # before what is said on stderr after it

    def say(self, line: str) -> None:
        """Talk to the person, on stderr."""
        if not self.quiet:
            print(f"arstore: {line}", file=sys.stderr)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Progress]:
        """Show bytes, rate and time left while work runs, if a person is watching."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield lambda advance_bytes, total_bytes: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def advance(advance_bytes: int, total_bytes: int) -> None:
                bar.update(task, advance=advance_bytes, total=total_bytes)

            yield advance


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
