"""Imports run down the order of the wings, in no circle, and formats/ knows nothing above it."""

import ast
from collections.abc import Container, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.house import PACKAGE, Rule, Source, imports, parse, report, sources, within

# --- wings


# From the ground up. A wing may import from the wings before it, never from one after it. Names on one line stand
# beside each other: neither imports the other.
ORDER = (
    ("formats",),
    (
        "store/errors",
        "store/disk",
        "store/locks",
        "store/reserve",
        "store/config",
        "store/progress",
        "store/quantities",
        "store/user_file",
        "store/workers",
        "store/libc",
        "store/outputs",
    ),
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
def test_a_circle_of_imports_is_seen(files: dict[str, str]) -> None:
    assert list(circles([parse(name, text) for name, text in files.items()]))


@pytest.mark.parametrize("files", NO_CIRCLES)
def test_imports_that_run_downward_are_no_circle(files: dict[str, str]) -> None:
    assert list(circles([parse(name, text) for name, text in files.items()])) == []


# --- formats/ is pure


def formats_imports_rooms(source: Source) -> Iterator[str]:
    for node, name in imports(source):
        if within(name, "arstore") and not within(name, "arstore.formats"):
            yield source.at(node, f"imports {name}")


def test_formats_knows_nothing_above_it() -> None:
    report(formats_imports_rooms, "formats/ imports nothing of arstore but formats/", "formats")


# --- the reader that is written from FORMAT.md alone


def spec_reader_imports_the_product(source: Source) -> Iterator[str]:
    if source.parts[-1].startswith("spec_"):
        for node, name in imports(source):
            if within(name, "arstore") or (within(name, "tests") and not name.startswith("tests.support.spec_")):
                yield source.at(node, f"imports {name}")


def test_the_spec_reader_knows_nothing_of_the_product() -> None:
    report(spec_reader_imports_the_product, "the reader of FORMAT.md imports nothing of arstore", "tests/support")


# --- running the rules, and breaking them


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
    (spec_reader_imports_the_product, "tests/support/spec_keys.py", "from arstore.formats.record import Header"),
    (spec_reader_imports_the_product, "tests/support/spec_keys.py", "def opened():\n    import arstore"),
    (spec_reader_imports_the_product, "tests/support/spec_keys.py", "from tests.support.keyed import opens"),
]


SOUND: list[tuple[Rule, str, str]] = [
    (spec_reader_imports_the_product, "tests/support/spec_keys.py", "from tests.support.spec_records import need"),
    (spec_reader_imports_the_product, "tests/support/keyed.py", "from arstore.store.store import Store"),
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
]


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_rule_sees_an_offence(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))), f"{rule.__name__} sees nothing wrong in {name}:\n{text}"


@pytest.mark.parametrize(("rule", "name", "text"), SOUND)
def test_rule_lets_sound_code_pass(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))) == []
