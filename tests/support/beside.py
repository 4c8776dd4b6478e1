"""Processes beside this one that read or write a catalog, or are inside a transaction of it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def worker(directory: Path, what: str, count: int = 0, *, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    command = [*before, sys.executable, "-m", "tests.support.catalog_worker", str(directory), what, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def inside(directory: Path, what: str) -> Iterator["subprocess.Popen[str]"]:
    """Keep a process inside a transaction while the body runs."""
    with worker(directory, what) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "inside\n"
            yield process
        finally:
            process.kill()


def leave(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n")
    assert process.returncode == 0
