"""Transcripts: commands that a person types and what they print, parsed, run in one shell and compared.

A command is a line that begins with `$ `. What it prints follows, stdout and stderr together, and then its exit code
where that is not 0 (`[13]`). Lines that begin with `# ` are prose.

What differs from run to run is written as it was once. An id (16 or 64 hex digits) stands for whatever id comes
there, and for the same one wherever it is repeated. Times, durations and rates stand for any. `…` is any text within
a line, and alone on a line any lines.
"""

import difflib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

VARYING = re.compile(
    r"(?P<id>\b(?:[0-9a-f]{64}|[0-9a-f]{16})\b)|(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)"
    r"|(?P<seconds>in \d+\.\d\d s(?:, \d+\.\d\d GB/s)?)|(?P<json>\"seconds\": [\d.]+)|(?P<any>…)"
)
PATTERNS = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "seconds": r"in \d+\.\d\d s(?:, \d+\.\d\d GB/s)?",
    "json": r'"seconds": [\d.]+',
    "any": r"[^\n]*",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command, what it is to print, and the code it is to exit with."""

    line: int
    command: str
    wanted: str
    code: int


def parse(text: str) -> list[Step]:
    """Return the steps of a transcript; raise ValueError for a line that belongs to none."""
    steps: list[Step] = []
    command, start, output = "", 0, list[str]()
    for number, line in enumerate([*text.splitlines(), "# the end"], 1):
        if line.startswith(("$ ", "# ")):
            if command:
                while output and not output[-1]:
                    output.pop()
                code = re.fullmatch(r"\[(\d+)\]", output[-1]) if output else None
                shown = output[:-1] if code else output
                steps.append(Step(start, command, "".join(f"{one}\n" for one in shown), int(code[1]) if code else 0))
            command, start, output = line[2:] if line[0] == "$" else "", number, []
        elif command:
            output.append(line)
        elif line:
            raise ValueError(f"line {number} is neither prose nor a command's output: {line}")
    return steps


def pattern_of(wanted: str) -> tuple[re.Pattern[str], list[str]]:
    """Return what an output must match, and the ids whose counterparts the groups of a match are."""
    ids: list[str] = []
    parts: list[str] = []
    for line in wanted.splitlines():
        if line == "…":
            parts.append(r"(?:[^\n]*\n)*")
            continue
        at = 0
        for found in VARYING.finditer(line):
            parts.append(re.escape(line[at : found.start()]))
            at = found.end()
            if found["id"]:
                ids.append(found["id"])
                parts.append(f"([0-9a-f]{{{len(found['id'])}}})")
            else:
                parts.append(PATTERNS[found.lastgroup or ""])
        parts.append(re.escape(line[at:]) + r"\n")
    return re.compile("".join(parts)), ids


class Ids:
    """Which id of this run stands where the transcript has another: one for one, and always the same."""

    def __init__(self) -> None:
        self._of_run: dict[str, str] = {}
        self._of_text: dict[str, str] = {}

    def fit(self, text: str, run: str) -> bool:
        """Tell whether a pair is new to both sides or known to both; a short id is the start of the long one."""
        text, run = text[:16], run[:16]
        return self._of_run.setdefault(text, run) == run and self._of_text.setdefault(run, text) == text


def environment_of(home: Path) -> dict[str, str]:
    """Return an environment with nothing in it but what a fresh shell has, and `arstore` on its path."""
    (home / ".bin").mkdir()
    program = home / ".bin" / "arstore"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from arstore.cli.main import main; main()" "$@"\n')
    program.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "HOME": str(home), "PATH": f"{home / '.bin'}:{os.environ['PATH']}"}


class Shell:
    """One shell for all commands of a transcript: what one of them exports holds on for the next."""

    def __init__(self, home: Path, environment: dict[str, str], name: str) -> None:
        """Run in `home`; `name` is what a failure calls the transcript."""
        self._home, self._environment, self._name = home, environment, name
        self._ids = Ids()
        self._exports = home / ".exports"
        self._exports.touch()

    def run(self, step: Step) -> None:
        """Run one command; fail unless it prints and exits as the step wants."""
        script = f'. "{self._exports}"\n{step.command}\ncode=$?\nexport -p > "{self._exports}"\nexit $code\n'
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=self._home, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        shown = done.stdout.replace(str(self._home), "~")
        where = f"{self._name}:{step.line}: $ {step.command}"
        assert done.returncode == step.code, f"{where}\nexited {done.returncode}, wanted {step.code}\n{shown}"
        pattern, named = pattern_of(step.wanted)
        found = pattern.fullmatch(shown)
        if not found:
            difference = difflib.ndiff(step.wanted.splitlines(), shown.splitlines())
            pytest.fail("\n".join([where, *difference]), pytrace=False)
        for text, run in zip(named, found.groups(), strict=True):
            assert self._ids.fit(text, run), f"{where}\n{text} and {run} are not the same everywhere"
