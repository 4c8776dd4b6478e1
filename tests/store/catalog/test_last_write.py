"""Last write: pages are checked when something other than the store may have changed the file, and only then."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from arstore.store.catalog import page_check
from tests.support.beside import worker
from tests.support.catalog_rows import opened_tables
from tests.support.catalog_worker import add_one, read


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    checked: list[Path] = []
    real = page_check.check_pages

    def check(directory: Path) -> None:
        checked.append(directory)
        real(directory)

    monkeypatch.setattr(page_check, "check_pages", check)
    return checked


def test_pages_are_not_checked_after_the_store_alone_wrote(directory: Path, checks: list[Path]) -> None:
    for count in (1, 2):
        with opened_tables(directory) as tables:
            assert tables.write(add_one) == count
            with worker(directory, "read", 1) as other:  # also while it is open elsewhere
                assert other.wait() == 0
    assert checks == []


def test_pages_are_checked_after_a_writer_was_killed(directory: Path, checks: list[Path]) -> None:
    with opened_tables(directory) as tables:
        tables.write(add_one)
    with worker(directory, "write", 10_000) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "20\n":
            pass
        process.send_signal(signal.SIGSTOP)
        os.utime(directory / "data.mdb")  # as if it had been killed while it wrote pages
        process.kill()
    for _ in range(2):
        with opened_tables(directory) as tables:
            assert read(tables) >= 20
    assert checks == [directory]


def test_pages_are_checked_in_a_copy(directory: Path, tmp_path: Path, checks: list[Path]) -> None:
    with opened_tables(directory) as tables:
        tables.write(add_one)
    shutil.copytree(directory, tmp_path / "copy")
    for _ in range(2):
        with opened_tables(tmp_path / "copy") as tables:
            assert read(tables) == 1
    assert checks == [tmp_path / "copy"]
