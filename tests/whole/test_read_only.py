"""A store that may not be written is read: by --read-only, by its permissions, and on a read-only file system."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore import ReadOnly, open_store
from tests.support.command import Ran, cli
from tests.support.elsewhere import AS_OTHERS, OWN_MOUNTS, run_all, with_mounts, works

KV = ("--tokens", ",".join(map(str, range(32))), "--model", "m", "--revision", "r", "--precision", "f32")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with an artifact and a prefix in it."""
    assert cli("init").code == 0
    (tmp_path / "file").write_bytes(os.urandom(300_000))
    assert cli("put", tmp_path / "file", "model").code == 0
    arrays = {f"layers.0.{part}": np.ones((32, 1, 2), "f4") for part in ("key", "value")}
    save_file(arrays, tmp_path / "kv.safetensors")
    assert cli("kv", "put", tmp_path / "kv.safetensors", "chat", *KV).code == 0
    return tmp_path / "store"


def reading(tmp_path: Path) -> list[tuple[object, ...]]:
    return [
        ("ls",), ("show", "model"), ("get", "model", tmp_path / "out"), ("verify",), ("stats",), ("kv", "match", *KV),
        ("kv", "get", *KV, tmp_path / "kv.out"), ("why-miss", "--kind", "kv", *KV[2:4], "--revision", "other", *KV[6:]),
        ("prefetch", "model"), ("unstage", "--all"), ("tiers",), ("lease", "ls"), ("tenant", "ls"),
        ("rm", "model", "--dry-run"), ("erase", "model", "--dry-run"),
        ("gc", "--dry-run"),
    ]  # fmt: skip


def writing(tmp_path: Path) -> list[tuple[object, ...]]:
    return [
        ("put", tmp_path / "file", "other"), ("kv", "put", tmp_path / "kv.safetensors", "other", *KV), ("rm", "model"),
        ("erase", "model"), ("gc",), ("pin", "model"), ("tag", "model", "other"), ("tenant", "add", "team"),
        ("key", "rotate"), ("repair",), ("repair", "--rebuild-catalog"),
    ]  # fmt: skip


def check(tmp_path: Path, commands: Sequence[Sequence[object]], ran: Sequence[Ran], where: Path) -> None:
    """Assert that what reads worked, and that what writes was refused in one line."""
    for command, done in zip(commands[: len(reading(tmp_path))], ran, strict=False):
        assert done.code == 0, (command, done.err)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes()
    for command, done in zip(commands[len(reading(tmp_path)) :], ran[len(reading(tmp_path)) :], strict=True):
        assert done.code == 1, (command, done)
        assert f"{where}: the store is read-only" in done.error, command


def tree(root: Path) -> dict[str, object]:
    """Return what lies in a directory: of each file its bytes and its time."""
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).digest())
        for path in sorted(root.rglob("*"))
    }


def test_nothing_is_written_if_the_user_says_so(root: Path, tmp_path: Path) -> None:
    before = tree(root)
    commands = [*reading(tmp_path), *writing(tmp_path)]
    check(tmp_path, commands, [cli("--read-only", *command) for command in commands], root)
    assert tree(root) == before


def test_the_library_says_it_too(root: Path, tmp_path: Path) -> None:
    before = tree(root)
    with open_store(read_only=True) as store:
        store.get_to("model", tmp_path / "out")
        with pytest.raises(ReadOnly, match="the store is read-only"):
            store.put(tmp_path / "file", name="other")
        with open_store() as beside:  # another opening of this process may write
            beside.put(tmp_path / "file", name="beside")
        assert [version.summary.name for version in store.ls()] == ["beside", "chat", "model"]
        with pytest.raises(ReadOnly):
            store.rm("beside")
    assert tree(root) != before


@pytest.mark.skipif(bool(AS_OTHERS) and not works(*AS_OTHERS, "true"), reason="root can't give up its rights here")
def test_files_that_may_only_be_read(root: Path, tmp_path: Path) -> None:
    before = tree(root)
    every = [root, *root.rglob("*")]
    for path in every:
        path.chmod(0o555 if path.is_dir() else 0o444)
    commands = [*reading(tmp_path), *writing(tmp_path)]
    try:
        ran = run_all(AS_OTHERS, commands)
    finally:
        for path in every:
            path.chmod(0o700 if path.is_dir() else 0o600)
    check(tmp_path, commands, ran, root)
    assert tree(root) == before


@pytest.mark.skipif(not works(*OWN_MOUNTS, "true"), reason="may not mount here")
@pytest.mark.parametrize("torn", [False, True])
def test_a_read_only_file_system(root: Path, tmp_path: Path, torn: bool) -> None:
    """Also where the note of the last write is gone, so that each command checks the pages."""
    if torn:
        (root / "catalog" / "last-write").unlink()
    before = tree(root)
    commands = [*reading(tmp_path), *writing(tmp_path)]
    script = f"mount --bind {root} {root} && mount -o remount,ro,bind {root}"
    check(tmp_path, commands, run_all(with_mounts(script), commands), root)
    assert tree(root) == before


def test_damage_is_found_and_said(root: Path, tmp_path: Path) -> None:
    [segment, *_] = sorted((root / "segments").iterdir(), key=lambda path: -path.stat().st_size)
    damaged = bytearray(segment.read_bytes())
    damaged[100_000] ^= 1
    segment.write_bytes(damaged)
    before = tree(root)
    for command in (("verify",), ("get", "model", tmp_path / "out")):
        assert cli("--read-only", *command).code == 13
    assert not (tmp_path / "out").exists()
    assert tree(root) == before
