"""The real command line: in a process of its own, or in this one where the process is not the point."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from arstore.cli.main import run

PROGRAM = "from arstore.cli.main import main; main()"
# The same, but the process stops itself (SIGSTOP) when it has written so many bytes into files of a path.
STOPPING = (
    """
import os, signal, sys, threading
from pathlib import Path
from arstore.store.disk import Disk

part, left, guard, write_at = sys.argv[1], [int(sys.argv[2])], threading.Lock(), Disk.write_at
del sys.argv[1:3]

def counted(disk, fd, source, offset):
    write_at(disk, fd, source, offset)
    if part in str(Path(f"/proc/self/fd/{fd}").readlink()):
        with guard:
            goes_on, left[0] = left[0] <= 0, left[0] - len(source)
            if not goes_on and left[0] <= 0:
                os.kill(os.getpid(), signal.SIGSTOP)

Disk.write_at = counted
"""
    + PROGRAM
)
PATIENCE_S = 120  # only so that a test which hangs ends


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that `--json` prints."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("arstore: error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def cli(*words: object) -> Ran:
    """Run one command in this process, through the same `run` that the program calls."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    assert "Traceback" not in out.getvalue() + err.getvalue(), err.getvalue()
    return Ran(code, out.getvalue(), err.getvalue())


def arstore(*words: object) -> Ran:
    """Run `arstore` with the environment of this process; a traceback is never an answer."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def start(*words: object) -> "subprocess.Popen[str]":
    """Start `arstore` and return at once: for commands that are killed, interrupted, or run beside others."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stopped(*words: object, part: str, written_bytes: int) -> "subprocess.Popen[str]":
    """Start `arstore` and return when it stands still, having written so many bytes into files with `part` in the path.

    No thread of it does anything until it gets SIGCONT; other signals reach it then, before it goes on.
    """
    command = [sys.executable, "-c", STOPPING, part, str(written_bytes), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    came = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert came is not None
    assert came.si_code == os.CLD_STOPPED, process.communicate()
    return process


def resume(process: "subprocess.Popen[str]", number: int = signal.SIGCONT) -> None:
    """Let a stopped process go on, with a signal that it gets first."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)


def ended(process: "subprocess.Popen[str]") -> Ran:
    """Wait for a command that was started."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in out + err, err
    return Ran(process.returncode, out, err)
