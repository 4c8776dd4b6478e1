"""Nothing heavy loads at the start, and no bytes of a model file are run as code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.house import PACKAGE, Rule, Source, calls, constant, imports, parse, report, within

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


BROKEN: list[tuple[Rule, str, str]] = [
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
