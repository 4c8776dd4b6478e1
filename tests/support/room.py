"""A store with a clock that is set by hand, and disks that act, stop or die at a chosen operation."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from arstore.formats.catalog import parse_blob, parse_slots, parse_version
from arstore.store.access import create_store
from arstore.store.disk import Disk
from arstore.store.store import Store

KIB = 1 << 10


DAY_S = 24 * 3600


class Clock:
    """The wall clock of a store, moved by hand."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class HookedDisk(Disk):
    """The real disk, which calls `hook` with the name of an operation and a path before it takes effect."""

    def __init__(self) -> None:
        self.hook: Callable[[str, Path], None] = lambda operation, path: None

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        self.hook("new" if create else "open", path)
        return super().open(path, create=create, direct=direct, mode=mode)

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        self.hook("write", path_of(fd))
        super().write_at(fd, source, offset)

    def sync(self, fd: int) -> None:
        self.hook("sync", path_of(fd))
        super().sync(fd)

    def sync_dir(self, path: Path) -> None:
        self.hook("sync_dir", path)
        super().sync_dir(path)

    def truncate(self, fd: int, length: int) -> None:
        self.hook("truncate", path_of(fd))
        super().truncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        self.hook("punch", path_of(fd))
        return super().punch(fd, offset, length)

    def remove(self, path: Path) -> None:
        self.hook("remove", path)
        super().remove(path)


def path_of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def once(wanted: str, name: str, act: Callable[[], object]) -> Callable[[str, Path], None]:
    """A hook that acts before the first `wanted` operation on a path that holds `name`."""
    done: list[bool] = []

    def hook(operation: str, path: Path) -> None:
        if not done and operation == wanted and name in str(path):
            done.append(True)
            act()

    return hook


class Room:
    """A store, a clock, a disk that can be hooked, and files to put."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock, self.disk = path, Clock(), HookedDisk()
        self.opened: list[Store] = []
        create_store()
        self.store = self.open()

    def open(self, tenant: str = "default", disk: Disk | None = None) -> Store:
        store = Store(self.path / "store", tenant=tenant, disk=disk or self.disk, now=self.clock)
        self.opened.append(store)
        return store

    def source(self, *seeds: int, length: int = 16 * KIB) -> Path:
        """A directory with one file for each seed."""
        place = self.path / "sources" / "-".join(map(str, (*seeds, length)))
        place.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (place / str(seed)).write_bytes(random.Random(seed).randbytes(length))
        return place

    def put(self, name: str, *seeds: int, length: int = 16 * KIB, store: Store | None = None) -> Path:
        source = self.source(*seeds, length=length)
        (store or self.store).put(source, name=name)
        return source

    def check(self, expected: dict[str, Path], store: Store | None = None) -> None:
        """Assert that refs read back as they were put and that nothing else is there or bad."""
        store = store or self.store
        for ref, source in expected.items():
            out = self.path / "out"
            shutil.rmtree(out, ignore_errors=True)
            store.get_to(ref, out)
            assert files(out) == files(source), ref
        assert sorted(one.summary.name for one in store.ls()) == sorted(ref.partition("@")[0] for ref in expected)
        assert store.verify().corrupt == ()
        assert store.stats().quarantined_blobs == 0

    def check_keys(self) -> None:
        """Assert that keys are there for what rows stand on and for what is spare, and for nothing else."""
        parts = self.store._parts
        parts.keyring.refresh()  # another process or store may have committed since
        for number in parts.keyring.tenants():
            prefix = number.to_bytes(4, "big")
            with parts.tables.reading() as rows:
                blobs = {parse_blob(value).place.slot for _, value in rows.scan("blobs", prefix)}
                versions = {parse_version(value).place.slot for _, value in rows.scan("versions", prefix)}
                spare = set(parse_slots(rows.get("spare", prefix) or b""))
                assert not list(rows.scan("loans", prefix))
                assert not list(rows.scan("doomed", prefix))
            assert set(parts.keyring.slots(number)) == blobs | versions | spare
            assert not spare & (blobs | versions)

    @property
    def disk_bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in (self.path / "store" / "segments").iterdir())


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.disk.hook = lambda operation, path: None
    for store in made.opened:
        with suppress(KeyError, OSError):
            store.close()


def files(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}
