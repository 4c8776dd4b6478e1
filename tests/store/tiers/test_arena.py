"""An arena has every object whole or not at all, whatever is killed, gone or full."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arstore import Store
from arstore.formats.tensor import TensorSpan
from arstore.store.disk import Disk, Out
from arstore.store.errors import Corrupt, NoRoom, StorageFailed
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.local import StoredObject
from arstore.store.tiers.tier import Held
from tests.support.fresh_memory import host, memory
from tests.support.mortal_disk import killed
from tests.support.staging import KEY, OTHER, Meddling, fill, store
from tests.support.tier_faults import Faulty, Met, given
from tests.support.tier_places import ARENAS, left, open_arena, small_steps
from tests.support.tier_suite import CAPACITY_BYTES, THIRD, A, B, refuses, whole

__all__ = ["host", "memory", "small_steps", "store"]  # fixtures


# ---- room


def test_objects_that_others_are_staging_take_room_too(store: Store, host: Path) -> None:
    tier = Arena("host", host / "tenant", 100_000, Disk())
    span = TensorSpan("f", "U8", (60_000,), 0, 60_000)

    def meanwhile(_: int, out: Out) -> None:
        with pytest.raises(NoRoom):
            tier.make_room(50_000, frozenset([OTHER]))
        tier.make_room(60_000, frozenset([KEY]))  # it is what we wait for

    with tier.filling(KEY, wait=False):
        tier.fill(KEY, StoredObject("m@1", (span,), meanwhile))


def test_an_object_just_published_is_held_already(host: Path) -> None:
    plain = Arena("host", host / "tenant", 1 << 20, Disk())
    taken: list[bool] = []
    held = fill(Arena("host", host / "tenant", 1 << 20, Meddling("rename", lambda: taken.append(plain.remove(KEY)))), 1)
    assert taken == [False]
    assert plain.find(KEY)
    del held
    assert plain.remove(KEY)


# ---- killed


@pytest.mark.parametrize("tier", ARENAS)
def test_a_stager_killed_anywhere_leaves_the_whole_or_nothing(tier: str, memory: Path, small_steps: None) -> None:
    wanted, published = given(), 0

    def fill(disk: Disk) -> None:
        arena = open_arena(tier, memory, disk=disk)
        with arena.filling(A, wait=False):
            arena.fill(A, wanted, time.time() + 100)

    for at in range(1, 40):
        died = killed(at, fill)
        arena = open_arena(tier, memory)
        if held := arena.hold(A):
            published += 1
            assert whole(held) == wanted.content
            del held
        assert not refuses(arena, THIRD, A)
        arena.sweep()
        assert [name for name in left(memory) if ".partial" in name] == []
        assert arena.remove(A)
        if not died:
            break
    assert 5 < at < 39
    assert published > 1


def test_a_file_that_is_no_key_hinders_nothing(memory: Path) -> None:
    arena = open_arena("host", memory)
    for name in (".x.partial", ".x.lock", "x.extent"):
        (arena.directory / name).touch()
    arena.sweep()
    arena.make_room(1, frozenset())
    assert (arena.residents(), arena.partials(), arena.coming()) == ([], [], set())


@pytest.mark.parametrize("tier", ARENAS)
def test_wiping_remains_takes_no_room(tier: str, memory: Path) -> None:
    arena = open_arena(tier, memory)
    partial_ = arena.directory / f".{A}.partial"
    with partial_.open("wb") as file:
        file.write(b"secret")
        file.truncate(1 << 28)
    with partial_.open("rb") as file:
        arena.sweep()
        assert file.read(6) == bytes(6)
        assert os.fstat(file.fileno()).st_blocks * 512 <= 1 << 16
    assert left(memory) == []


@pytest.mark.parametrize("tier", ARENAS)
def test_a_stager_killed_while_it_reads_leaves_nothing(tier: str, memory: Path, small_steps: None) -> None:
    class Killed(Faulty):
        def __call__(self, out: Out | None) -> None:
            try:
                super().__call__(out)
            except RuntimeError:
                os.kill(os.getpid(), signal.SIGKILL)

    if not (pid := os.fork()):
        with contextlib.suppress(BaseException):
            open_arena(tier, memory).fill(A, Met(given(), Killed(RuntimeError(), 1 if tier == "host" else 2)))
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    arena = open_arena(tier, memory)
    assert (arena.hold(A), arena.residents(), arena.partials()) == (None, [], [A])
    assert refuses(arena, CAPACITY_BYTES)  # for all it knows it is being staged still
    [partial_] = memory.rglob("*.partial")
    with partial_.open("rb") as file:
        assert any(file.read())
        arena.sweep()
        file.seek(0)
        assert not any(file.read())
    assert left(memory) == []
    assert whole(arena.fill(A, wanted := given())) == wanted.content


# ---- foreign and damaged


@pytest.mark.parametrize("tier", ARENAS)
def test_an_extent_that_can_not_be_read_hinders_no_other(tier: str, memory: Path) -> None:
    arena = open_arena(tier, memory)
    arena.fill(B, wanted := given(), time.time() + 100)
    (arena.directory / f"{A}.extent").symlink_to("/proc/self/mem")  # whose first byte is an I/O error
    assert {one.key: one.length_bytes for one in arena.residents()} == {A: 0, B: THIRD}
    with pytest.raises(StorageFailed):
        arena.hold(A)
    arena.make_room(CAPACITY_BYTES - THIRD, frozenset())
    held = arena.hold(B)
    assert held
    assert whole(held) == wanted.content
    assert arena.remove(A)
    assert [one.key for one in arena.residents()] == [B]


# ---- gone


Gone = Callable[[Path, Path], None]


def unmounted(mount: Path, _: Path) -> None:
    subprocess.run(["umount", "-l", str(mount)], check=True)


def removed(_: Path, directory: Path) -> None:
    shutil.rmtree(directory)


def only_files_removed(_: Path, directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    (path := tmp_path / "mount").mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "arstore-test", str(path)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


@pytest.mark.parametrize("tier", ARENAS)
@pytest.mark.parametrize("how", [unmounted, removed, only_files_removed], ids=lambda one: one.__name__)
def test_a_tier_that_is_gone_has_no_object_or_raises(tier: str, how: Gone, mount: Path, small_steps: None) -> None:
    arena, wanted = open_arena(tier, mount), given()
    arena.fill(B, given())
    held = arena.fill(A, wanted, time.time() + 100)
    how(mount, arena.directory)
    with contextlib.suppress(StorageFailed, Corrupt):
        assert whole(held) == wanted.content
    acts: list[Callable[[], object]] = [
        lambda: arena.hold(A) is None, lambda: arena.residents() == [], lambda: arena.remove(A), arena.sweep,
        lambda: arena.partials() == [], lambda: arena.make_room(1, frozenset()), lambda: arena.find(A) is False,
    ]  # fmt: skip
    for act in acts:
        with contextlib.suppress(StorageFailed):
            assert act() in (True, None)
    if how is not only_files_removed:
        with pytest.raises(StorageFailed):
            arena.fill(A, wanted)
        with pytest.raises(StorageFailed), arena.filling(A, wait=True):
            pass
    if how is unmounted:
        assert list(mount.iterdir()) == []  # nothing plain on the disk that is under it
        if tier == "shared":
            with pytest.raises(StorageFailed):
                open_arena(tier, mount)


class GoneMeanwhile:
    """A source that lets the tier go in which it is being brought."""

    def __init__(self, source: Held, go: Callable[[], None]) -> None:
        self.name, self.spans, self.length_bytes = source.name, source.spans, source.length_bytes
        self._source, self._go = source, go

    def read(self, at: int, out: Out) -> None:
        self._source.read(at, out)
        if at == 0:
            self._go()


@pytest.mark.parametrize("tier", ARENAS)
@pytest.mark.parametrize("how", [unmounted, removed], ids=lambda one: one.__name__)
def test_a_tier_that_goes_while_it_is_filled_raises(tier: str, how: Gone, mount: Path, small_steps: None) -> None:
    arena = open_arena(tier, mount)
    with pytest.raises(StorageFailed):
        arena.fill(A, GoneMeanwhile(given(), lambda: how(mount, arena.directory)))
    assert (arena.hold(A), arena.residents()) == (None, [])
