"""A store with something of everything in it, made by the command line."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from arstore.cli.main import run
from tests.support.command import Ran

PROGRAM = [sys.executable, "-c", "from arstore.cli.main import main; main()"]


ERROR = re.compile(r"arstore: error: [^\n]+\n(arstore: hint: [^\n]+\n)?")


def cli(*words: object) -> Ran:
    """Run one command in this process, as `main` runs it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    return Ran(code, out.getvalue(), err.getvalue())


def fails(code: int, *words: object) -> Ran:
    """Run a command that must fail with `code` in one line and perhaps a hint, and again for the same in JSON."""
    text = cli(*words)
    assert text.code == code, text
    assert text.out == ""
    assert ERROR.fullmatch(text.err), text.err
    with_json = cli("--json", *words)
    assert with_json.code == code, with_json
    assert with_json.err == text.err
    error = with_json.json["error"]
    assert error.keys() == {"kind", "message", "hint", "exit_code"}
    assert error["exit_code"] == code
    lines = [f"arstore: error: {error['message']}".replace("\n", " ")]
    assert text.err.splitlines() == lines + ([f"arstore: hint: {error['hint']}"] if error["hint"] else [])
    return text


def holdings() -> tuple[object, ...]:
    """Return what the store holds, as a user sees it: every version and pin, and how many blobs of how many bytes."""
    stats = cli("stats", "--json").json
    return cli("ls", "--json").json["artifacts"], stats["blobs"], stats["stored_bytes"], stats["unreferenced_bytes"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the test, outside of every store, with a checkpoint `m` and a text file `a.txt`."""
    path = tmp_path / "work"
    (path / "m").mkdir(parents=True)
    monkeypatch.chdir(path)
    weights = {f"model.layers.{n}.weight": torch.arange(24.0).reshape(4, 6) + n for n in range(2)}
    safetensors.torch.save_file(weights, path / "m" / "model.safetensors")
    (path / "m" / "config.json").write_text('{"hidden_size": 6}')
    (path / "a.txt").write_text("a text")
    return path


@pytest.fixture
def store(work: Path) -> Path:
    """An empty store at `$ARSTORE_STORE`."""
    assert cli("init").code == 0
    return Path(os.environ["ARSTORE_STORE"])


@pytest.fixture
def stocked(store: Path) -> Path:
    """A store with the checkpoint as `w@1`."""
    assert cli("put", "m", "w").code == 0
    return store


COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "init": (["init"], {"store", "encrypted", "key_file"}),
    "put": (
        ["put", "m", "w2"],
        {"name", "version", "id", "bytes_in", "bytes_stored", "blobs_new", "blobs_reused", "seconds"},
    ),
    "get": (["get", "w", "out"], {"name", "version", "id", "files", "bytes_out", "bytes_read", "seconds"}),
    "ls": (["ls"], {"artifacts"}),
    "show": (["show", "w"], {"name", "version", "id", "identity", "files", "tensors", "blobs", "tiers"}),
    "rm": (["rm", "w"], {"removed"}),
    "pin": (["pin", "w"], {"name", "version", "id", "pinned"}),
    "unpin": (["unpin", "w"], {"name", "version", "id", "pinned"}),
    "tag": (["tag", "w", "w2"], {"name", "version", "id"}),
    "verify": (["verify"], {"checked", "corrupt", "healed"}),
    "stats": (["stats"], {"artifacts", "blobs", "stored_bytes", "dedup_ratio", "tenant"}),
    "tenant add": (["tenant", "add", "team"], {"tenant"}),
    "tenant ls": (["tenant", "ls"], {"tenants"}),
}  # fmt: skip
