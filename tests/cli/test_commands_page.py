"""docs/commands.md is what scripts/commands writes from the program, whatever the terminal."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "commands.md"
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "commands"))


def test_the_page_is_what_the_program_says() -> None:
    if PAGE.read_text("utf-8") != SCRIPT["page"]():
        pytest.fail(SCRIPT["RENEW"], pytrace=False)


@pytest.mark.parametrize("columns", ["20", "300"])
def test_the_page_does_not_depend_on_the_terminal(columns: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "commands"), "--check"]
    environment = {**os.environ, "COLUMNS": columns, "TERMINAL_WIDTH": columns, "FORCE_COLOR": "1", "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_is_outdated_is_not_taken(tmp_path: Path) -> None:
    main, outdated = SCRIPT["main"], tmp_path / "commands.md"
    assert main(["--into", str(outdated), "--check"]) == 1
    assert main(["--into", str(outdated)]) == 0
    assert outdated.read_bytes() == PAGE.read_bytes()
    outdated.write_text(outdated.read_text().replace("byte for byte", "roughly", 1))
    assert main(["--into", str(outdated), "--check"]) == 1


def test_links_of_the_page_lead_somewhere() -> None:
    text = PAGE.read_text("utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 60
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (PAGE.parent / link).is_file(), link


def test_every_exit_code_and_variable_has_a_meaning() -> None:
    assert set(SCRIPT["MEANINGS"]) == set(SCRIPT["exit_codes"]())
    assert set(SCRIPT["VARIABLES"]) == SCRIPT["variables"]()
