"""Disk: what users ask for appears whole or not at all, and an error of the system names the place."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from arstore.store.disk import Disk, FileSpan, disk_errors
from arstore.store.errors import NoRoom, StorageFailed


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, NoRoom), (errno.EDQUOT, NoRoom), (errno.EFBIG, NoRoom), (errno.EIO, StorageFailed)],
)
def test_an_error_of_the_system_becomes_one_that_names_the_place(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^place: {os.strerror(code).lower()}$"), disk_errors("place"):
        raise OSError(code, os.strerror(code))


def test_a_file_is_replaced_in_one_step_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    class Full(Disk):
        def sync(self, fd: int) -> None:
            raise NoRoom("sync", "no space left on device")

    path = tmp_path / "file"
    Disk().replace_file(path, b"old", 0o640)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"old", 0o640)
    with pytest.raises(NoRoom):
        Full().replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_goes_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target, link = tmp_path / "deep" / "target", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        Disk().check_output(link)
        Disk().write_output(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content


def test_an_output_goes_into_a_pipe_that_is_there(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    Disk().write_output(pipe, b"content")
    reader.join(10)
    assert received == [b"content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_output_that_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(StorageFailed):
            Disk().check_output(path)
    assert list(tmp_path.iterdir()) == []


def test_a_private_directory_lies_in_a_directory_or_beside_a_file(tmp_path: Path) -> None:
    disk, made = Disk(), tmp_path / "made" / "out"
    first, second = disk.make_private_dir(made), disk.make_private_dir(made)
    assert first != second
    assert first.parent == second.parent == made.parent
    assert disk.make_private_dir(tmp_path).parent == tmp_path
    assert stat.S_IMODE(first.stat().st_mode) == 0o700


def test_a_removal_takes_a_directory_or_a_link_and_misses_nothing(tmp_path: Path) -> None:
    kept, link, folder = tmp_path / "kept", tmp_path / "link", tmp_path / "folder"
    (kept / "inside").mkdir(parents=True)
    (folder / "inside").mkdir(parents=True)
    link.symlink_to(kept)
    for path in (link, folder, tmp_path / "missing"):
        Disk().remove(path)
    assert list(tmp_path.iterdir()) == [kept]
    assert (kept / "inside").is_dir()


def test_a_span_of_a_file_is_filled_like_memory(tmp_path: Path) -> None:
    disk, told = Disk(), list[int]()
    fd = disk.open(tmp_path / "file", create=True)
    try:
        disk.write_at(fd, b"." * 10, 0)
        span = FileSpan(disk, fd, 2, 8, told.append)
        assert len(span) == 6
        span[1:3] = b"ab"
        span[3:][1:2] = b"c"
    finally:
        os.close(fd)
    assert (tmp_path / "file").read_bytes() == b"...ab.c..."
    assert told == [2, 1]
