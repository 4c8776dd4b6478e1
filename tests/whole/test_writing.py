"""Only `store/disk.py` writes to a disk, and formats/ reaches nothing outside of memory."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.house import DISK, PACKAGE, Rule, Source, calls, constant, imports, parse, report, within

# --- formats/ is pure


# What reaches a clock, a disk, a socket or chance. Where BytesIO is meant, bytes and memoryview do.
IMPURE = (
    "os", "io", "time", "random", "secrets", "uuid", "tempfile", "shutil", "glob", "fileinput", "mmap",
    "socket", "subprocess", "multiprocessing", "asyncio", "logging", "ctypes",
)  # fmt: skip


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


# --- running the rules, and breaking them


BROKEN: list[tuple[Rule, str, str]] = [
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
]


SOUND: list[tuple[Rule, str, str]] = [
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
]


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_rule_sees_an_offence(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))), f"{rule.__name__} sees nothing wrong in {name}:\n{text}"


@pytest.mark.parametrize(("rule", "name", "text"), SOUND)
def test_rule_lets_sound_code_pass(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse(name, text))) == []
