"""The house: files and functions stay small, names say something, and every module says what it is."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.house import DISK, PACKAGE, Rule, Source, parse, report, sources

FILE_MAX_LINES = 300
FUNCTION_MAX_LINES = 50


# --- the rules


# Words that say nothing, and words that would give a second name to what has one (see the glossary).
MODULE_WORDS = {
    "util", "utils", "helper", "helpers", "manager", "managers", "common", "base", "misc",
    "item", "items", "entry", "entries", "data", "handle", "handles",
}  # fmt: skip


NAME_WORDS = {"util", "utils", "helper", "helpers", "manager", "managers", "misc"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def words(name: str) -> set[str]:
    """Return the words of a name, lower case: `read_blob`, `ReadBlob` and `readBlob` all have two."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def definitions(source: Source) -> Iterator[Definition]:
    return (node for node in ast.walk(source.tree) if isinstance(node, Definition))


def long_files(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > FILE_MAX_LINES:
        yield f"{source.name}: {lines} lines"


def test_files_are_short() -> None:
    report(long_files, f"a file has at most {FILE_MAX_LINES} lines", "", *PACKAGE)


def long_functions(source: Source) -> Iterator[str]:
    for node in definitions(source):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_MAX_LINES and not isinstance(node, ast.ClassDef):
            yield source.at(node, f"{node.name} has {lines} lines")


def test_functions_are_short() -> None:
    report(long_functions, f"a function has at most {FUNCTION_MAX_LINES} lines", *PACKAGE)


def empty_names(source: Source) -> Iterator[str]:
    for part in source.parts:
        if found := words(part) & MODULE_WORDS:
            yield f"{source.name}: a module called {', '.join(sorted(found))}"
    for node in definitions(source):
        if found := words(node.name) & NAME_WORDS:
            yield source.at(node, f"{node.name} is called {', '.join(sorted(found))}")


def test_names_say_something() -> None:
    report(empty_names, "a name says what the thing is or does", "", *PACKAGE, "scripts")


def undocumented(source: Source) -> Iterator[str]:
    stem = source.parts[-1]
    public = stem == "__init__" or not stem.startswith("_")
    if public and not (ast.get_docstring(source.tree) or "").strip():
        yield f"{source.name}: no docstring"


def test_modules_say_what_they_are() -> None:
    wanted = "every public module begins with its role and its invariant"
    report(undocumented, wanted, "", *PACKAGE, "scripts")


# --- running the rules, and breaking them


def test_the_walk_finds_the_house() -> None:
    assert {source.parts[0] for source in sources("", *PACKAGE)} >= {"__init__", *PACKAGE}
    assert DISK in [source.parts for source in sources("store")]


LONG_FUNCTION = "def read() -> None:\n" + "    step()\n" * FUNCTION_MAX_LINES


BROKEN: list[tuple[Rule, str, str]] = [
    (long_files, "store/artifacts/put.py", "step()\n" * (FILE_MAX_LINES + 1)),
    (long_functions, "store/artifacts/put.py", LONG_FUNCTION),
    (
        long_functions,
        "store/artifacts/put.py",
        "class Put:\n" + "".join(f"    {line}\n" for line in LONG_FUNCTION.split("\n")),
    ),
    (empty_names, "store/utils.py", ""),
    (empty_names, "store/common/digest.py", ""),
    (empty_names, "store/blob_entry.py", ""),
    (empty_names, "store/artifacts/put.py", "class LeaseManager: ..."),
    (empty_names, "store/artifacts/put.py", "async def put_helper(): ..."),
    (undocumented, "store/artifacts/put.py", "VERB = 'put'"),
    (undocumented, "store/tiers/__init__.py", ""),
]


SOUND: list[tuple[Rule, str, str]] = [
    (long_files, "store/artifacts/put.py", "step()\n" * FILE_MAX_LINES),
    (long_functions, "store/artifacts/put.py", LONG_FUNCTION.removesuffix("    step()\n")),
    (empty_names, "store/database.py", "def items(): ...\ndef common_prefix(): ...\nclass Database: ..."),
    (undocumented, "store/artifacts/put.py", '"""Put."""'),
    (undocumented, "store/_table.py", ""),
]


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_rule_sees_an_offence(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))), f"{rule.__name__} sees nothing wrong in {name}:\n{text}"


@pytest.mark.parametrize(("rule", "name", "text"), SOUND)
def test_rule_lets_sound_code_pass(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))) == []
