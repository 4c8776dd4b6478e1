"""The sources of the house, parsed, and the report of a rule over them.

A rule is a function from one source file to its offences. It runs over the whole tree, and over snippets that break it
on purpose, because a rule that cannot fail guards nothing.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ("cli", "store", "formats")


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its path under the root as parts without the suffix, its text, and its tree."""

    parts: tuple[str, ...]
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return "/".join(self.parts) + ".py"

    def at(self, node: ast.expr | ast.stmt | ast.alias, said: str) -> str:
        return f"{self.name}:{node.lineno}: {said}"


Rule = Callable[[Source], Iterator[str]]


def parse(name: str, text: str) -> Source:
    return Source(tuple(name.removesuffix(".py").split("/")), text, ast.parse(text, name))


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Return every Python file in these folders; the empty name stands for the root's own `__init__.py`."""
    paths = [path for folder in folders if folder for path in sorted((ROOT / folder).rglob("*.py"))]
    if "" in folders and (ROOT / "__init__.py").exists():
        paths.append(ROOT / "__init__.py")
    present = [path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts]
    return tuple(parse(name, (ROOT / name).read_text("utf-8")) for name in present)


def imports(source: Source) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yield each thing imported, wherever in the file, as a dotted name: `from a.b import c` gives `a.b.c`.

    What belongs to this project begins with `arstore.`, however it was written.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = ["arstore", *source.parts[: -node.level]] if node.level else []
            module = [*home, *(node.module or "").split(".")] if node.module else home
            yield from ((node, ".".join([*module, alias.name])) for alias in node.names)


def within(name: str, *modules: str) -> bool:
    """Return whether a dotted name is one of these modules or lies in one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


DISK = ("store", "disk")


def calls(source: Source) -> Iterator[ast.Call]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))


def constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def report(rule: Rule, wanted: str, *folders: str) -> None:
    offences = [offence for source in sources(*folders) for offence in rule(source)]
    if offences:
        pytest.fail("\n  ".join([wanted, *offences]), pytrace=False)
