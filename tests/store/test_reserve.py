"""Reserve: disk space set aside, left alone where there is room, and given back where there is none."""

from pathlib import Path

import pytest

from arstore.store import reserve
from arstore.store.disk import Disk
from arstore.store.errors import NoRoom
from arstore.store.reserve import RESERVE_NAME, set_aside, spent_reserve
from tests.support.command import cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path / "store"


def reserved(root: Path) -> int:
    path = root / RESERVE_NAME
    return path.stat().st_blocks * 512 if path.exists() else 0


def test_a_new_store_has_it(root: Path) -> None:
    assert reserved(root) >= 4 << 20


def test_it_is_left_alone_where_there_is_room(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    before = (root / RESERVE_NAME).stat()
    assert [cli(*words).code for words in (("put", tmp_path / "file", "a"), ("rm", "a"), ("gc",))] == [0, 0, 0]
    after = (root / RESERVE_NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_store_without_it_gets_it_by_the_next_removal(root: Path) -> None:
    (root / RESERVE_NAME).unlink()
    assert cli("gc").code == 0
    assert reserved(root) >= 4 << 20


def test_less_is_set_aside_where_there_is_less_room(root: Path) -> None:
    class Small(Disk):
        def reserve(self, fd: int, length: int) -> None:
            if length > 1 << 20:
                raise NoRoom("reserve", "no space left on device")
            super().reserve(fd, length)

    (root / RESERVE_NAME).unlink()
    set_aside(root, Small())
    assert 1 << 20 <= reserved(root) < 2 << 20


def test_it_is_there_for_a_second_try_under_a_quota(root: Path) -> None:
    """A quota shows in no free space of the disk."""

    def fail() -> None:
        with spent_reserve(root, Disk()):
            assert reserved(root)
            raise NoRoom("write", "disk quota exceeded")

    with pytest.raises(NoRoom):
        fail()
    assert not reserved(root)
    with spent_reserve(root, Disk()):
        pass
    assert reserved(root)


def test_a_nearly_full_disk_gives_it_back_while_the_body_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "_free_bytes", lambda root: 6 << 20)
    with spent_reserve(root, Disk()):
        assert not reserved(root)
    assert reserved(root)
