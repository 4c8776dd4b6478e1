"""The README names every command, and what it says can be run is there."""

import re
from pathlib import Path

import pytest

from arstore.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme(command: str) -> None:
    assert re.search(rf"arstore {command}\b", README), f"'arstore {command}' is not in the README"


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"scripts/[\w./-]+\w(?=[\s`)])", README))))
def test_scripts_that_are_named_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
