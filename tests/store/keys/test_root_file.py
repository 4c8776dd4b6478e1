"""The root file: which root counts, and in which order it is written, synced and overwritten."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from arstore.formats.errors import FormatError
from arstore.formats.keypage import PAGE_BYTES, Root, open_root, seal_root
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt, KeyRefused, StorageFailed
from arstore.store.keys.root_file import RootFile, create_root
from tests.support.keyed import MASTER, STORE_ID


class Booked(Disk):
    """The real disk, which notes what is done to files, and whose sync fails while `broken` is set."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.broken = False

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        super().write_at(fd, source, offset)
        self.steps.append(f"write slot {offset // PAGE_BYTES}")

    def sync(self, fd: int) -> None:
        if self.broken:
            raise StorageFailed("root", "input/output error")
        super().sync(fd)
        self.steps.append("sync")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_root(tmp_path / "root", MASTER, STORE_ID, Disk())
    return tmp_path / "root"


@pytest.fixture
def disk() -> Booked:
    return Booked()


@pytest.fixture
def file(path: Path, disk: Booked) -> Iterator[RootFile]:
    with closing(RootFile(path, [MASTER], STORE_ID, disk)) as file:
        yield file


def after(root: Root) -> Root:
    return replace(root, epoch=root.epoch + 1, next_tenant=root.next_tenant + 1)


def readable(path: Path, master: bytes = MASTER) -> list[int]:
    """Return the epochs of the roots that a master key opens."""
    content, epochs = path.read_bytes(), []
    for start in (0, PAGE_BYTES):
        try:
            epochs.append(open_root(master, STORE_ID, content[start : start + PAGE_BYTES]).epoch)
        except FormatError:
            continue
    return epochs


def test_a_new_root_is_of_an_empty_tree(path: Path, file: RootFile) -> None:
    root = file.read()
    assert (root.epoch, root.directory.position, root.next_tenant) == (1, 0, 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 2 * PAGE_BYTES


def test_a_root_that_is_there_is_not_made_again(path: Path) -> None:
    before = path.read_bytes()
    create_root(path, bytes(32), STORE_ID, Disk())
    assert path.read_bytes() == before


def test_every_root_takes_the_place_of_the_one_before(path: Path, file: RootFile) -> None:
    root = file.read()
    for _ in range(4):
        root = after(root)
        file.write(root)
        assert file.read() == root
        assert readable(path) == [root.epoch]


def test_a_root_is_durable_before_the_old_one_is_overwritten(file: RootFile, disk: Booked) -> None:
    root = file.read()
    file.write(after(root))
    assert disk.steps == ["write slot 0", "sync", "write slot 1", "sync"]


def test_of_two_readable_roots_the_higher_epoch_counts(path: Path, file: RootFile) -> None:
    root = after(file.read())
    content = path.read_bytes()
    path.write_bytes(seal_root(MASTER, STORE_ID, root, bytes(12)) + content[PAGE_BYTES:])  # killed before it overwrote
    assert readable(path) == [2, 1]
    assert file.read() == root


def test_a_root_that_another_process_wrote_is_made_durable_once(file: RootFile, disk: Booked) -> None:
    root = file.read()
    file.ensure_durable(root)
    assert disk.steps == ["write slot 1", "sync"]
    file.ensure_durable(root)
    assert disk.steps == ["write slot 1", "sync"]
    assert file.read() == root


def test_a_root_that_was_written_here_is_durable(file: RootFile, disk: Booked) -> None:
    root = after(file.read())
    file.write(root)
    disk.steps.clear()
    file.ensure_durable(root)
    assert disk.steps == []


def test_after_a_sync_that_failed_nothing_is_committed(path: Path, file: RootFile, disk: Booked) -> None:
    root = file.read()
    file.check()
    disk.broken = True
    with pytest.raises(StorageFailed, match="input/output"):
        file.write(after(root))
    assert 1 in readable(path)  # the old root was not overwritten
    disk.broken = False
    with pytest.raises(StorageFailed, match="open the store again"):
        file.check()


def test_a_root_is_sealed_under_another_master_key(path: Path, file: RootFile) -> None:
    other = bytes([8]) * 32
    root = after(file.read())
    file.use_master(other)
    file.write(root)
    assert (readable(path), readable(path, other)) == ([], [2])
    assert (file.read(), file.master) == (root, other)


def test_the_master_key_is_the_one_that_opened_the_root(path: Path) -> None:
    with closing(RootFile(path, [bytes(32), MASTER], STORE_ID, Disk())) as file:
        file.read()
        assert file.master == MASTER


@pytest.mark.parametrize(("master", "store_id"), [(bytes(32), STORE_ID), (MASTER, bytes(16))])
def test_another_key_or_another_store_opens_no_root(path: Path, master: bytes, store_id: bytes) -> None:
    with closing(RootFile(path, [master], store_id, Disk())) as file, pytest.raises(Corrupt, match="no root"):
        file.read()


def test_a_missing_root_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match="missing"):
        RootFile(tmp_path / "root", [MASTER], STORE_ID, Disk())
    assert os.listdir(tmp_path) == []
