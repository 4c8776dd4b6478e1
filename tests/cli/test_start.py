"""Start-up: what a command loads before it works. Seconds depend on the machine, the list of modules does not.

`scripts/bench.py` measures the seconds, as a ratio to Python's own start.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import arstore
import arstore.cli
from arstore.cli.commands import COMMANDS, RunsAnother, load
from arstore.cli.main import app
from arstore.cli.words import RUNS_ANOTHER
from tests.support.command import arstore as run_arstore

HELP = {
    "",
    ".cli",
    ".cli.main",
    ".cli.commands",
    ".cli.session",
    ".cli.words",
    ".store",
    ".store.errors",
    ".store.progress",
}
# Of the store what opens it and reads the rows: nothing that puts, gets, stages, plans, collects or matches prefixes.
LISTING = HELP | {
    ".cli.ls", ".cli.render",
    ".formats", ".formats.catalog", ".formats.digest", ".formats.errors", ".formats.frames", ".formats.keypage",
    ".formats.lease", ".formats.record", ".formats.row_keys", ".formats.strict_json",
    ".store.access", ".store.config", ".store.disk", ".store.locks", ".store.parts", ".store.store",
    ".store.artifacts", ".store.artifacts.names", ".store.artifacts.refs",
    ".store.catalog", ".store.catalog.catalog", ".store.catalog.garbage", ".store.catalog.identities",
    ".store.catalog.key_slots", ".store.catalog.leases", ".store.catalog.lookup", ".store.catalog.opening",
    ".store.catalog.environment", ".store.catalog.last_write", ".store.catalog.page_check",
    ".store.catalog.tables", ".store.catalog.usage",
    ".store.keys", ".store.keys.keyring", ".store.keys.keytree", ".store.keys.opening", ".store.keys.root_file",
    ".store.keys.tenant_keys", ".store.keys.unlock",
    ".store.segments", ".store.segments.reader",
    ".store.user_file",
}  # fmt: skip

HEAVY = {"torch", "numpy", "matplotlib", "safetensors", "zstandard", "transformers", "rich", "pydantic", "markdown_it"}
FOR_STORES = {"lmdb", "blake3", "cryptography", "tomllib"}
FOR_SOME = {"concurrent", "ctypes", "tempfile", "hashlib", "_hashlib", "hmac", "secrets", "asyncio", "multiprocessing"}

RUN = "from arstore.cli.main import run; assert run({words!r}) == 0"
# What Python loads for itself, and what the machine's site-packages add to it, is not ours to answer for.
LOADED = """
import sys
own = set(sys.modules)
{statement}
import json
print(json.dumps(sorted(set(sys.modules) - own)), file=sys.stderr)
"""


def loaded(statement: str) -> set[str]:
    """Return the modules that a fresh process loads for a statement."""
    command = [sys.executable, "-c", LOADED.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def ours(modules: set[str]) -> set[str]:
    """Return arstore's own modules, named from the package on."""
    return {name.removeprefix("arstore") for name in modules if name.partition(".")[0] == "arstore"}


def others(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - {"arstore"}


@pytest.fixture
def store() -> None:
    assert run_arstore("init").code == 0


def test_importing_the_package_loads_nothing_but_itself() -> None:
    modules = loaded("import arstore")
    assert ours(modules) == {""}
    assert not others(modules) & (HEAVY | FOR_STORES | FOR_SOME | {"typer", "dataclasses"})


@pytest.mark.parametrize("words", [["--help"], ["completion"]])
def test_what_opens_no_store_loads_none_of_it(words: list[str]) -> None:
    modules = loaded(RUN.format(words=words))
    assert ours(modules) <= HELP | {".cli.completion"}
    assert not others(modules) & (HEAVY | FOR_STORES | FOR_SOME)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("words", [["ls"], ["--json", "ls"], ["ls", "a*"]])
def test_ls_loads_what_lists_and_no_more(words: list[str]) -> None:
    modules = loaded(RUN.format(words=words))
    assert ours(modules) <= LISTING
    assert not others(modules) & (HEAVY | FOR_SOME)
    assert ".store.catalog.tables" in ours(modules), "ls was not run"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("command", ["stats", "tenant ls", "lease ls", "gc"])
def test_a_command_loads_no_other(command: str) -> None:
    words = command.split()
    commands = {f".cli.{listed.module}" for listed in COMMANDS.values()}
    assert ours(loaded(RUN.format(words=words))) & commands == {f".cli.{words[0]}"}


def test_the_check_sees_what_is_loaded() -> None:
    modules = loaded("import arstore.store.maintenance.collect, concurrent.futures")
    assert ".store.maintenance.collect" in ours(modules) - LISTING
    assert "concurrent" in others(modules) & FOR_SOME


# ---- the table of commands


def modules_with_commands() -> Iterator[str]:
    for path in sorted(Path(arstore.cli.__path__[0]).glob("*.py")):
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "register" for node in ast.parse(path.read_text()).body
        ):
            yield path.stem


def test_the_table_has_every_command() -> None:
    assert sorted({listed.module for listed in COMMANDS.values()}) == list(modules_with_commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_what_its_help_begins_with(name: str) -> None:
    group: Any = get_command(app)
    listed, real = group.commands[name], load(name)
    assert real.name == name
    assert not real.hidden
    for width in (20, 40, 1000):
        assert listed.get_short_help_str(width) == real.get_short_help_str(width)
    assert COMMANDS[name].line == real.get_short_help_str(1000)


def test_the_commands_that_run_another_keep_its_words() -> None:
    assert tuple(name for name in COMMANDS if isinstance(load(name), RunsAnother)) == RUNS_ANOTHER


# ---- the package's names


def names_for_types() -> set[str]:
    """Return what the package imports for type checkers."""
    tree = ast.parse(Path(arstore.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {
        alias.name
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_every_name_of_the_package_is_there() -> None:
    assert names_for_types() == set(arstore.__all__) <= set(dir(arstore))
    for name in arstore.__all__:
        assert getattr(arstore, name).__name__ == name
    everything: dict[str, object] = {}
    exec("from arstore import *", everything)
    assert set(arstore.__all__) <= set(everything)


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match=r"module 'arstore' has no attribute 'Shop'"):
        _ = arstore.Shop  # type: ignore[attr-defined]
