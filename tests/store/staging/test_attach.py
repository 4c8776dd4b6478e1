"""Attach: a command finds its staged objects from any directory; changed or missing ones are an error."""

import json
import sys
from pathlib import Path

import pytest

from arstore import Corrupt, NotFound, Store, attach
from arstore.store.errors import BadInput, StorageFailed
from tests.support.command import arstore
from tests.support.staging import KEY, store, weights

__all__ = ["store"]  # fixtures


def test_attach_names_what_is_wrong_with_a_session(
    store: Store, tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput):
        attach()
    monkeypatch.setenv("ARSTORE_STAGED", str(tmp_path / "gone.json"))
    with pytest.raises(NotFound):
        attach()
    name = {"name": "m", "key": KEY}
    deep = b"[" * 100_000
    bad = [b"", b"{", b"[]", deep, {"format": 2, "artifacts": [name]}, {"format": 1}, {"artifacts": [name]}]
    for key in ("../../etc/passwd", "a" * 63, "A" * 64, 7):
        bad.append({"format": 1, "artifacts": [{"name": "m", "key": key}]})
    for value in bad:
        (tmp_path / "bad.json").write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        with pytest.raises(Corrupt):
            attach(tmp_path / "bad.json")
    (tmp_path / "good.json").write_text(json.dumps({"format": 1, "artifacts": [name]}))
    with pytest.raises(NotFound):
        attach(tmp_path / "good.json")
    with pytest.raises(StorageFailed):
        attach(tmp_path)


def test_a_command_finds_its_staged_objects_from_any_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARSTORE_HOST_DIR", "host")
    elsewhere = "import os; os.chdir('/'); import arstore; print(*arstore.attach())"
    ran = arstore("prefetch", "m", "--", sys.executable, "-c", elsewhere)
    assert (ran.code, ran.out) == (0, "m\n"), ran.err
