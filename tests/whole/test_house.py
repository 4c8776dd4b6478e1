"""The house: imports run downward, rooms stay small, one room writes, nothing heavy loads at the start.

Every rule is a function from one source file to its offences. It runs over the whole tree, and over
snippets that break it on purpose, because a rule that cannot fail guards nothing.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ("cli", "store", "formats")

FILE_MAX_LINES = 300
FUNCTION_MAX_LINES = 50


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


# --- what a file imports


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


# --- wings

# From the ground up. A wing may import from the wings before it, never from one after it. Names on one line stand
# beside each other: neither imports the other.
ORDER = (
    ("formats",),
    ("store/errors", "store/disk", "store/config", "store/progress", "store/quantities", "store/workers", "store/libc"),
    ("store/keys",),
    ("store/catalog",),
    ("store/segments",),
    ("store/artifacts",),
    ("store/parts", "store/init"),
    ("store/kv", "store/plan"),
    ("store/tiers",),
    ("store/staging",),
    ("store/maintenance",),
    ("store/store",),
    ("store/access",),
    ("",),  # the root's own `__init__.py`, which re-exports from below
    ("store/engines",),
    ("cli",),
)
GROUND = 1
BESIDE = {frozenset(("store/kv", "store/plan")), frozenset(("store/parts", "store/init"))}


def wing(parts: tuple[str, ...]) -> str:
    """Return the wing of a module, or of a name in one, given as parts under the root.

    A folder's `__init__.py` runs before all modules in it, so `store/__init__.py` counts as the ground.
    """
    if parts[:1] in (("formats",), ("cli",)):
        return parts[0]
    if parts[:1] != ("store",):
        return ""
    room = "/".join(parts[:2])
    return room if any(room in names for names in ORDER) else "store/errors" if len(parts) < 3 else room


def floor(name: str) -> int:
    """Return how high a wing stands; a wing that the order does not name stands above all."""
    return next((height for height, names in enumerate(ORDER) if name in names), len(ORDER))


def imports_upward(source: Source) -> Iterator[str]:
    here = wing(source.parts)
    for node, name in imports(source):
        if not within(name, "arstore"):
            continue
        there = wing(tuple(name.split(".")[1:]))
        if floor(there) > floor(here) or frozenset((here, there)) in BESIDE:
            yield source.at(node, f"{here or 'arstore'} imports {name}, which does not stand below it")


def test_imports_run_downward() -> None:
    report(imports_upward, f"imports run down the order of the wings only: {ORDER}", "", *PACKAGE)


def test_the_order_names_every_wing() -> None:
    standing = {"/".join(source.parts[:2]) for source in sources("store") if source.parts != ("store", "__init__")}
    assert standing == {name for names in ORDER for name in names if name.startswith("store/")}


def test_every_wing_says_what_it_is_for() -> None:
    for source in sources("store", "formats"):
        if source.parts[-1] == "__init__" and source.parts != ("store", "__init__"):
            said = ast.get_docstring(source.tree) or ""
            assert "Start reading at" in said, f"{source.name} does not say where to start reading"
            assert "mports only" in said, f"{source.name} does not say what the wing may import"


# --- no circles


def circles(present: Sequence[Source]) -> Iterator[str]:
    """Yield a circle of imports between these files, if there is one, as `a -> b -> a`.

    An import counts wherever it stands: in a function, or for types only.
    """
    names = {dotted(source): source for source in present}
    needs: dict[str, set[str]] = {}
    for name, source in names.items():
        imported = (found.removeprefix("arstore.scripts.") for _, found in imports(source))
        needs[name] = {module for found in imported if (module := owner_of(found, names))}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        yield " -> ".join(reversed(error.args[1]))


def dotted(source: Source) -> str:
    """Return the name by which a module is imported. Programs have scripts/ itself on their path."""
    parts = source.parts[1:] if source.parts[0] == "scripts" else ("arstore", *source.parts)
    return ".".join(parts).removesuffix(".__init__")


def owner_of(name: str, modules: Container[str]) -> str | None:
    """Return the module that a dotted name is or is taken from, or None if it is none of these."""
    parts = name.split(".")
    longest_first = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((module for module in longest_first if module in modules), None)


def test_the_package_imports_in_no_circle() -> None:
    # A folder's `__init__.py` imports nothing of its own folder, and `from .. import name` may only mean the folder.
    present = [source for source in sources(*PACKAGE) if source.parts[-1] != "__init__"]
    assert list(circles(present)) == [], "what two modules need from each other goes into a third, below both"
    above = parse("store/keys/keytree.py", "def f():\n    from ..segments.records import OpenRecord")
    assert list(circles([*present, above])), "no circle is seen where a low module imports a high one"


def test_scripts_import_in_no_circle() -> None:
    present = sources("scripts")
    assert list(circles(present)) == [], "what two modules need from each other goes into a third, below both"
    above = parse("scripts/golden/primitives.py", "from golden.stores import Store")
    assert list(circles([*present, above])), "no circle is seen where the lowest module imports the highest"


CIRCLES: list[dict[str, str]] = [
    {"store/keys/a.py": "from .b import x", "store/keys/b.py": "import arstore.store.keys.a"},
    {"scripts/golden/keys.py": "from golden.keys import page"},
    {"scripts/golden/keys.py": "from golden.stores import Store", "scripts/golden/stores.py": "import golden.keys"},
    {"scripts/bench.py": "def main():\n    from benchmark import rows", "scripts/benchmark/rows.py": "import bench"},
    {
        "scripts/golden/keys.py": "if TYPE_CHECKING:\n    from golden.stores import Store",
        "scripts/golden/stores.py": "from golden.kv import Sequence",
        "scripts/golden/kv.py": "from golden.keys import Ref",
    },
    {"scripts/benchmark/rows.py": "from .table import wide", "scripts/benchmark/table.py": "from . import rows"},
    {"scripts/benchmark/__init__.py": "from .rows import Row", "scripts/benchmark/rows.py": "from . import GIB"},
]

NO_CIRCLES: list[dict[str, str]] = [
    {
        "scripts/golden/stores.py": "from golden.keys import Ref\nfrom golden.rows import Place",
        "scripts/golden/keys.py": "from golden.sheets import Built",
        "scripts/golden/rows.py": "from golden.sheets import Built",
        "scripts/golden/sheets.py": "from dataclasses import dataclass",
    },
    {
        "scripts/benchmark/__init__.py": "GIB = 1 << 30",
        "scripts/benchmark/rows.py": "from . import GIB",
        "scripts/benchmark/programs/rows.py": "from ..rows import Row\nfrom benchmark import GIB",
    },
]


@pytest.mark.parametrize("files", CIRCLES)
def test_a_circle_is_seen(files: dict[str, str]) -> None:
    assert list(circles([parse(name, text) for name, text in files.items()]))


@pytest.mark.parametrize("files", NO_CIRCLES)
def test_what_runs_downward_is_no_circle(files: dict[str, str]) -> None:
    assert list(circles([parse(name, text) for name, text in files.items()])) == []


# --- formats/ is pure

# What reaches a clock, a disk, a socket or chance. Where BytesIO is meant, bytes and memoryview do.
IMPURE = (
    "os", "io", "time", "random", "secrets", "uuid", "tempfile", "shutil", "glob", "fileinput", "mmap",
    "socket", "subprocess", "multiprocessing", "asyncio", "logging", "ctypes",
)  # fmt: skip


def formats_imports_rooms(source: Source) -> Iterator[str]:
    for node, name in imports(source):
        if within(name, "arstore") and not within(name, "arstore.formats"):
            yield source.at(node, f"imports {name}")


def test_formats_knows_nothing_above_it() -> None:
    report(formats_imports_rooms, "formats/ imports nothing of arstore but formats/", "formats")


def impurities(source: Source) -> Iterator[str]:
    for node, name in imports(source):
        if within(name, *IMPURE):
            yield source.at(node, f"imports {name}")
        elif within(name, "pathlib") and not name.startswith("pathlib.Pure"):
            yield source.at(node, f"imports {name}; only PurePath and PurePosixPath touch no disk")
    for call in calls(source):
        if isinstance(call.func, ast.Name) and call.func.id in ("open", "print", "input"):
            yield source.at(call, f"calls {call.func.id}()")


def test_formats_is_pure() -> None:
    report(impurities, "formats/ has no I/O, clock or randomness: they arrive as arguments", "formats")


# --- one room writes

DISK = ("store", "disk")
OS_WRITES = {
    "write", "writev", "pwrite", "pwritev", "copy_file_range", "fsync", "fdatasync", "sync", "rename",
    "renames", "replace", "unlink", "remove", "removedirs", "link", "symlink", "mkdir", "makedirs", "rmdir",
    "mkfifo", "mknod", "truncate", "ftruncate", "posix_fallocate", "chmod", "fchmod", "lchmod", "chown",
    "fchown", "lchown", "utime", "setxattr", "removexattr", "O_WRONLY", "O_CREAT", "O_TRUNC", "O_APPEND",
    "O_TMPFILE",
}  # fmt: skip
# Methods by which objects of other modules write files.
METHOD_WRITES = {"write_text", "write_bytes", "symlink_to", "hardlink_to", "tofile", "save_file"}
# Methods of Path that others may have too, by how many positional arguments Path's own takes: a catalog's
# touch(ids) or disk.rename(old, new) is not Path's, and neither is bytes.replace(old, new).
PATH_WRITES = {"unlink": 0, "rmdir": 0, "touch": 0, "mkdir": 0, "rename": 1, "replace": 1, "chmod": 1}
PATH_KEYWORDS = {"missing_ok", "exist_ok", "parents", "mode", "follow_symlinks"}
MODE = re.compile(r"[rwaxbtU+]{1,4}")


def calls(source: Source) -> Iterator[ast.Call]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.Call))


def constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def is_name(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def opens_for_writing(call: ast.Call) -> str | None:
    """Return what is wrong with a call of `open`, the builtin or a method, or None where it only reads."""
    if is_name(call.func, {"open"}):
        modes = call.args[1:2]
        known = True
    elif isinstance(call.func, ast.Attribute) and call.func.attr in ("open", "fdopen"):
        modes = [mode for mode in call.args[:2] if MODE.fullmatch(str(constant(mode)))]
        known = False
    else:
        return None
    modes = [*modes, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    for mode in modes:
        text = constant(mode)
        if isinstance(text, str) and set(text) & set("wax+"):
            return f"opens with mode {text!r}"
        if known and not isinstance(text, str):
            return "opens with a mode that can't be read here"
    return None


def writes_by_method(call: ast.Call) -> str | None:
    """Return the method by which a call changes a disk, judged by its name and the shape of its arguments."""
    if not isinstance(call.func, ast.Attribute):
        return None
    method, receiver = call.func.attr, call.func.value
    if method in METHOD_WRITES:
        return method
    if method not in PATH_WRITES:
        return None
    if is_name(receiver, {"Path"}):
        return f"Path.{method}"
    if method == "mkdir" and len(call.args) == 1 and isinstance(constant(call.args[0]), int):
        return method
    keywords = [keyword.arg for keyword in call.keywords]
    as_path = len(call.args) + keywords.count("target") == PATH_WRITES[method]
    return method if as_path and set(keywords) <= PATH_KEYWORDS | {"target"} else None


def writes(source: Source) -> Iterator[str]:
    os_names = {"os", "posix"}
    aliases = set(os_names)
    for node, name in imports(source):
        head, _, member = name.partition(".")
        if head in ("shutil", "tempfile") or (head in os_names and member in OS_WRITES | {"*"}):
            yield source.at(node, f"imports {name}")
        elif head in os_names and not member:
            aliases |= {alias.asname for alias in node.names if alias.asname and alias.name == name}
    for used in ast.walk(source.tree):
        if isinstance(used, ast.Attribute) and used.attr in OS_WRITES and is_name(used.value, aliases):
            yield source.at(used, f"os.{used.attr}")
    for call in calls(source):
        if said := opens_for_writing(call) or writes_by_method(call):
            yield source.at(call, said)


def writes_outside_disk(source: Source) -> Iterator[str]:
    return iter(()) if source.parts == DISK else writes(source)


def test_only_disk_writes() -> None:
    wanted = "what changes a disk goes through store/disk.py, where faults are injected"
    report(writes_outside_disk, wanted, *PACKAGE)


# --- sizes and names

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


# --- what may not be loaded

HEAVY = ("torch", "numpy", "matplotlib", "safetensors.torch", "safetensors.numpy")
CODE_FROM_BYTES = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve")


def for_types_only(node: ast.AST) -> bool:
    """Return whether this is `if TYPE_CHECKING:`, whose body never runs."""
    test = node.test if isinstance(node, ast.If) else None
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when the module is imported: everything but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and for_types_only(child):
            for late in child.orelse:
                yield late
                yield from run_at_import(late)
            continue
        yield child
        yield from run_at_import(child)


def heavy_imports(source: Source) -> Iterator[str]:
    at_import = set(run_at_import(source.tree))
    for node, name in imports(source):
        if node in at_import and within(name, *HEAVY):
            yield source.at(node, f"imports {name} when it is itself imported")


def test_nothing_heavy_is_imported_by_a_module() -> None:
    wanted = "torch and the like are imported inside functions: torch alone takes a second, 'arstore ls' 0.2"
    report(heavy_imports, wanted, "", *PACKAGE, "scripts")


def runs_bytes(source: Source) -> Iterator[str]:
    for node, name in imports(source):
        if within(name, *CODE_FROM_BYTES, "builtins.eval", "builtins.exec"):
            yield source.at(node, f"imports {name}")
    for call in calls(source):
        name = ast.unparse(call.func)
        if name in ("eval", "exec", "builtins.eval", "builtins.exec", "torch.load", "__import__"):
            yield source.at(call, f"calls {name}")
        pickles = [constant(keyword.value) for keyword in call.keywords if keyword.arg == "allow_pickle"]
        if pickles not in ([], [False]):
            yield source.at(call, f"{name} may unpickle")


def test_no_bytes_are_run_as_code() -> None:
    wanted = "what a model file holds is never run: no pickle, marshal, eval, exec"
    report(runs_bytes, wanted, "", *PACKAGE, "scripts")


IMPORTTIME = re.compile(r"^import time:[^|]*\|[^|]*\|\s*(\S+)\s*$", re.MULTILINE)


def loaded_heavy(importtime: str) -> list[str]:
    return [name for name in IMPORTTIME.findall(importtime) if within(name, *HEAVY)]


def importtime(statement: str, cwd: Path) -> str:
    command = [sys.executable, "-X", "importtime", "-c", statement]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"'{statement}' failed:\n{done.stderr[-2000:]}"
    return done.stderr


@pytest.mark.parametrize("module", ["arstore", "arstore.cli.main"])
def test_import_loads_nothing_heavy(module: str, tmp_path: Path) -> None:
    said = importtime(f"import {module}", tmp_path)
    assert module in IMPORTTIME.findall(said), "the report of -X importtime was not understood"
    assert loaded_heavy(said) == [], f"importing {module} loads what must wait for its use"


def test_importtime_sees_what_is_heavy(tmp_path: Path) -> None:
    assert "numpy" in loaded_heavy(importtime("import numpy", tmp_path))


# --- running the rules, and breaking them


def report(rule: Rule, wanted: str, *folders: str) -> None:
    offences = [offence for source in sources(*folders) for offence in rule(source)]
    if offences:
        pytest.fail("\n  ".join([wanted, *offences]), pytrace=False)


def test_the_walk_finds_the_house() -> None:
    assert {source.parts[0] for source in sources("", *PACKAGE)} >= {"__init__", *PACKAGE}
    assert DISK in [source.parts for source in sources("store")]


LONG_FUNCTION = "def read() -> None:\n" + "    step()\n" * FUNCTION_MAX_LINES

BROKEN: list[tuple[Rule, str, str]] = [
    (imports_upward, "formats/frames.py", "from ..store import disk"),
    (imports_upward, "formats/frames.py", "from .. import cli"),
    (imports_upward, "formats/frames.py", "import arstore"),
    (imports_upward, "formats/readers/sniff.py", "from ...store.errors import BadInput"),
    (imports_upward, "store/disk.py", "from .segments import records"),
    (imports_upward, "store/workers.py", "from .keys.keyring import Keyring"),
    (imports_upward, "store/__init__.py", "from .store import Store"),
    (imports_upward, "store/errors.py", "from .catalog.catalog import Catalog"),
    (imports_upward, "store/keys/keyring.py", "from ..catalog.tables import Tables"),
    (imports_upward, "store/segments/fetch.py", "def read():\n    from ..artifacts import put"),
    (imports_upward, "store/segments/fetch.py", "import arstore.store.artifacts.put"),
    (imports_upward, "store/artifacts/put.py", "from ..parts import Parts"),
    (imports_upward, "store/artifacts/artifact.py", "from ..kv.prefix import Prefix"),
    (imports_upward, "store/plan/job.py", "from ..kv.identity import complete"),
    (imports_upward, "store/kv/kv.py", "from ..plan.model import BLOCK"),
    (imports_upward, "store/tiers/local.py", "from ..staging.run import Run"),
    (imports_upward, "store/tiers/local.py", "from ...store.store import Store"),
    (imports_upward, "store/staging/arenas.py", "from ..maintenance.heal import heal"),
    (imports_upward, "store/maintenance/heal.py", "from ..store import Store"),
    (imports_upward, "store/artifacts/put.py", "from arstore import Store"),
    (imports_upward, "store/store.py", "from ..cli.render import table"),
    (imports_upward, "store/store.py", "from .engines import vllm"),
    (imports_upward, "store/store.py", "if TYPE_CHECKING:\n    from arstore.cli import main"),
    (imports_upward, "__init__.py", "from arstore.cli.main import main"),
    (imports_upward, "store/keys/keyring.py", "from ..attic.box import Box"),
    (formats_imports_rooms, "formats/frames.py", "from ..store.errors import Corrupt"),
    (formats_imports_rooms, "formats/frames.py", "from arstore import Store"),
    (impurities, "formats/frames.py", "import os.path"),
    (impurities, "formats/frames.py", "from io import BytesIO"),
    (impurities, "formats/frames.py", "def now():\n    from time import time"),
    (impurities, "formats/frames.py", "import secrets, struct"),
    (impurities, "formats/frames.py", "from random import random as chance"),
    (impurities, "formats/frames.py", "from pathlib import Path"),
    (impurities, "formats/frames.py", "open(path, 'rb')"),
    (writes_outside_disk, "store/segments/writer.py", "os.pwrite(fd, b'', 0)"),
    (writes_outside_disk, "store/segments/writer.py", "import os as system\nsystem.fsync(fd)"),
    (writes_outside_disk, "store/segments/writer.py", "from os import replace"),
    (writes_outside_disk, "store/segments/writer.py", "rename = os.rename"),
    (writes_outside_disk, "store/segments/writer.py", "os.open(path, os.O_RDWR | os.O_CREAT)"),
    (writes_outside_disk, "store/tiers/disk.py", "os.unlink(path)"),
    (writes_outside_disk, "cli/main.py", "import shutil"),
    (writes_outside_disk, "cli/main.py", "from tempfile import mkdtemp"),
    (writes_outside_disk, "cli/main.py", "open(path, 'w')"),
    (writes_outside_disk, "cli/main.py", "open(path, mode='r+b')"),
    (writes_outside_disk, "cli/main.py", "open(path, mode)"),
    (writes_outside_disk, "cli/main.py", "path.open('ab')"),
    (writes_outside_disk, "cli/main.py", "io.open(path, 'xb')"),
    (writes_outside_disk, "cli/main.py", "os.fdopen(fd, 'wb')"),
    (writes_outside_disk, "cli/main.py", "path.write_bytes(b'')"),
    (writes_outside_disk, "cli/main.py", "path.unlink(missing_ok=True)"),
    (writes_outside_disk, "cli/main.py", "(path / 'x').mkdir(parents=True)"),
    (writes_outside_disk, "cli/main.py", "path.mkdir(0o700)"),
    (writes_outside_disk, "cli/main.py", "path.rename(other)"),
    (writes_outside_disk, "cli/main.py", "path.replace(target=other)"),
    (writes_outside_disk, "cli/main.py", "path.rmdir()"),
    (writes_outside_disk, "cli/main.py", "path.touch()"),
    (writes_outside_disk, "cli/main.py", "path.chmod(0o600)"),
    (writes_outside_disk, "cli/main.py", "Path.replace(old, new)"),
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
    (heavy_imports, "formats/tensor.py", "import numpy as np"),
    (heavy_imports, "cli/plot.py", "from matplotlib.figure import Figure"),
    (
        heavy_imports,
        "formats/tensor.py",
        "try:\n    from torch.cuda import Stream\nexcept ImportError:\n    pass",
    ),
    (heavy_imports, "formats/tensor.py", "class Tensor:\n    import torch"),
    (heavy_imports, "formats/tensor.py", "from safetensors.torch import load"),
    (heavy_imports, "formats/tensor.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch"),
    (runs_bytes, "formats/readers/torch_file.py", "import pickle"),
    (runs_bytes, "formats/readers/torch_file.py", "def load():\n    from marshal import loads"),
    (runs_bytes, "formats/readers/torch_file.py", "eval(text)"),
    (runs_bytes, "formats/readers/torch_file.py", "exec(text)"),
    (runs_bytes, "formats/readers/torch_file.py", "torch.load(path)"),
    (runs_bytes, "formats/readers/torch_file.py", "np.load(path, allow_pickle=True)"),
]

SOUND: list[tuple[Rule, str, str]] = [
    (
        imports_upward,
        "cli/put.py",
        "from ..store.store import Store\nfrom arstore import open_store\nimport lmdb",
    ),
    (
        imports_upward,
        "store/store.py",
        "from .artifacts.put import put\nfrom . import errors\nfrom ..formats import frames",
    ),
    (imports_upward, "store/artifacts/put.py", "from ..catalog.catalog import Catalog\nfrom .names import Names"),
    (imports_upward, "store/engines/vllm.py", "from ..store import Store"),
    (
        imports_upward,
        "store/tiers/local.py",
        "from ..kv.prefix import Prefix\nfrom ..disk import Disk\nfrom ...formats import frames",
    ),
    (imports_upward, "store/disk.py", "from .errors import Corrupt\nfrom ..formats.digest import Digest"),
    (imports_upward, "__init__.py", "from arstore.store.store import Store"),
    (
        formats_imports_rooms,
        "formats/frames.py",
        "from . import digest\nfrom .errors import FormatError\nimport struct",
    ),
    (impurities, "formats/tree.py", "import timeit_like\nfrom pathlib import PurePosixPath\nlease.open(1)"),
    (writes_outside_disk, "store/disk.py", "os.fsync(fd)"),
    (
        writes_outside_disk,
        "store/artifacts/put.py",
        "os.fstat(fd)\nopen(path)\nopen(path, 'rb')\npath.open()\npath.open('rb')",
    ),
    (writes_outside_disk, "store/artifacts/put.py", "name.replace('a', 'b')\ndisk.rename(old, new)\ndisk.mkdir(path)"),
    (
        writes_outside_disk,
        "store/artifacts/put.py",
        "disk.unlink(path)\ncatalog.touch(ids)\nlmdb.open(path)\nreplace(row, at=1)",
    ),
    (
        writes_outside_disk,
        "store/artifacts/put.py",
        "import os.path\nfrom os import fstat\nout.write(b'')\nmoment.replace(hour=1)",
    ),
    (long_files, "store/artifacts/put.py", "step()\n" * FILE_MAX_LINES),
    (long_functions, "store/artifacts/put.py", LONG_FUNCTION.removesuffix("    step()\n")),
    (empty_names, "store/database.py", "def items(): ...\ndef common_prefix(): ...\nclass Database: ..."),
    (undocumented, "store/artifacts/put.py", '"""Put."""'),
    (undocumented, "store/_table.py", ""),
    (
        heavy_imports,
        "formats/tensor.py",
        "def load():\n    import torch\nimport numpydoc\nimport safetensors",
    ),
    (heavy_imports, "formats/tensor.py", "if typing.TYPE_CHECKING:\n    import torch"),
    (
        runs_bytes,
        "formats/readers/torch_file.py",
        "import pickletools\nmodel.eval()\nre.compile(x)\nnp.load(x, allow_pickle=False)",
    ),
]


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_rule_sees_an_offence(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))), f"{rule.__name__} sees nothing wrong in {name}:\n{text}"


@pytest.mark.parametrize(("rule", "name", "text"), SOUND)
def test_rule_lets_sound_code_pass(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))) == []
