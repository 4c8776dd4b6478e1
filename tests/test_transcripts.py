"""Transcripts: what a person types and sees, kept as text files that are run and compared.

A transcript is prose (lines that begin with `# `), commands (`$ `), what each prints, stdout and stderr together, and
its exit code where that is not 0 (`[13]`, behind the output). Every transcript starts in an empty home with the
files that `make_files` puts there, and its commands run one after the other.

What differs from run to run is written as it was once: an id (16 or 64 hex digits) stands for whatever id comes
there, the same one wherever it is repeated; times, durations and rates for any. `…` is any text within a line, and
alone on a line any lines.
"""

import difflib
import json
import os
import re
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch

FOLDER = Path(__file__).with_name("transcripts")
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))

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


def make_files(home: Path) -> None:
    """Put a small model, a fine-tune of it, and some files that are not what they seem into a home."""
    generator = torch.Generator().manual_seed(7)
    weights = {"model.embed_tokens.weight": torch.randn(32, 16, generator=generator).bfloat16()}
    for layer in range(2):
        for name in ("q_proj", "o_proj"):
            weight = torch.randn(16, 16, generator=generator).bfloat16()
            weights[f"model.layers.{layer}.self_attn.{name}.weight"] = weight
    tuned = {**weights, "model.layers.1.self_attn.o_proj.weight": torch.ones(16, 16).bfloat16()}
    for folder, tensors in (("llama", weights), ("llama-tuned", tuned)):
        (home / folder).mkdir()
        safetensors.torch.save_file(tensors, home / folder / "model.safetensors", metadata={"format": "pt"})
        (home / folder / "model.safetensors").chmod(0o644)
        (home / folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 16}))
    (home / "notes.txt").write_text("learning rate 3e-4\n")
    (home / "plan.json").write_text(json.dumps({"layers.*.self_attn.q_proj": "colwise"}))
    (home / "broken.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    (home / "evil.bin").write_bytes(b"\x80\x02cposix\nsystem\nX\x0a\x00\x00\x00touch evil\x85R.")
    (home / "large.bin").write_bytes(os.urandom(1 << 20))


def environment_of(home: Path) -> dict[str, str]:
    """Return an environment with nothing in it but what a fresh shell has, and `arstore` on its path."""
    (home / ".bin").mkdir()
    program = home / ".bin" / "arstore"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from arstore.cli.main import main; main()" "$@"\n')
    program.chmod(0o755)
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "HOME": str(home), "PATH": f"{home / '.bin'}:{os.environ['PATH']}"}


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = environment_of(home)
    make_files(home)
    ids = Ids()
    # One shell for all of a transcript's commands, so that what it exports holds on.
    exports = home / ".exports"
    exports.touch()
    for step in parse(path.read_text("utf-8")):
        script = f'. "{exports}"\n{step.command}\ncode=$?\nexport -p > "{exports}"\nexit $code\n'
        done = subprocess.run(
            ["sh", "-c", script],
            cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        shown = done.stdout.replace(str(home), "~")
        where = f"{path.name}:{step.line}: $ {step.command}"
        assert done.returncode == step.code, f"{where}\nexited {done.returncode}, wanted {step.code}\n{shown}"
        pattern, named = pattern_of(step.wanted)
        found = pattern.fullmatch(shown)
        if not found:
            difference = difflib.ndiff(step.wanted.splitlines(), shown.splitlines())
            pytest.fail("\n".join([where, *difference]), pytrace=False)
        for text, run in zip(named, found.groups(), strict=True):
            assert ids.fit(text, run), f"{where}\n{text} and {run} are not the same everywhere"


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 4
    assert sum(len(parse(path.read_text("utf-8"))) for path in TRANSCRIPTS) >= 40


# ---- the runner itself


def test_a_transcript_is_read_as_it_is_meant() -> None:
    text = "# Prose.\n\n$ one\nout\n\nmore\n[3]\n\n# Prose.\n$ two\n$ three\n[0]\n"
    assert parse(text) == [
        Step(3, "one", "out\n\nmore\n", 3),
        Step(10, "two", "", 0),
        Step(11, "three", "", 0),
    ]
    with pytest.raises(ValueError, match="line 2"):
        parse("# Prose.\nand more that is not marked\n")


@pytest.mark.parametrize(
    ("wanted", "shown", "fits"),
    [
        ("a b\n", "a b\n", True),
        ("a b\n", "a  b\n", False),
        ("a b\n", "a b\nmore\n", False),
        ("a.b\n", "axb\n", False),
        ("done in 0.02 s\n", "done in 12.50 s, 0.31 GB/s\n", True),
        ("done in 0.02 s\n", "done in time\n", False),
        ("at 2025-01-02T03:04:05Z\n", "at 2026-11-12T13:14:15Z\n", True),
        ("has … left\n", "has 12 GiB left\n", True),
        ("has … left\n", "has 12\nGiB left\n", False),
        ("first\n…\nlast\n", "first\none\ntwo\nlast\n", True),
        ("first\n…\nlast\n", "first\none\ntwo\nlast but one\n", False),
        ("id 0123456789abcdef\n", "id fedcba9876543210\n", True),
        ("id 0123456789abcdef\n", "id fedcba987654321\n", False),
    ],
)
def test_an_output_fits_or_not(wanted: str, shown: str, fits: bool) -> None:
    assert bool(pattern_of(wanted)[0].fullmatch(shown)) is fits


def test_ids_stay_the_same_throughout() -> None:
    ids = Ids()
    assert ids.fit("a" * 16, "1" * 16)
    assert ids.fit("a" * 64, "1" * 64)
    assert not ids.fit("a" * 16, "2" * 16)
    assert not ids.fit("b" * 16, "1" * 16)
    assert ids.fit("c" * 16, "3" * 16)
