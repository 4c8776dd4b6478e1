"""Processes: programs run as a user runs them, each in its own process, timed by the wall clock."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import Samples

ARSTORE = (sys.executable, "-P", "-c", "from arstore.cli.main import main; main()", "--json")
# PYTHONPATH, so that children run the arstore that runs here.
_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Failed(Exception):
    """A program could not do its work; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a program: its wall time from start to exit, and what it printed."""

    seconds: float
    stdout: str

    def json(self) -> dict[str, Any]:
        """Return the last line of stdout as one JSON object."""
        found = json.loads(self.stdout.strip().splitlines()[-1])
        assert isinstance(found, dict)
        return found


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment with nothing of the user's but the path: no store, no keys, no caches."""
    folders = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "keys"),
    }
    return {name: os.environ[name] for name in _KEPT if name in os.environ} | folders | more


def run(command: Sequence[str], env: Mapping[str, str]) -> Ran:
    """Run a program to its end; raise Failed unless it exits with 0."""
    began = time.perf_counter()
    with started(command, env) as process:
        out, err = process.communicate()
        seconds = time.perf_counter() - began
    _check(command, process, err)
    return Ran(seconds, out)


def run_arstore(env: Mapping[str, str], *words: str) -> Ran:
    """Run one command of arstore, as the command line does."""
    return run([*ARSTORE, *words], env)


def peak_memory(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a program and return the most memory it held that no file backs: anonymous and shared, in bytes."""
    peak = 0
    with started(command, env) as process:
        while process.poll() is None:
            peak = max(peak, _unbacked_bytes(process.pid))
            time.sleep(0.001)
        err = process.communicate()[1]
    _check(command, process, err)
    return peak


def kill_when(command: Sequence[str], env: Mapping[str, str], reached: Callable[[], bool]) -> bool:
    """Start a program and send SIGKILL once `reached`; return False if it ended before that."""
    # A pipe that nobody empties would fill with progress reports and hold the program up.
    with started(command, env, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if reached():
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return True
            time.sleep(0.002)
        err = process.communicate()[1]
    _check(command, process, err)
    return False


def take_turns(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warm_up: bool = True,
    most: Mapping[str, int] | None = None,
) -> dict[str, Samples | str]:
    """Measure A, B, A, B, …, so that what disturbs the machine disturbs all; a contender that fails says why.

    The warm-up, a turn before the others, counts for nothing. `most` caps the turns of those that take long.
    """
    capped = most or {}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    failed: dict[str, str] = {}
    for turn in range(rounds + warm_up):
        for name, measure in contenders.items():
            if name in failed or len(found[name]) >= capped.get(name, rounds):
                continue
            try:
                seconds = measure()
            except Failed as error:
                failed[name] = str(error)
                continue
            if turn >= warm_up:
                found[name].append(seconds)
    return {name: failed[name] if name in failed else Samples(tuple(times)) for name, times in found.items()}


def warm(paths: Sequence[Path]) -> None:
    """Read files to their end, so that the page cache holds them."""
    buffer = memoryview(bytearray(4 << 20))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def tree_bytes(folder: Path) -> int:
    """Return the lengths of all files under a folder that may change meanwhile."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(top, name)).st_size
    return total


def ratio_median(first: Samples, second: Samples) -> float:
    """Return the median over rounds of first / second: what disturbs a whole round cancels out."""
    return statistics.median(a / b for a, b in zip(first.values, second.values, strict=True))


@contextlib.contextmanager
def started(
    command: Sequence[str], env: Mapping[str, str], stdout: int = subprocess.PIPE
) -> Iterator["subprocess.Popen[str]"]:
    """Start a program in its own group, and leave none of it behind."""
    try:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise Failed(f"{command[0]}: {(error.strerror or str(error)).lower()}") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _check(command: Sequence[str], process: "subprocess.Popen[str]", err: str) -> None:
    if process.returncode:
        lines = [line for line in err.strip().splitlines() if line.strip()] or ["it said nothing"]
        raise Failed(f"{Path(command[0]).name} exited with {process.returncode}: {lines[-1].strip()[:300]}")


def _unbacked_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
