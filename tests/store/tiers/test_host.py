"""The host tier lies in a directory of this user alone, and takes half of the memory that is there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from arstore import Store
from arstore.store.disk import Disk
from arstore.store.tiers.shared import open_shared
from tests.support.command import cli
from tests.support.fresh_memory import host
from tests.support.staging import extents, left, put_file, store, weights
from tests.support.tier_faults import given
from tests.support.tier_places import MINE, SHARED, STORE_ID
from tests.support.tier_suite import A, whole

__all__ = ["host", "store"]  # fixtures


def test_a_full_memory_file_system_is_no_room(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mount := tmp_path / "small").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "arstore-test", str(mount)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small tmpfs")
    try:
        monkeypatch.setenv("ARSTORE_HOST_DIR", str(mount))
        for name in "ab":
            put_file(store, tmp_path, name, 3 << 20)
        assert store.tiers.arenas.host().capacity_bytes == 2 << 20  # half of what is mounted there
        assert cli("prefetch", "a").code == 14
        assert cli("prefetch", "a", "--budget", "1GiB").code == 0
        ran = cli("prefetch", "b", "--budget", "1GiB")
        assert (ran.code, len(ran.error.splitlines())) == (14, 1)
        assert left(mount) == [path.name for path in extents(mount)]
        assert len(extents(mount)) == 1
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("which", ["parent", "directory"])
@pytest.mark.parametrize("how", ["open to all", "a link", "a file", "somebody else's"])
def test_a_directory_that_is_not_ours_alone_is_refused(
    store: Store, tmp_path: Path, host: Path, which: str, how: str
) -> None:
    if which == "parent" and how in ("open to all", "somebody else's"):
        pytest.skip("has a test of its own")
    store.put(tensors=weights(), name="m")
    place = store.tiers.arenas.host().directory
    place = place if which == "directory" else place.parent
    shutil.rmtree(place)
    (away := tmp_path / "away").mkdir(mode=0o700)
    if how == "a link":
        place.symlink_to(away)
    elif how == "a file":
        place.touch(mode=0o600)
    else:
        place.mkdir(mode=0o700)
        if how == "open to all":
            place.chmod(0o777)
        elif os.geteuid():
            pytest.skip("only root can give a directory away")
        else:
            os.chown(place, 12345, 12345)
    ran = cli("prefetch", "m")
    assert ran.code == 1
    assert "mode 0700" in ran.error
    assert not any(away.iterdir())


@pytest.mark.parametrize("mode", [0o1777, 0o755, 0o770])
def test_a_place_that_others_may_enter_gets_a_directory_of_ours_alone(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """As the root of a fresh tmpfs is."""
    store.put(tensors=weights(), name="m")
    (place := tmp_path / "fresh").mkdir()
    place.chmod(mode)
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(place))
    assert cli("prefetch", "m").code == 0
    own = place / f"arstore-{os.geteuid()}"
    assert [path.name for path in place.iterdir()] == [own.name]
    assert own.stat().st_mode & 0o777 == 0o700
    with store.prefetch(["m"]) as staged:
        assert staged["m"].keys() == weights().keys()
    assert cli("unstage", "--all").code == 0


def test_a_place_that_somebody_else_took_before_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors=weights(), name="m")
    (place := tmp_path / "fresh").mkdir()
    place.chmod(0o1777)
    (place / f"arstore-{os.geteuid()}").mkdir(mode=0o777)
    (place / f"arstore-{os.geteuid()}").chmod(0o777)
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(place))
    ran = cli("prefetch", "m")
    assert (ran.code, "is not a directory of yours alone" in ran.error) == (1, True)


@SHARED
def test_a_memory_without_a_size_of_its_own_holds_half_of_the_machines(tmp_path: Path) -> None:
    (path := tmp_path / "ramfs").mkdir(mode=0o700)
    words = ["mount", "-t", "ramfs", "arstore-test", str(path)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a ramfs")
    try:
        arena = open_shared(path, STORE_ID, MINE, MINE * 2, None, Disk())
        assert arena.capacity_bytes > 1 << 20
        assert whole(arena.fill(A, wanted := given())) == wanted.content
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
