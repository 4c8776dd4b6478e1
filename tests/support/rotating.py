"""A store whose keys are rotated, and the key file that opens it now."""

from pathlib import Path

import pytest

from arstore.store.config import read_config
from tests.support.command import cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store that opens with a key file and holds one artifact."""
    (tmp_path / "file").write_text("content " * 1000)
    assert cli("init").code == 0
    assert cli("put", tmp_path / "file", "one").code == 0
    return tmp_path / "store"


def key_file(root: Path) -> Path:
    found = read_config(root).key_file
    assert found
    return found
