"""README and guides: what they show is run, what they name is there, and every command stands in one of them."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from arstore.cli.commands import COMMANDS, load
from arstore.cli.main import app
from tests.support.fresh_memory import memory
from tests.support.guide import RUN, SHOWN, Block, blocks_of, run_guide
from tests.support.sample import make_sample

__all__ = ["memory"]  # fixtures

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *GUIDES]
TEXTS = {path: path.read_text("utf-8") for path in PAGES}
RUNNING = [path for path in PAGES if any(one.language in RUN for one in blocks_of(TEXTS[path]))]
GROUPS = [name for name in COMMANDS if hasattr(load(name), "commands")]
GENERATED = ("commands.md",)  # from the program, and held to it by a test of its own


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample")
    make_sample(path)
    return path


@pytest.mark.parametrize("path", RUNNING, ids=name_of)
def test_what_a_guide_shows_is_what_happens(
    path: Path, sample: Path, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem == "engines":
        pytest.importorskip("transformers")
    home = tmp_path / "home"
    shutil.copytree(sample, home)
    run_guide(path, home, memory, monkeypatch)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_a_guide(command: str) -> None:
    text = "".join(text for path, text in TEXTS.items() if path.name not in GENERATED)
    assert re.search(rf"arstore {command}\b", text), f"'arstore {command}' is in no guide"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target, _, heading in (link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", TEXTS[path])):
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name}: {target} is not there"
        assert not heading or heading in headings_of(page.read_text("utf-8")), f"{path.name}: {target}#{heading}"


def headings_of(text: str) -> list[str]:
    """Return what links to the headings of a page are called, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_every_guide_is_in_the_table_of_the_readme() -> None:
    assert [path.name for path in GUIDES if f"](docs/{path.name})" not in TEXTS[README]] == []


def test_the_readme_is_short() -> None:
    assert len(TEXTS[README].splitlines()) <= 150


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_scripts_that_are_named_are_there(path: Path) -> None:
    for script in set(re.findall(r"scripts/[\w./-]+\w(?=[\s`)])", TEXTS[path])):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_and_flags_that_are_named_are_there(path: Path) -> None:
    known = flags_of_commands()
    for code in re.findall(r"```\w+\n.*?```|`[^`\n]+`", TEXTS[path], re.DOTALL):
        for words in calls_in(code.strip("`")):
            where, command = f"{path.name}: arstore {' '.join(words)}", words[0]
            if command in GROUPS and len(words) > 1:
                command = f"{command} {words[1]}"
            assert command in known, f"{where}: no such command"
            for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
                assert flag in known[command], f"{where}: no flag {flag}"
        if alone := re.fullmatch(r"`(--[a-z-]+)[^`]*`", code):
            assert any(alone[1] in flags for flags in known.values()), f"{path.name}: no flag {alone[1]}"


def flags_of_commands() -> dict[str, set[str]]:
    """Return the flags of every command, and of every group all those of its commands."""
    found: dict[str, set[str]] = {}
    program = typer.main.get_group(app)
    everywhere = {"--help", *(flag for option in program.params for flag in option.opts)}
    for name in COMMANDS:
        loaded = load(name)
        parts: dict[str, Any] = getattr(loaded, "commands", {"": loaded})
        for part, command in parts.items():
            flags = everywhere.union(*(option.opts for option in command.params))
            found[f"{name} {part}".strip()] = flags
            found[name] = found.get(name, set()) | flags
    return found


def calls_in(code: str) -> Iterator[list[str]]:
    """Yield the words of each call of `arstore` in a piece of code, from the command on; one in capitals is none."""
    for part in re.split(r"\n|&&|[|;<]|\$\(|ExecStart=", code):
        words = part.partition(" # ")[0].partition(" -- ")[0].replace(")", " ").split()
        if "arstore" not in words:
            continue
        words = words[words.index("arstore") + 1 :]
        while words and words[0].startswith("-"):
            words = words[2 if words[0] in ("--store", "--tenant") else 1 :]
        if words and re.fullmatch(r"[a-z-]+", words[0]):
            yield words


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_is_run_or_meant_to_be_read(path: Path) -> None:
    for block in blocks_of(TEXTS[path]):
        assert block.language in RUN + SHOWN, f"{path.name}:{block.line}: {block.language!r}"
        if block.language == "console":
            assert block.steps(), f"{path.name}:{block.line}: no command in it"
        elif block.language != "python":
            assert not re.search(r"^\$ ", block.text, re.MULTILINE), f"{path.name}:{block.line}: not run"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_nothing_is_left_to_fill_in(path: Path) -> None:
    assert "@@" not in TEXTS[path]


def test_there_are_guides_that_run() -> None:
    assert len(RUNNING) >= 8
    assert (
        sum(len(one.steps()) for path in RUNNING for one in blocks_of(TEXTS[path]) if one.language == "console") >= 60
    )


# ---- the runner itself


def test_a_guide_is_cut_into_blocks() -> None:
    text = "Prose.\n\n```console\n$ one\nout\n```\n\n```python\n# job.py\nprint()\n```\n"
    assert blocks_of(text) == [Block("console", 4, "$ one\nout\n"), Block("python", 9, "# job.py\nprint()\n")]
    assert [one.file for one in blocks_of(text)] == [None, "job.py"]
    assert [one.line for one in blocks_of(text)[0].steps()] == [4]
    with pytest.raises(ValueError, match="line 2"):
        blocks_of("```console\n$ one\n")


def test_a_guide_that_shows_something_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, text in enumerate(("```console\n$ echo one\ntwo\n```\n", "```python\nassert 1 == 2\n```\n")):
        (home := tmp_path / f"home-{number}").mkdir()
        (page := tmp_path / "page.md").write_text(text)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            run_guide(page, home, home, monkeypatch)
