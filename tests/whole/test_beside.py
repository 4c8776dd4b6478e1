"""Many processes beside each other on one store: killed at any point, in containers, and backed up from inside."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arstore import open_store
from tests.support.catalog_rows import opened_tables
from tests.support.catalog_worker import add_one, read
from tests.support.command import cli

WORKER = "tests.support.catalog_worker"


def start(*words: object, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    command = [*before, sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_number(process: "subprocess.Popen[str]") -> int:
    out, _ = process.communicate()
    return int((out.split() or ["0"])[-1])


@pytest.mark.parametrize("rounds", [5, pytest.param(150, marks=pytest.mark.slow)])
def test_writers_and_readers_are_killed_at_any_point(tmp_path: Path, rounds: int) -> None:
    """What was acknowledged is there, no reader sees rows of two commits, and nobody waits for the dead."""
    directory = tmp_path / "catalog"
    with opened_tables(directory) as tables:
        tables.write(add_one)
    rng, acknowledged = random.Random(rounds), 1
    for _ in range(rounds):
        writers = [start("-m", WORKER, directory, "write", 100_000) for _ in range(2)]
        readers = [start("-m", WORKER, directory, "read", 100_000) for _ in range(2)]
        lines = rng.randrange(1, 60)
        assert writers[0].stdout is not None
        for _ in range(lines):
            writers[0].stdout.readline()
        for process in rng.sample([*writers, *readers], 4):
            assert process.poll() is None, process.communicate()
            process.kill()
        acknowledged = max([acknowledged, *map(last_number, writers)])
        for process in readers:
            process.communicate()
        with opened_tables(directory) as tables:
            assert read(tables) >= acknowledged
            acknowledged = tables.write(add_one)


@pytest.mark.parametrize("commits", [200, pytest.param(60_000, marks=pytest.mark.slow)])
def test_eight_readers_beside_a_writer(tmp_path: Path, commits: int) -> None:
    directory = tmp_path / "catalog"
    with opened_tables(directory) as tables:
        tables.write(add_one)
    readers = [start("-m", WORKER, directory, "read", 3 * commits) for _ in range(8)]
    writer = start("-m", WORKER, directory, "write", commits)
    assert last_number(writer) == commits + 1
    for process in readers:
        _, err = process.communicate()
        assert process.returncode == 0, err


BACKUP = """
import shutil, sys
import arstore
source, backup = sys.argv[1:]
with arstore.open_store() as store:
    store.put(source, name="first")
    shutil.copytree(store._parts.root, backup)
    print("copied", flush=True)
    for at in range(30):
        store.put(source, name=f"own/{at}")
"""
OTHER = """
import sys
import arstore
with arstore.open_store() as store:
    for at in range(10):
        store.put(sys.argv[1], name=f"{sys.argv[2]}/{at}")
"""


def test_a_process_that_copies_its_own_store_loses_nothing(tmp_path: Path) -> None:
    """LMDB's own locks would be dropped by the copy, and others would take the writer for dead."""
    assert cli("init").code == 0
    (tmp_path / "source").write_text("hello")
    first = start("-c", BACKUP, tmp_path / "source", tmp_path / "backup")
    assert first.stdout is not None
    assert first.stdout.readline() == "copied\n"
    for name in "abc":
        other = start("-c", OTHER, tmp_path / "source", name)
        assert other.communicate()[1] == ""
        assert other.returncode == 0
    assert first.communicate()[1] == ""
    assert first.returncode == 0
    with open_store() as store:
        names = {version.summary.name for version in store.ls()}
        assert names == {"first"} | {f"own/{at}" for at in range(30)} | {f"{n}/{at}" for n in "abc" for at in range(10)}
        assert store.verify().corrupt == ()
    with open_store(tmp_path / "backup") as store:
        assert [version.summary.name for version in store.ls()] == ["first"]


OWN_PIDS = ("unshare", "--pid", "--fork", "--mount-proc")
HOLDING = """
import sys
import arstore
with arstore.open_store() as store:
    print("open", flush=True)
    sys.stdin.readline()
    store.put(sys.argv[1], name="held")
"""


def has_own_pids() -> bool:
    return subprocess.run([*OWN_PIDS, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(shutil.which("unshare") is None or not has_own_pids(), reason="makes no pid namespaces here")
def test_containers_with_one_process_id_share_a_store(tmp_path: Path) -> None:
    """Each process is number 1 in its own namespace."""
    assert cli("init").code == 0
    (tmp_path / "source").write_text("hello")
    assert cli("put", tmp_path / "source", "model").code == 0
    first = start("-c", HOLDING, tmp_path / "source", before=OWN_PIDS)
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    program = "import os; from arstore.cli.main import main; assert os.getpid() == 1; main()"
    for words in (("ls",), ("get", "model", tmp_path / "out"), ("verify",), ("stats",), ("show", "model")):
        other = start("-c", program, *words, before=OWN_PIDS)
        out, err = other.communicate()
        assert other.returncode == 0, err
        assert out
    assert first.communicate("\n")[1] == ""
    assert first.returncode == 0
    put = start("-c", program, "put", tmp_path / "source", "other", before=OWN_PIDS)
    assert put.communicate()[1] == ""
    with open_store() as store:
        assert {version.summary.name for version in store.ls()} == {"model", "held", "other"}
