"""The real command line: in a process of its own, or in this one where the process is not the point."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from arstore.cli.main import run

PROGRAM = "from arstore.cli.main import main; main()"


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
    return Ran(code, out.getvalue(), err.getvalue())


def arstore(*words: object) -> Ran:
    """Run `arstore` with the environment of this process; a traceback is never an answer."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def start(*words: object) -> "subprocess.Popen[str]":
    """Start `arstore` and return at once: for commands that are killed, interrupted, or run beside others."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> Ran:
    """Wait for a command that was started."""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out + err, err
    return Ran(process.returncode, out, err)
