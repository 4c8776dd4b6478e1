"""Repair, killed, or beside others: the next one finishes it, and nobody opens half a catalog."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from arstore import Corrupt, Store
from arstore.store.disk import Disk
from arstore.store.keys.unlock import Secrets
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.repair import rebuild
from tests.support.command import arstore, cli
from tests.support.mortal_disk import Died, deaths
from tests.support.rebuilt import everything, filled, garbage, goes_on, remove_directory, remove_file, root

__all__ = ["filled", "root"]  # fixtures


_KILLED_PUT = """
import os, sys
from pathlib import Path
from arstore import Store
from arstore.store.disk import Disk

class Kill(Disk):
    def sync(self, fd):
        super().sync(fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".seg"):
            os.kill(os.getpid(), 9)

Store(Path(sys.argv[1]), disk=Kill()).put(Path(sys.argv[2]), name=sys.argv[3], kind="file")
"""


def test_what_a_killed_put_left_is_taken_in_whole_or_not_at_all(tmp_path: Path, root: Path) -> None:
    before = everything(tmp_path)
    (tmp_path / "leftover").write_bytes(os.urandom(30_000))
    command = [sys.executable, "-c", _KILLED_PUT, str(root), str(tmp_path / "leftover"), "leftover"]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    # Its version record was whole and durable: it may come back, for then all of it does.
    after = everything(tmp_path)
    assert after - before == {kept for kept in after if kept.name == "leftover"}
    assert before <= after
    for kept in after - before:
        assert kept.content == (tmp_path / "leftover").read_bytes()
    goes_on(tmp_path, root)


def test_blobs_that_nothing_needs_are_collected_after_a_rebuild(tmp_path: Path, root: Path) -> None:
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    with Store(root) as store:
        unneeded = sum(not row.refs for row in store._parts.catalog.all_blobs())
        assert unneeded == 1  # of "removed", which was not collected before
        store.gc(AT_ONCE)
        assert all(row.refs for row in store._parts.catalog.all_blobs())
        assert store.verify().corrupt == ()


@pytest.mark.parametrize("harm", [remove_directory, garbage])
def test_a_rebuild_that_is_killed_is_finished_by_the_next(
    tmp_path: Path, root: Path, harm: Callable[[Path], None]
) -> None:
    before = everything(tmp_path)
    harm(root)
    saved = tmp_path / "saved"
    shutil.copytree(root, saved)
    count = 0
    for disk in deaths():
        shutil.rmtree(root)
        shutil.copytree(saved, root)
        with suppress(Died):
            rebuild(root, Secrets(), lambda: None, disk, lambda *_: None, forget_lost=False)
        count += not disk.alive
        if cli("ls").code:  # not there yet: said so, and done by the next
            assert cli("ls").code == 13
            assert rebuild(root, Secrets(), lambda: None, Disk(), lambda *_: None, forget_lost=False).lost == ()
        assert {one["name"] for one in cli("--json", "ls").json["artifacts"]} == {"a/one", "two"}
        assert not (root / "catalog.new").exists()
    assert count >= 8
    assert everything(tmp_path) == before


def test_a_whole_catalog_survives_a_rebuild_that_is_killed(tmp_path: Path, root: Path) -> None:
    before = everything(tmp_path)
    for disk in deaths():
        with suppress(Died):
            rebuild(root, Secrets(), lambda: None, disk, lambda *_: None, forget_lost=False)
        if cli("ls").code:
            rebuild(root, Secrets(), lambda: None, Disk(), lambda *_: None, forget_lost=False)
        assert cli("verify").code == 0
    assert everything(tmp_path) == before


def test_an_opened_store_is_never_made_empty(root: Path) -> None:
    for harm in (remove_file, remove_directory):
        if (root / "catalog").exists():
            harm(root)
        with pytest.raises(Corrupt, match="missing"):
            Store(root)
        assert not (root / "catalog" / "data.mdb").exists()


_OPEN = """
import sys
from arstore import open_store
with open_store() as store:
    print("opened", flush=True)
    sys.stdin.readline()
    store.put(sys.argv[1], name="kept")
"""


def test_a_rebuild_is_refused_while_the_store_is_open(tmp_path: Path, root: Path) -> None:
    """What a store that is open puts into the old catalog would be gone with it."""
    before, rows = everything(tmp_path), (root / "catalog" / "data.mdb").stat().st_ino
    command = [sys.executable, "-c", _OPEN, str(tmp_path / "file")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "opened\n"
    for _ in range(2):  # the first one that was refused left no lock
        refused = cli("repair", "--rebuild-catalog")
        assert refused.code == 11
        assert "open in another process" in refused.err
    process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert (root / "catalog" / "data.mdb").stat().st_ino == rows
    assert not (root / "catalog.new").exists()
    with Store(root):  # this process counts as another
        assert cli("repair", "--rebuild-catalog").code == 11
    assert cli("repair", "--rebuild-catalog").code == 0
    after = everything(tmp_path)
    assert {kept.name for kept in after - before} == {"kept"}
    assert before <= after


def test_nobody_opens_a_store_that_is_being_rebuilt(tmp_path: Path, root: Path) -> None:
    """Not while segments are read, and not between the old catalog's leaving and the new one's coming."""
    before, answers = everything(tmp_path), []

    class Watched(Disk):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            answers.append(arstore("put", tmp_path / "file", "lost"))

    def look(_advance_bytes: int, _total_bytes: int) -> None:
        if not answers:
            answers.extend([arstore("ls"), cli("ls"), arstore("repair", "--rebuild-catalog")])

    assert rebuild(root, Secrets(), lambda: None, Watched(), look, forget_lost=False).lost == ()
    assert [ran.code for ran in answers] == [11] * 5
    assert all("try again when that is done" in ran.err for ran in answers)
    assert everything(tmp_path) == before
    goes_on(tmp_path, root)


def test_repair_alone_takes_in_what_killed_writers_left(tmp_path: Path, root: Path) -> None:
    (tmp_path / "leftover").write_bytes(os.urandom(30_000))
    command = [sys.executable, "-c", _KILLED_PUT, str(root), str(tmp_path / "leftover"), "leftover"]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    for _ in range(2):
        assert cli("--json", "repair", "--dry-run").json["recovered"] == 1
    assert cli("--json", "repair").json["recovered"] == 1
    assert cli("--json", "repair").json["recovered"] == 0
    assert cli("--json", "put", tmp_path / "leftover", "leftover").json["blobs_reused"] == 1
    assert cli("repair", "--rebuild-catalog", "--dry-run").code == 2
