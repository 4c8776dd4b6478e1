"""The vectors themselves: written by scripts/vectors, small, and named in the specification."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    pass
from tests.support.vectors import ROOT, VECTORS, golden

__all__ = ["golden"]  # fixtures


def test_vectors_are_what_scripts_vectors_writes(tmp_path: Path) -> None:
    """A check that script and files have not drifted apart; the files themselves are never written here."""
    command = [sys.executable, str(ROOT / "scripts" / "vectors"), "--into"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, tmp_path / "new"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert made == {path.relative_to(VECTORS) for path in VECTORS.rglob("*") if path.is_file()}
    for path in made:
        assert (tmp_path / "new" / path).read_bytes() == (VECTORS / path).read_bytes(), path

    (tmp_path / "new" / "cuts.json").write_text("{}")
    (tmp_path / "new" / "keys.json").unlink()
    done = subprocess.run([*command, tmp_path / "new"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cuts.json" in done.stderr
    assert (tmp_path / "new" / "cuts.json").read_text() == "{}"
    assert not (tmp_path / "new" / "keys.json").exists(), "it wrote some files before it refused"


def test_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in VECTORS.rglob("*") if path.is_file()) < 290_000


@pytest.mark.parametrize("path", ["tests/support/spec_*.py", "scripts/vectors", "scripts/golden/*.py"])
def test_second_implementations_do_not_know_the_product(path: str) -> None:
    files = sorted(ROOT.glob(path))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(module.split(".")[0] == "arstore" for module in modules), file
            others = [module for module in modules if module.startswith("tests.")]
            assert all(module.startswith("tests.support.spec_") for module in others), file


def test_every_vector_file_is_named_in_the_specification() -> None:
    text = (ROOT / "formats" / "FORMAT.md").read_text("utf-8")
    named = {name for names in re.findall(r"\[([a-z, -]+)\]", text) for name in names.split(", ")}
    assert {path.stem for path in VECTORS.glob("*.json")} <= named
