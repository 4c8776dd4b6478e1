"""Recovery beside collection: what a killed put left is taken in with a key that stays, or not at all."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore import NotFound, Store
from arstore.formats.record import KIND_BLOB
from arstore.store.disk import Disk
from arstore.store.maintenance.collect import AT_ONCE, collect
from arstore.store.maintenance.retention import KEEP_ALL
from arstore.store.maintenance.shred import foreclose_abandoned
from arstore.store.parts import Parts
from tests.support.command import cli
from tests.support.mortal_disk import Died, MortalDisk
from tests.support.segment_scan import records

PUT_AND_STOP = """
import sys, time
from pathlib import Path
from arstore import Store
from arstore.store.disk import Disk

class Stopping(Disk):
    def sync(self, fd):
        super().sync(fd)
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".seg":
            print("under way", flush=True)
            time.sleep(600)

with Store(Path(sys.argv[1]), disk=Stopping()) as store:
    store.put(sys.argv[2], name="never")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert cli("init").code == 0
    (tmp_path / "file").write_bytes(os.urandom(30_000))
    (tmp_path / "other").write_bytes(os.urandom(30_000))
    return tmp_path / "store"


def stopped_put(root: Path, source: Path) -> "subprocess.Popen[str]":
    """A put in a process of its own whose blobs are durable, and which has not published."""
    command = [sys.executable, "-c", PUT_AND_STOP, str(root), str(source)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "under way\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate(timeout=20)


def check(root: Path, source: Path, out: Path) -> None:
    """Assert that every row has its key, and that the artifact is whole however often keys are destroyed."""
    for _ in range(2):
        with Store(root) as store:
            for row in store._parts.catalog.all_blobs():
                assert store._parts.keys.key(row.place)
            assert store.verify(deep=True).corrupt == ()
            store.get_to("model", out)
            assert out.read_bytes() == source.read_bytes()
            with pytest.raises(NotFound):
                store.get("never")
            store.gc(AT_ONCE)
            assert not store._parts.ledger.doomed()


def test_a_record_whose_key_is_doomed_is_never_taken_in(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put is killed when a collection has looked for such, and the collection when it has judged what that left."""
    source = tmp_path / "file"
    process = stopped_put(root, source)
    with Store(root, disk=MortalDisk(1)) as store:
        p = store._parts

        recover = Parts.recover

        def recover_then_kill(parts: Parts) -> int:
            assert recover(parts) == 0
            kill(process)
            return 0

        monkeypatch.setattr(Parts, "recover", recover_then_kill)
        with pytest.raises(Died):
            collect(p, AT_ONCE, KEEP_ALL, 0, dry_run=False, lock_wait_s=0)
        monkeypatch.undo()
        [doomed] = p.ledger.doomed().values()
    [left] = [header.slot for header, whole in records(root) if whole and header.binding.kind == KIND_BLOB]
    assert left in doomed
    with Store(root) as store:
        stored = store.put(source, name="model")
    assert (stored.blobs_new, stored.blobs_reused) == (1, 0)
    check(root, source, tmp_path / "out")


class Meanwhile(Disk):
    """Acts once, before the first sync of a segment."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._acts = [act]

    def sync(self, fd: int) -> None:
        if self._acts and Path(f"/proc/self/fd/{fd}").readlink().suffix == ".seg":
            self._acts.pop()()
        super().sync(fd)


def test_no_key_is_destroyed_while_records_are_taken_in(tmp_path: Path, root: Path) -> None:
    """Destroyed and struck off the list between the reading of a record and its row, it would be missed by both."""
    source = tmp_path / "file"
    assert cli("put", tmp_path / "other", "passing").code == 0
    kill(stopped_put(root, source))
    with Store(root) as other:
        shredding = threading.Thread(target=lambda: other.rm("passing"))

        def shred() -> None:
            shredding.start()
            shredding.join(0.7)
            assert shredding.is_alive(), "it did not wait"

        with Store(root, disk=Meanwhile(shred)) as store:
            p = store._parts
            foreclose_abandoned(p)
            [doomed] = p.ledger.doomed().values()
            assert len(doomed) > 1
            assert store.recover() == 0
            shredding.join(20)
            assert not shredding.is_alive()
            assert not p.ledger.doomed()
        other.put(source, name="model")
    check(root, source, tmp_path / "out")
