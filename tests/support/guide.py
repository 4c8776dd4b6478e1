"""Guides: the Markdown files for users, cut into blocks, and run one after the other in a home of their own.

A block of `console` is a transcript, see transcript.py. A block whose first line is a comment with a file name and
nothing else (`# serve.py`) is written to that file. Any other block of `python` is run. The Python blocks of one guide
share their names, as the cells of a notebook do. Other blocks (`sh`, `ini`, …) are for the reader alone.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.transcript import Shell, Step, environment_of, parse

RUN = ("console", "python")
SHOWN = ("sh", "ini", "cron", "text", "toml", "json")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, the line that its text begins at, and the text."""

    language: str
    line: int
    text: str

    @property
    def file(self) -> str | None:
        """Return the file that the block is, if it names one."""
        found = re.match(r"# ([\w-]+\.[a-z]+)\n", self.text)
        return found[1] if found else None

    def steps(self) -> list[Step]:
        """Return the commands of a console block, their lines counted in the guide."""
        return [Step(self.line + one.line - 1, one.command, one.wanted, one.code) for one in parse(self.text)]


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a guide; raise ValueError for a fence that is not closed."""
    blocks: list[Block] = []
    language, start, lines = None, 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif language is None:
            language, start, lines = line[3:], number + 1, []
        else:
            blocks.append(Block(language, start, "".join(f"{one}\n" for one in lines)))
            language = None
    if language is not None:
        raise ValueError(f"the block that begins at line {start} has no end")
    return blocks


def run_guide(path: Path, home: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a guide in a home that holds the sample; what it stages goes to `memory`."""
    environment = environment_of(home) | {"ARSTORE_HOST_DIR": str(memory)}
    for name in [*os.environ]:
        if name.startswith(("ARSTORE_", "XDG_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    shell, names = Shell(home, environment, path.name), {"__name__": "guide"}
    for block in blocks_of(path.read_text("utf-8")):
        if block.file:
            (home / block.file).write_text(block.text)
        elif block.language == "console":
            for step in block.steps():
                shell.run(step)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, path.name, "exec"), names)
