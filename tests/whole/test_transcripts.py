"""Every transcript in `transcripts/` is run and prints what it says; see `support/transcript.py` for how one is read.

Every transcript starts in an empty home with the files that `make_files` puts there, and its commands run one after
the other.
"""

import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.support.transcript import Ids, Shell, Step, environment_of, parse, pattern_of

FOLDER = Path(__file__).parents[1] / "transcripts"
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))


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


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = environment_of(home)
    make_files(home)
    shell = Shell(home, environment, path.name)
    for step in parse(path.read_text("utf-8")):
        shell.run(step)


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
