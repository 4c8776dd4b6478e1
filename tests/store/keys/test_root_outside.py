"""The root of the key tree, inside the store or in a file outside it."""

import shutil
import stat
from itertools import count
from pathlib import Path

from arstore.formats.errors import FormatError
from arstore.formats.keypage import PAGE_BYTES, open_root
from arstore.store.access import create_store, open_store
from arstore.store.disk import Disk
from arstore.store.init import init_store
from arstore.store.keys.unlock import Secrets
from tests.support.keyed import opens, refused, root, source, works
from tests.support.mortal_disk import killed

__all__ = ["root", "source"]  # fixtures


def test_the_root_may_be_kept_outside(root: Path, source: Path, tmp_path: Path) -> None:
    made = works("init", "--root-file", tmp_path / "elsewhere" / "root", "--json").json
    kept = Path(made["root_file"])
    assert kept == tmp_path / "elsewhere" / "root"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not (root / "keys" / "root").exists()
    opens(source)
    kept.rename(tmp_path / "aside")
    assert str(kept) in refused(12, "ls")
    assert str(kept) in refused(12, "put", source, "m2")
    assert not kept.exists()
    (tmp_path / "aside").rename(kept)
    works("verify")


def test_a_root_file_that_is_there_is_never_overwritten(root: Path, tmp_path: Path) -> None:
    works("--store", tmp_path / "other", "init", "--root-file", tmp_path / "root")
    before = (tmp_path / "root").read_bytes()
    refused(2, "init", "--root-file", tmp_path / "root")
    assert (tmp_path / "root").read_bytes() == before


def test_an_init_with_a_root_file_that_is_killed_is_run_again(root: Path, source: Path, tmp_path: Path) -> None:
    kept, seen = tmp_path / "elsewhere" / "root", set()

    def init(disk: Disk) -> None:
        init_store(root, disk, Secrets(), root_file=kept)

    for at in count(1):
        for path in (root, kept.parent):
            shutil.rmtree(path, ignore_errors=True)
        died = killed(at, init)
        seen.add(((root / "config.toml").exists(), kept.exists()))
        assert works("init", "--root-file", kept, "--json").json["root_file"] == str(kept)
        assert not kept.with_name(".root.arstore-new").exists()
        assert not (root / "keys" / "root").exists()
        works("ls")
        if not died:
            break
    opens(source)
    assert seen == {(False, False), (True, False), (True, True)}


def test_one_root_is_readable_at_a_time(root: Path, source: Path) -> None:
    """The root before the last commit is effaced: with it, keys that were destroyed since could be had again."""
    create_store()
    for number in range(4):
        with open_store() as store:
            keyring = store._parts.keyring
            keyring.reserve(0, 1)
            found = 0
            held = (root / "keys" / "root").read_bytes()
            assert len(held) == 2 * PAGE_BYTES
            for start in (0, PAGE_BYTES):
                try:
                    root_found = open_root(
                        keyring.master, store._parts.config.store_id, held[start : start + PAGE_BYTES]
                    )
                    assert root_found.epoch == keyring.epoch
                    found += 1
                except FormatError:
                    pass
            assert found == 1, number
