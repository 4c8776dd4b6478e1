"""The session file: what a run writes is what its command reads, and nothing else is taken for one."""

import json
from pathlib import Path
from typing import Any

import pytest

from arstore.store.errors import Corrupt, NotFound, StorageFailed
from arstore.store.staging.session import RunSession, read_session

A, B = "a" * 64, "b" * 64


def test_a_session_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "session-1.json"
    session = RunSession(path, "device:cpu", (("m", A), ("ü/n@2", B)), (A, B), {A: ["00", 1, True]}, 1 << 40)
    path.write_bytes(session.packed())
    assert read_session(path) == session


def test_a_session_file_that_is_gone_was_released(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_session(tmp_path / "session-1.json")


def test_a_session_file_that_can_not_be_read_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed):
        read_session(tmp_path)


GOOD: dict[str, Any] = {"format": 1, "to": "host", "artifacts": [{"name": "m", "key": A}], "keys": [B]}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"artifacts": [{"name": "m", "key": "../../etc/passwd"}]},
        {"artifacts": [{"name": "m"}]},
        {"artifacts": 7},
        {"keys": [B[1:]]},
        {"keys": None},
        {"budget": "much"},
        {"budget": float("inf")},
        {"handles": []},
    ],
)
def test_a_session_with_a_bad_field_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "session-1.json"
    path.write_text(json.dumps(GOOD))
    assert read_session(path).keys == (B,)
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(Corrupt):
        read_session(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_session_is_refused(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "session-1.json").write_bytes(content)
    with pytest.raises(Corrupt):
        read_session(path)
