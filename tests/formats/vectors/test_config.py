"""Configs that are refused."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import arstore
from arstore.store.errors import StoreError

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format = 1", "format = 2"), ("format = 1\n", ""), ("format = 1", 'format = "1"'),
        ("encrypted = true", "encrypted = false"), ("encrypted = true", "encrypted = 1"), ('_id = "', '_id = "00'),
        ("store_id", "store_di"), ("encrypted = true", "encrypted = true\nkey_file = 7"), ("format", "\x00"),
    ],
)  # fmt: skip
def test_bad_config(old: str, new: str, tmp_path: Path) -> None:
    """Nothing authenticates the config: whatever is written there, the store only shuts."""
    arstore.create_store(root := tmp_path / "store", key_file=tmp_path / "key")
    config = root / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    with pytest.raises(StoreError):
        arstore.open_store(root, key_file=tmp_path / "key")
