"""Every point at which a process or the power can go, and every call that the disk can refuse.

Each test runs one verb over and over, dying one point later each time, until a run gets through. After every death
the store must open as it is found: what was acknowledged reads back byte for byte, what was not is wholly there or
not there at all, and the same verb run again simply works.
"""

import errno
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore.store.config import CONFIG_NAME, KEYS_DIR, read_config, root_path
from arstore.store.errors import Conflict, NoRoom, StorageFailed, StoreError
from arstore.store.init import init_store
from arstore.store.keys.keyring import Keyring
from arstore.store.keys.unlock import Secrets, open_masters
from arstore.store.store import Store
from tests.support.faulty_disk import Crash, FaultyDisk, _Contents
from tests.support.fresh_memory import fresh_memory
from tests.support.segment_scan import check_keys_are_used_once

KILLED = None  # the process dies, what the kernel has of it stays
POWER = 0  # all that was not synced is gone
NEVER = 1 << 30
TENANT = 0  # the number of the tenant `default`
LOSSES = [KILLED, POWER, 1, 2]


@dataclass(frozen=True, slots=True)
class World:
    """A directory that holds a store and its key file, and can be copied, killed and brought back as a whole."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def held(self) -> Secrets:
        return Secrets(key_file=self.root / "secrets" / "key")

    def open(self, disk: FaultyDisk | None = None) -> Store:
        opened = Store(self.store, held=self.held, disk=disk)
        for held in opened.leases():  # their owner is dead in this world, though this process goes on
            opened.break_lease(held.id)
        return opened


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small files that share a tensor, and a directory of three shards that are stored side by side."""
    folder = tmp_path_factory.mktemp("checkpoints")
    values = np.random.default_rng(5)
    shared = values.standard_normal((64, 64)).astype(np.float32)
    for name in ("first", "second"):
        own = {f"{name}.{n}": values.integers(0, 255, (40 + n, 100), dtype=np.uint8) for n in range(3)}
        save_file({**own, "shared": shared}, folder / f"{name}.safetensors")
    (folder / "shards").mkdir()
    for n in range(3):
        tensors = {f"{n}.{m}": values.integers(0, 255, (1 << n, 50_000), dtype=np.uint8) for m in range(4)}
        save_file(tensors, folder / "shards" / f"model-{n}.safetensors")
    (folder / "shards" / "config.json").write_text('{"model_type": "test"}')
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def empty_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store that was just made: only ever copied."""
    world = World(tmp_path_factory.mktemp("empty") / "world")
    world.root.mkdir()
    init_store(world.store, FaultyDisk(world.root), world.held)
    return world


@pytest.fixture
def world() -> Iterator[World]:
    """Where a world may be, in memory where the machine can: thousands of stores are made and dropped here."""
    with fresh_memory() as memory:
        yield World(memory / "world")


@pytest.fixture
def copies(empty_world: World, world: World) -> Iterator[World]:
    """Copies of the empty store, one after the other in the same place."""

    def make() -> Iterator[World]:
        for _ in itertools.count():
            shutil.rmtree(world.root, ignore_errors=True)
            shutil.copytree(empty_world.root, world.root)
            yield world

    return make()


def content(path: Path) -> dict[str, bytes]:
    """Return every file at or below `path` by its relative name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {found.relative_to(path).as_posix(): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def check(world: World, acknowledged: dict[str, Path], maybe: dict[str, Path] | None = None) -> set[str]:
    """Assert that the store holds what was acknowledged and nothing but whole artifacts; return the names it has."""
    with world.open() as store:
        there = {found.summary.name for found in store.ls()}
        known = acknowledged | (maybe or {})
        assert acknowledged.keys() <= there <= known.keys()
        for name in there:
            out = world.root / "out"
            store.get_to(name, out)
            assert content(out) == content(known[name]), f"{name} is not what was put"
            if out.is_dir():
                shutil.rmtree(out)
            else:
                out.unlink()
        assert store.verify(deep=True).corrupt == ()
        if store._parts.config.encrypted:
            check_keys_are_used_once(world.store)
    return there


def dies(disk: FaultyDisk, at: int, loss: int | None, verb: Callable[[], object]) -> bool:
    """Die at point `at` of a verb, or by a power cut once it got through; return whether it died in the verb."""
    disk.arm_crash(at, loss)
    try:
        verb()
    except Crash:
        return True
    disk.cut_power(POWER)
    return False


# ---- crashes


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "existing"])
def test_put_survives_a_crash_at_every_point(
    copies: Iterator[World], checkpoints: dict[str, Path], existing: bool, loss: int | None
) -> None:
    before = {"first": checkpoints["first"]} if existing else {}
    points = crash_at_every_point_of_put(copies, before, checkpoints["second"], loss)
    assert points > (6 if existing else 20)


@pytest.mark.parametrize("loss", LOSSES)
def test_put_by_several_workers_survives_a_crash_at_every_point(
    copies: Iterator[World], checkpoints: dict[str, Path], loss: int | None
) -> None:
    """Shards are stored side by side: the points come in another order each time."""
    before = {"first": checkpoints["first"]}
    assert crash_at_every_point_of_put(copies, before, checkpoints["shards"], loss) > 20


@pytest.mark.slow
@pytest.mark.parametrize("loss", range(100, 130))
def test_put_survives_other_losses(copies: Iterator[World], checkpoints: dict[str, Path], loss: int) -> None:
    crash_at_every_point_of_put(copies, {"first": checkpoints["first"]}, checkpoints["shards"], loss)


def crash_at_every_point_of_put(copies: Iterator[World], before: dict[str, Path], new: Path, loss: int | None) -> int:
    """Die at every point of putting `new`, each time in a fresh copy; return how many points there were."""
    for at, world in enumerate(copies):
        disk = FaultyDisk(world.root)
        died = put_dies(disk, world, before, new, at, loss)
        there = check(world, before if died else before | {"new": new}, {"new": new})
        # What the first try made durable is built upon, so that must be durable indeed.
        put_dies(disk, world, {}, new, NEVER, POWER)
        check(world, before | {"new": new})
        with world.open() as store:
            assert len(store.ls("new")) == (2 if "new" in there else 1)
        if not died:
            return at
    raise AssertionError


def put_dies(disk: FaultyDisk, world: World, before: dict[str, Path], new: Path, at: int, loss: int | None) -> bool:
    """Put all of `before`, then die at point `at` of putting `new`, or after it."""
    with world.open(disk) as store:
        for name, path in before.items():
            store.put(path, name=name)
        died = dies(disk, at, loss, lambda: store.put(new, name="new"))
    disk.restart()
    return died


def test_power_cut_while_a_killed_put_is_run_again(copies: Iterator[World], checkpoints: dict[str, Path]) -> None:
    """The first process leaves unsynced bytes behind; the second must not build on them as if they were durable."""
    before, new = {"first": checkpoints["first"]}, checkpoints["shards"]
    chance = random.Random(11)
    for at in range(0, 40, 2):
        for _ in range(3):
            world = next(copies)
            disk = FaultyDisk(world.root)
            put_dies(disk, world, before, new, at, KILLED)
            put_dies(disk, world, {}, new, chance.randrange(40), chance.randrange(1000))
            check(world, before, {"new": new})
            put_dies(disk, world, {}, new, NEVER, POWER)
            check(world, before | {"new": new})


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        *(("encrypted", loss) for loss in LOSSES),
        ("plain", KILLED),
        ("plain", 3),
        ("root-file", KILLED),
        ("root-file", 4),
    ],
)
def test_init_survives_a_crash_at_every_point(
    world: World, checkpoints: dict[str, Path], kind: str, loss: int | None
) -> None:
    root_file = world.root / "elsewhere" / "root" if kind == "root-file" else None

    def init(disk: FaultyDisk) -> None:
        init_store(world.store, disk, world.held, encrypted=kind != "plain", root_file=root_file)

    for at in itertools.count():
        shutil.rmtree(world.root, ignore_errors=True)
        world.root.mkdir()
        disk = FaultyDisk(world.root)
        died = dies(disk, at, loss, lambda: init(disk))  # noqa: B023
        disk.restart()
        if not died:
            check(world, {})
        if root_file and root_file.exists():  # it comes last: what is there before is of another store
            assert (world.store / CONFIG_NAME).exists()
        init(disk)
        disk.cut_power(POWER)
        disk.restart()
        with world.open() as store:
            store.put(checkpoints["first"], name="first")
        check(world, {"first": checkpoints["first"]})
        if not died:
            break
    assert at > 40


@pytest.mark.parametrize("loss", LOSSES)
def test_add_tenant_survives_a_crash_at_every_point(
    copies: Iterator[World], checkpoints: dict[str, Path], loss: int | None
) -> None:
    for at, world in enumerate(copies):
        disk = FaultyDisk(world.root)
        with world.open(disk) as store:
            store.put(checkpoints["first"], name="first")
            died = dies(disk, at, loss, lambda: store.tenants.add("team"))
        disk.restart()
        check(world, {"first": checkpoints["first"]})
        with world.open(disk) as store:
            try:
                store.tenants.add("team")
            except Conflict:  # which says that it is there: so it must stay
                pass
            else:
                assert died
        disk.cut_power(POWER)
        disk.restart()
        with Store(world.store, tenant="team", held=world.held) as store:
            store.put(checkpoints["second"], name="second")
            assert [found.summary.name for found in store.ls()] == ["second"]
            assert store.verify(deep=True).corrupt == ()
        if not died:
            break
    assert at > 8


@pytest.mark.parametrize("loss", LOSSES)
def test_reserved_keys_survive_a_crash_at_every_point(copies: Iterator[World], loss: int | None) -> None:
    """A key that was given out never changes and is never given out again, however the next reservation ends."""
    for at, world in enumerate(copies):
        disk = FaultyDisk(world.root)
        given: dict[int, bytes] = {}
        with closing(keyring(world, disk)) as keys:
            given.update(keys.reserve(TENANT, 200))
        died = reserve_dies(disk, world, given, at, loss)
        with closing(keyring(world, disk)) as keys:
            more = dict(keys.reserve(TENANT, 100))
            assert not more.keys() & given.keys()
        disk.cut_power(POWER)
        disk.restart()
        check_keys(world, disk, given | more)
        if not died:
            break
    assert at > 8


def test_power_cut_while_a_killed_reservation_is_run_again(copies: Iterator[World]) -> None:
    """A root that a killed process wrote but did not sync must not be the only one when the next is written."""
    for first, second in itertools.product(range(1, 14), range(14)):
        world = next(copies)
        disk = FaultyDisk(world.root)
        with closing(keyring(world, disk)) as keys:
            given = dict(keys.reserve(TENANT, 200))
        reserve_dies(disk, world, given, first, KILLED)
        reserve_dies(disk, world, given, second, loss=1 + 100 * first + second)
        check_keys(world, disk, given)


def keyring(world: World, disk: FaultyDisk) -> Keyring:
    config = read_config(world.store)
    masters = open_masters(world.store / KEYS_DIR, world.held, config.store_id, lambda: None)
    return Keyring(world.store / KEYS_DIR, root_path(world.store, config), masters, config.store_id, disk)


def reserve_dies(disk: FaultyDisk, world: World, given: dict[int, bytes], at: int, loss: int | None) -> bool:
    """Die at point `at` of reserving keys, or after it; add to `given` what was given out."""
    with closing(keyring(world, disk)) as keys:
        died = dies(disk, at, loss, lambda: given.update(keys.reserve(TENANT, 100)))
    disk.restart()
    check_keys(world, disk, given)
    return died


def check_keys(world: World, disk: FaultyDisk, given: dict[int, bytes]) -> None:
    with closing(keyring(world, disk)) as keys:
        assert {slot: keys.key(TENANT, slot) for slot in given} == given


# ---- failures


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_put_into_a_full_disk_at_every_operation(
    copies: Iterator[World], checkpoints: dict[str, Path], lasting: bool
) -> None:
    """The same opened store goes on as soon as there is room again."""
    before, new = {"first": checkpoints["first"]}, checkpoints["shards"]
    for at, world in enumerate(copies):
        disk = FaultyDisk(world.root)
        with world.open(disk) as store:
            store.put(before["first"], name="first")
            disk.arm_failure(at, errno.ENOSPC, lasting=lasting)
            failure = put_fails(store, new)
            failed, operations = disk.failed, len(disk.operations)
            disk.disarm()
            assert (failure is None) == (failed is None)
            if failure:
                assert isinstance(failure, NoRoom), f"{failed} gave {failure!r}"
                check_opened(store, before)
                if failed != "sync":
                    store.put(new, name="new")
        if failed == "sync":
            with world.open(disk) as store:
                store.put(new, name="new")
        disk.cut_power(POWER)
        disk.restart()
        check(world, before | {"new": new})
        if failed is None:
            break
    assert operations > 12


def test_put_through_a_broken_disk_at_every_operation(copies: Iterator[World], checkpoints: dict[str, Path]) -> None:
    """After a failed sync nothing that went before it is trusted, though the next sync would succeed."""
    before, new = {"first": checkpoints["first"]}, checkpoints["shards"]
    for at, world in enumerate(copies):
        disk = FaultyDisk(world.root)
        with world.open(disk) as store:
            store.put(before["first"], name="first")
            disk.arm_failure(at, errno.EIO)
            failure = put_fails(store, new)
            failed = disk.failed
            disk.disarm()
            assert (failure is None) == (failed is None)
            if failure:
                assert isinstance(failure, StorageFailed), f"{failed} gave {failure!r}"
                check_opened(store, before)
        with world.open(disk) as store:
            store.put(new, name="new")
        disk.cut_power(POWER)
        disk.restart()
        check(world, before | {"new": new})
        if failed is None:
            break
    assert at > 12


class Noting(FaultyDisk):
    """Knows which of the operations were syncs of the root of the key tree."""

    def sync(self, fd: int) -> None:
        at = len(self.operations)
        super().sync(fd)
        if Path(f"/proc/self/fd/{fd}").readlink().name == "root":
            self.root_syncs.append(at)

    def disarm(self) -> None:
        super().disarm()
        self.root_syncs: list[int] = []


@pytest.mark.parametrize("which", range(3), ids=["settles", "publishes", "effaces"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_sync_of_the_root_that_failed_is_remembered(
    copies: Iterator[World], checkpoints: dict[str, Path], error: int, which: int
) -> None:
    """Whatever it failed with: the kernel would call the next one a success, and what it dropped is not on disk."""
    moments = root_syncs(next(copies), lambda keys: keys.add_tenant("team", open_keys=False))
    assert len(moments) == 3
    world, expected = next(copies), StorageFailed if error == errno.EIO else NoRoom
    disk = FaultyDisk(world.root)
    with world.open(disk) as store:
        keys = store._parts.keyring
        disk.arm_failure(moments[which], error)
        with pytest.raises(expected):
            keys.add_tenant("team", open_keys=False)
        assert disk.failed == "sync"
        disk.disarm()
        changes: list[Callable[[], object]] = [
            lambda: keys.add_tenant("other", open_keys=False),
            lambda: keys.reserve(TENANT, 1),
            lambda: keys.destroy({TENANT: [1]}),
            lambda: keys.reseal(bytes(32)),
        ]
        for change in changes:
            with pytest.raises(expected, match="open the store again"):
                change()
        assert disk.operations == []  # nothing was written, and no sync was tried
        assert isinstance(put_fails(store, checkpoints["first"]), expected)
        assert store.ls() == []  # reads go on
    with world.open(disk) as store:
        store.put(checkpoints["first"], name="first")
        store.tenants.add("other")
    disk.cut_power(POWER)
    disk.restart()
    check(world, {"first": checkpoints["first"]})


class Forgetful(FaultyDisk):
    """Loses all that a sync which fails was to write; it stays to be read until the power goes."""

    def _lose(self, contents: _Contents) -> None:
        contents.pending.clear()


def test_power_cut_after_a_sync_of_the_root_that_failed(copies: Iterator[World]) -> None:
    """Opened again, the store finds a root that is in memory alone: that the next sync succeeds says nothing of it."""
    world, given = next(copies), dict[int, bytes]()
    reserve_dies(FaultyDisk(world.root), world, given, NEVER, KILLED)
    _, publishes, _ = root_syncs(world, lambda keys: keys.reserve(TENANT, 100))
    for at, world in enumerate(copies):
        disk, given = Forgetful(world.root), {}
        reserve_dies(disk, world, given, NEVER, KILLED)
        with closing(keyring(world, disk)) as keys:
            disk.arm_failure(publishes, errno.EIO)
            with pytest.raises(StorageFailed):
                keys.reserve(TENANT, 100)
        assert disk.failed == "sync"
        if not reserve_dies(disk, world, given, at, POWER):
            break


def root_syncs(world: World, change: Callable[[Keyring], object]) -> list[int]:
    """Return which of the operations of a change were syncs of the root of the key tree."""
    disk = Noting(world.root)
    with closing(keyring(world, disk)) as keys:
        disk.disarm()
        change(keys)
    return disk.root_syncs


def put_fails(store: Store, new: Path) -> StoreError | None:
    try:
        store.put(new, name="new")
    except StoreError as error:
        return error
    return None


def check_opened(store: Store, acknowledged: dict[str, Path]) -> None:
    """Assert that an opened store shows what was acknowledged and nothing else, all of it good."""
    assert [found.summary.name for found in store.ls()] == sorted(acknowledged)
    assert store.verify(deep=True).corrupt == ()
