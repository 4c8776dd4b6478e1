"""Sources: a file and pieces of memory are read alike, and a file that changes is refused."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore.formats.errors import FormatError
from arstore.store.artifacts.sources import FileSource, MemorySource, Source
from arstore.store.errors import BadInput, NotFound, StorageFailed

CONTENT = bytes(range(256)) * 64


def from_file(path: Path) -> Source:
    (path / "file").write_bytes(CONTENT)
    return FileSource(path / "file")


def from_memory(path: Path) -> Source:
    view = memoryview(CONTENT)
    return MemorySource([view[:100], view[100:100], view[100:9000], view[9000:]])


@pytest.mark.parametrize("make", [from_file, from_memory])
def test_any_range_is_read_alike(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    source = make(tmp_path)
    assert source.size == len(CONTENT)
    for start, stop in ((0, 1), (99, 101), (50, 9001), (0, len(CONTENT)), (len(CONTENT), len(CONTENT))):
        wanted, out = CONTENT[start:stop], bytearray(stop - start)
        assert source.read(start, stop - start) == wanted
        source.read_into(start, memoryview(out))
        assert out == wanted
    for start, stop in ((0, 100), (50, 9001), (4097, 4099)):
        with source.mapped(start, stop - start) as mapped:
            assert bytes(mapped) == CONTENT[start:stop]
    source.check_unchanged()


@pytest.mark.parametrize("make", [from_file, from_memory])
def test_a_range_that_is_not_there_is_refused(tmp_path: Path, make: Callable[[Path], Source]) -> None:
    source = make(tmp_path)
    for offset, length in ((0, len(CONTENT) + 1), (len(CONTENT), 1), (-1, 1), (0, -1)):
        with pytest.raises(FormatError):
            source.read(offset, length)


def test_memory_in_one_piece_is_not_copied() -> None:
    piece = bytearray(b"before")
    with MemorySource([memoryview(piece)]).mapped(0, 6) as mapped:
        piece[:] = b"after!"
        assert bytes(mapped) == b"after!"


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # a long path is refused
        made.bind(path.name)


def link(path: Path, to: str) -> Path:
    path.symlink_to(to)
    return path.with_name(to)


IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": os.mkdir,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a pipe": lambda path: os.mkfifo(link(path, "pipe")),
    "link to another file": lambda path: link(path, "b").write_bytes(CONTENT),
    "link to the same bytes moved": lambda path: path.symlink_to("moved"),
}


@pytest.mark.parametrize("kind", [*IN_ITS_PLACE, "socket"])
def test_what_takes_the_place_of_a_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    source, path = from_file(tmp_path), tmp_path / "file"
    path.rename(tmp_path / "moved")
    (IN_ITS_PLACE | {"socket": make_socket})[kind](path)
    why = "no such device" if kind == "socket" else "changed while it was read"
    for read in (lambda: source.read(0, 10), lambda: source.mapped(0, 10).__enter__()):
        with pytest.raises((StorageFailed, BadInput), match=why):
            read()
    with pytest.raises(StorageFailed, match="changed while it was read"):
        source.check_unchanged()


@pytest.mark.parametrize("change", ["longer", "shorter", "replaced"])
def test_a_file_that_changes_is_refused(tmp_path: Path, change: str) -> None:
    source, path = from_file(tmp_path), tmp_path / "file"
    if change == "longer":
        with path.open("ab") as file:
            file.write(b"more")
    elif change == "shorter":
        os.truncate(path, 100)
    else:
        path.unlink()
        path.write_bytes(CONTENT)
    for read in (lambda: source.read(0, 10), source.check_unchanged, lambda: source.mapped(0, 10).__enter__()):
        with pytest.raises(StorageFailed, match="changed while it was read"):
            read()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, error in (("missing", NotFound), ("pipe", BadInput), ("loop", BadInput)):
        with pytest.raises(error, match=name):
            FileSource(tmp_path / name)
