"""A store to be rebuilt, and what must be in it after."""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import cli

TENANTS = ("default", "guests")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a listing and a get give for one version."""

    tenant: str
    name: str
    version: int
    label: str | None
    id: str
    kind: str
    model: str | None
    length: int
    created: str
    content: bytes


def everything(tmp_path: Path) -> set[Kept]:
    """Read the whole store, through the command line."""
    found = set()
    for tenant in TENANTS:
        for shown in cli("--json", "--tenant", tenant, "ls").json["artifacts"]:
            out = tmp_path / "read-back"
            ref = f"{shown['name']}@{shown['version']}"
            assert cli("--tenant", tenant, "get", ref, out).code == 0
            content = out.read_bytes()
            out.unlink()
            label = cli("--json", "--tenant", tenant, "show", ref).json["label"]
            kept = Kept(
                tenant, shown["name"], shown["version"], label, shown["id"], shown["kind"], shown["model"],
                shown["bytes"], shown["created"], content,
            )  # fmt: skip
            found.add(kept)
    return found


def fill(tmp_path: Path, *init: str) -> Path:
    """Make a store of two tenants with several names, versions and labels, some of them gone again."""
    assert cli("init", *init).code == 0
    assert cli("tenant", "add", "guests").code == 0
    file = tmp_path / "file"
    for tenant in TENANTS:
        for name, content in (
            ("a/one", b"first " * 3000), ("a/one@v2", b"second " * 3000), ("a/one", os.urandom(50_000)),
            ("two", b"first " * 3000), ("gone", os.urandom(40_000)), ("removed", b"removed " * 3000),
        ):  # fmt: skip
            file.write_bytes(content)
            assert cli("--tenant", tenant, "put", file, name, "--model", "m1").code == 0
        if not init:
            assert cli("--tenant", tenant, "erase", "gone").code == 0
        assert cli("--tenant", tenant, "rm", "removed").code == 0
    return tmp_path / "store"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filled")


@pytest.fixture
def root(tmp_path: Path, filled: Path) -> Path:
    """A store that is filled, the same for every test: made once, then copied with its keys."""
    if not (filled / "store").exists():
        fill(tmp_path)
        shutil.copytree(tmp_path, filled, dirs_exist_ok=True)
    else:
        shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return tmp_path / "store"


def remove_file(root: Path) -> None:
    (root / "catalog" / "data.mdb").unlink()


def remove_directory(root: Path) -> None:
    shutil.rmtree(root / "catalog")


def empty(root: Path) -> None:
    (root / "catalog" / "data.mdb").write_bytes(b"")


def garbage(root: Path) -> None:
    size = (root / "catalog" / "data.mdb").stat().st_size
    (root / "catalog" / "data.mdb").write_bytes(random.Random(1).randbytes(size))


def goes_on(tmp_path: Path, root: Path) -> None:
    """Check that a store can be worked with: every verb, and no segment id given twice."""
    segments = {path.name: path.stat().st_ino for path in (root / "segments").iterdir()}
    before = {(kept.tenant, kept.name, kept.version): kept for kept in everything(tmp_path)}
    file = tmp_path / "file"
    for tenant in TENANTS:
        assert cli("--tenant", tenant, "verify", "--deep").code == 0
        file.write_bytes(b"later " * 5000)
        assert cli("--tenant", tenant, "put", file, "later").code == 0
        assert cli("--tenant", tenant, "put", file, "late-weights", "--kind", "intermediate").code == 0
    assert cli("gc", "--grace", "0s").code == 0
    assert cli("gc", "--grace", "0s").code == 0
    for path in (root / "segments").iterdir():
        assert path.stat().st_ino == segments.get(path.name, path.stat().st_ino)
    after = {(kept.tenant, kept.name, kept.version): kept for kept in everything(tmp_path)}
    assert {ref: kept for ref, kept in after.items() if not ref[1].startswith("late")} == before
    for tenant in TENANTS:
        assert cli("--tenant", tenant, "rm", "later").code == 0
        assert cli("--tenant", tenant, "rm", "late-weights").code == 0
        assert cli("--tenant", tenant, "verify", "--deep").code == 0
