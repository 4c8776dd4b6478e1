"""Opening: which secret opens a store, and when the open finishes a rotation that was killed."""

import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from arstore.store.access import create_store
from arstore.store.config import read_config, write_config
from arstore.store.disk import Disk
from arstore.store.errors import BadInput, Conflict, KeyRefused, NoStore
from arstore.store.keys.keyring import Keyring
from arstore.store.keys.opening import open_keyring
from arstore.store.keys.rotate import Rekeying
from arstore.store.keys.unlock import Secrets, Stanzas, new_key_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_store(tmp_path / "store", key_file=tmp_path / "first")
    return tmp_path / "store"


def nobody() -> None:
    return None


def opened(root: Path, held: Secrets | None = None) -> tuple[Secrets, Keyring]:
    _, found, keyring = open_keyring(root, held or Secrets(), nobody, Disk())
    return found, keyring


def rekeying(root: Path) -> Rekeying:
    config, held, keyring = open_keyring(root, Secrets(), nobody, Disk())
    return Rekeying(root, config, Disk(), held, keyring)


def begun(root: Path, key_file: Path) -> bytes:
    """Do the first two steps of a rotation; return the new master key."""
    config, master = read_config(root), os.urandom(32)
    secret = new_key_file(key_file, Disk())
    with closing(opened(root)[1]) as keyring:
        grown = Stanzas.read(root / "keys").adding("key-file", secret, master, config.store_id)
        grown.adding_previous(keyring.master, master, config.store_id).write(root / "keys", Disk())
    return master


def test_a_directory_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(NoStore):
        opened(tmp_path)


def test_the_key_file_of_the_config_opens_the_store_if_none_is_given(root: Path, tmp_path: Path) -> None:
    held, keyring = opened(root)
    with closing(keyring):
        assert held.key_file == tmp_path / "first"
        assert keyring.tenant("default")


def test_a_key_file_that_is_given_goes_before_that_of_the_config(root: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "first", tmp_path / "moved")
    held, keyring = opened(root, Secrets(tmp_path / "moved"))
    with closing(keyring):
        assert held.key_file == tmp_path / "moved"
    with pytest.raises(KeyRefused, match="first"):
        opened(root)


def test_a_rotation_is_finished_once_the_config_names_the_new_file(root: Path, tmp_path: Path) -> None:
    master = begun(root, tmp_path / "second")
    write_config(root, replace(read_config(root), key_file=tmp_path / "second"), Disk())
    with closing(opened(root)[1]) as keyring:
        assert keyring.master == master
    assert [way["kind"] for way in Stanzas.read(root / "keys").ways] == ["key-file"]
    with pytest.raises(KeyRefused, match="does not open"):
        opened(root, Secrets(tmp_path / "first"))


def test_before_that_both_files_open_it_and_nothing_is_finished(root: Path, tmp_path: Path) -> None:
    master = begun(root, tmp_path / "second")
    ways = Stanzas.read(root / "keys")
    for name in ("second", "first"):
        with closing(opened(root, Secrets(tmp_path / name))[1]) as keyring:
            assert keyring.master != master
    assert Stanzas.read(root / "keys") == ways


def test_of_two_that_rotate_the_second_is_refused(root: Path, tmp_path: Path) -> None:
    first, second = rekeying(root), rekeying(root)
    with closing(first.keyring), closing(second.keyring):
        first.rotate(tmp_path / "second")
        with pytest.raises(Conflict, match="rotated by somebody else"):
            second.rotate(tmp_path / "third")
        with pytest.raises(Conflict, match="rotated by somebody else"):
            second.add_passphrase(b"long enough")
    assert not (tmp_path / "third").exists()
    assert [way["kind"] for way in Stanzas.read(root / "keys").ways] == ["key-file"]


def test_a_dry_run_of_a_rotation_says_what_it_would_do_and_does_nothing(root: Path, tmp_path: Path) -> None:
    parts = rekeying(root)
    with closing(parts.keyring):
        parts.add_passphrase(b"long enough")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        rotated = parts.rotate(tmp_path / "second", drop_others=True, dry_run=True)
        assert (rotated.key_file, rotated.dropped) == (tmp_path / "second", ("passphrase",))
        with pytest.raises(BadInput, match="passphrase"):
            parts.rotate(tmp_path / "second")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
