"""The design page of the store: every file that it names is there, none is left out, and its walks are what happens."""

import ast
import inspect
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from arstore.store.access import create_store
from arstore.store.disk import Disk
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.retention import Retention
from arstore.store.store import Store

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "store"
PAGE = STORE / "DESIGN.md"
WINGS = sorted(path.parent.name for path in STORE.glob("*/__init__.py"))


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def gone(text: str) -> list[str]:
    """Return the files that a text names by folder, and that are neither in the store nor at the root."""
    named = set(re.findall(r"\b[a-z_]+/[a-z_/]+\.(?:py|md)\b", text))
    return sorted(name for name in named if not (STORE / name).exists() and not (ROOT / name).exists())


def listed(page: str) -> set[str]:
    """Return the files that the list of wings gives: `wing/file.py`, and `file.py` of the ground and the drawing."""
    wings = re.findall(r"^- \*\*(\w+)/?\*\* (.+?)(?=^- \*\*|^\n|\Z)", page, re.MULTILINE | re.DOTALL)
    files = {f"{wing}/{name}" for wing, rest in wings if wing != "ground" for name in re.findall(r"`(\w+\.py)`", rest)}
    ground = {name for wing, rest in wings if wing == "ground" for name in re.findall(r"`(\w+\.py)`", rest)}
    return files | ground


def walk(page: str, name: str) -> list[str]:
    """Return the files of one walk, step by step."""
    block = re.search(rf"^### {name}$.*?^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block, f"there is no walk of {name}"
    return [line.split()[0] for line in block[1].splitlines()]


def defined(folder: Path) -> set[str]:
    """Return the modules of a wing, and every name that is defined in one."""
    trees = [ast.parse(text_of(path)) for path in folder.glob("*.py")]
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {path.stem for path in folder.glob("*.py")} | {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)
    }


def test_every_file_that_the_page_names_is_there() -> None:
    assert gone(text_of(PAGE)) == []
    assert gone(text_of(ROOT / "formats" / "FORMAT.md")) == []


def test_the_list_of_wings_is_the_store() -> None:
    standing = {path.relative_to(STORE).as_posix() for path in STORE.rglob("*.py") if path.name != "__init__.py"}
    drawn = {"access.py", "store.py", "parts.py", "init.py"}
    page = text_of(PAGE)
    assert [name for name in drawn if name not in page] == []
    assert listed(page) | drawn == standing


@pytest.mark.parametrize("wing", WINGS)
def test_what_a_wing_says_of_itself_is_there(wing: str) -> None:
    words = ast.get_docstring(ast.parse(text_of(STORE / wing / "__init__.py"))) or ""
    assert gone(words) == []
    named = {word.removesuffix(".py") for word in re.findall(r"`(\w+(?:\.py)?)`", words)}
    assert named - defined(STORE / wing) - {path.stem for path in STORE.glob("*.py")} == set()


def test_docstrings_and_comments_name_files_that_are_there() -> None:
    standing = {path.name for folder in ("cli", "formats", "store") for path in (ROOT / folder).rglob("*.py")}
    offences = [
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for folder in ("formats", "store")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(text_of(path).splitlines(), 1)
        for name in re.findall(r"\b[a-z_]+\.py\b", line)
        if name not in standing
    ]
    assert offences == []


def test_a_file_that_is_gone_is_seen() -> None:
    assert gone("see `segments/writer.py`, `formats/FORMAT.md` and `tests/support/tier_suite.py`") == []
    assert gone("see `segments/supply.py`") == ["segments/supply.py"]
    assert "segments/writer.py" in listed(text_of(PAGE))
    assert "writer" in defined(STORE / "segments")


# --- the walks, beside what the code does


class Died(BaseException):
    """The process is gone, as far as the disk is concerned."""


class DiesBeforeCommit(Disk):
    """Dies when a segment is to be synced: blobs are written, nothing is committed, and the loan of keys stands."""

    def sync(self, fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".seg"):
            raise Died
        super().sync(fd)

    def truncate(self, fd: int, length: int) -> None:
        raise Died


def write_model(path: Path) -> Path:
    """Write a model of two tensors in random bytes."""
    path.mkdir()
    row = {"dtype": "F32", "shape": [64, 64]}
    header = json.dumps({f"t{n}": row | {"data_offsets": [n << 14, (n + 1) << 14]} for n in range(2)}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + os.urandom(2 << 14))
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def files_called(perform: Callable[[], object]) -> list[str]:
    """Return the file of each call of a function in the store, on every thread, in order; an import is no call."""
    called: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and "/store/" in code.co_filename:
            called.append(os.path.realpath(code.co_filename))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        perform()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return [Path(name).relative_to(STORE).as_posix() for name in called if name.startswith(f"{STORE}/")]


def first_untrue(steps: list[str], called: list[str]) -> str | None:
    """Return the first step of a walk that does not come in its order; None if all do."""
    calls = iter(called)
    return next((f"step {number}: {step}" for number, step in enumerate(steps, 1) if step not in calls), None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Give a store with two versions of a name, another version that was removed, and what a killed put left."""
    root = tmp_path / "store"
    create_store(root, key_file=tmp_path / "key")
    with Store(root, disk=DiesBeforeCommit()) as dying, suppress(Died):
        dying.put(write_model(tmp_path / "killed"), name="killed")
    with Store(root) as opened:
        for name in ("one", "two"):
            opened.put(write_model(tmp_path / name), name="model")
        opened.put(write_model(tmp_path / "gone"), name="gone", kind="file")  # in a segment of its own
        opened.rm("gone")
    with Store(root, disk=DiesBeforeCommit()) as dying, suppress(Died):
        dying.put(write_model(tmp_path / "killed again"), name="killed")
    with Store(root) as opened:
        yield opened


@pytest.mark.parametrize("name", ["put", "get", "prefetch", "gc"])
def test_a_walk_is_what_happens(name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(tmp_path))

    def prefetch() -> None:
        with store.prefetch(["model"]) as stage:
            assert len(stage["model"]) == 2

    perform: dict[str, Callable[[], object]] = {
        "put": lambda: store.put(write_model(tmp_path / "new"), name="new"),
        "get": lambda: store.get_to("model", tmp_path / "out"),
        "prefetch": prefetch,
        "gc": lambda: store.gc(AT_ONCE, Retention(keep_last=1)),
    }
    steps, called = walk(text_of(PAGE), name), files_called(perform[name])
    if steps[-1] == "store.py":  # its last line is what is returned
        steps = steps[:-1]
    assert steps[0] == called[0] == "store.py"
    assert first_untrue(steps, called) is None


def test_a_walk_that_is_not_so_is_seen() -> None:
    assert first_untrue(["a.py", "b.py"], ["a.py", "c.py", "b.py"]) is None
    assert first_untrue(["b.py", "a.py"], ["a.py", "c.py", "b.py"]) == "step 2: a.py"
    assert first_untrue(["a.py", "a.py"], ["a.py"]) == "step 2: a.py"
