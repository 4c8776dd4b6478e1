"""The check of a catalog's pages: it names the file, and passes what killed writers, full disks and growth leave."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

from arstore.store.catalog import environment
from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.page_check import check_pages
from arstore.store.errors import Corrupt, StorageFailed
from tests.support.catalog_rows import INDEX_KEY, opened_tables
from tests.support.damaged_pages import (
    PageUser,
    commit_artifacts,
    damaged,
    drop_artifacts,
    make_catalog,
    refused,
)

_WRITE = """
import sys
from pathlib import Path
from tests.store.catalog.test_page_check import write
write(Path(sys.argv[1]), int(sys.argv[2]))
"""


def write(directory: Path, seed: int) -> None:
    """Commit artifacts and drop half of them, in transactions of several sizes, until something ends this."""
    values = random.Random(seed)
    with opened_tables(directory) as tables:
        catalog = Catalog(tables, 0, INDEX_KEY)
        catalog.new_segment(0)
        print("writes", flush=True)
        for start in count(1000 * seed, 40):
            step = values.choice((1, 4, 40))
            commit_artifacts(catalog, range(start, start + step))
            drop_artifacts(catalog, range(start, start + step, 2))


def test_damage_is_corrupt_and_names_the_file_the_page_and_what_helps(tmp_path: Path) -> None:
    make_catalog(tmp_path, 9)
    check_pages(tmp_path)
    with (tmp_path / "data.mdb").open("r+b") as file:
        file.seek(10)
        file.write(b"\0")
    with pytest.raises(Corrupt) as error:
        check_pages(tmp_path)
    assert error.value.where == str(tmp_path / "data.mdb")
    assert error.value.hint == "run 'arstore repair --rebuild-catalog'"


def test_what_can_not_be_read_is_not_taken_for_damage(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="no such file"):
        check_pages(tmp_path)


def kill_writers(directory: Path, kills: int) -> None:
    """Kill a writer at a moment by chance, so many times, and check after each."""
    values = random.Random(kills)
    for seed in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", _WRITE, directory, str(seed)], stdout=subprocess.PIPE)
        assert writer.stdout
        assert writer.stdout.readline() == b"writes\n"
        time.sleep(values.random() / 10)
        writer.kill()
        writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        check_pages(directory)


def test_a_file_of_killed_writers_passes(tmp_path: Path) -> None:
    kill_writers(tmp_path, 2)


@pytest.mark.slow
def test_a_file_of_many_killed_writers_passes(tmp_path: Path) -> None:
    kill_writers(tmp_path, 60)


def test_a_file_that_outgrew_its_map_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_MAP_MIN_BYTES", 1 << 17)
    make_catalog(tmp_path, 600)
    assert (tmp_path / "data.mdb").stat().st_size > 1 << 20
    check_pages(tmp_path)


def test_a_file_whose_writes_failed_halfway_passes(tmp_path: Path) -> None:
    for limit in range(200_000, 600_000, 50_000):
        (directory := tmp_path / str(limit)).mkdir()
        code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))" + _WRITE
        ran = subprocess.run([sys.executable, "-c", code, directory, "0"], check=False, capture_output=True, text=True)
        assert re.search("NoRoom|StorageFailed", ran.stderr)
        check_pages(directory)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_file_on_a_full_disk_passes(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=2m none "$1"; "$3" -c "$2" "$1" 0; cp "$1/data.mdb" "$1/../data.mdb"; exit 0'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-", disk, _WRITE, sys.executable],
        check=False,
        capture_output=True,
        text=True,
    )
    assert re.search("NoRoom|StorageFailed", ran.stderr)
    check_pages(tmp_path)


# ---- whatever the damage, no process ends by it


def deaths(base: Path, artifacts: int, seeds: range) -> dict[int, str]:
    """Return how the process ended that used what the check let through, by seed."""
    (directory := base / str(artifacts)).mkdir()
    older, file = make_catalog(directory, artifacts)
    check_pages(directory)
    user = PageUser(base)
    try:
        damages = ((seed, damaged(file, older, seed)) for seed in seeds)
        said = {seed: user.use(bad) for seed, bad in damages if not refused(base / "checked", bad)}
    finally:
        user.close()
    assert len(said) < len(seeds) * 0.6, "the check refuses next to nothing"
    return {seed: what for seed, what in said.items() if not what.startswith(("used", "refused"))}


def test_what_the_check_lets_through_ends_no_process(tmp_path: Path) -> None:
    assert deaths(tmp_path, 40, range(40)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("artifacts", [9, 40, 600])
def test_of_many_damages_none_ends_a_process(tmp_path: Path, artifacts: int) -> None:
    assert deaths(tmp_path, artifacts, range(1000)) == {}
