"""A store against a dict, through whatever hypothesis thinks of: puts, drops, collections, crashes, theft, odd clocks.

Artifacts are directories of small files drawn from a few contents, so that they share blobs. What the dict holds is
what must be readable, byte for byte; nothing else may be visible, and no key may be left without a use.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from arstore.formats.catalog import parse_blob, parse_version
from arstore.store.access import create_store
from arstore.store.disk import Disk
from arstore.store.errors import Fenced, NotFound, StorageFailed
from arstore.store.keys.unlock import Secrets
from arstore.store.maintenance.collect import AT_ONCE, CAREFUL, Margins
from arstore.store.maintenance.retention import Retention
from arstore.store.store import Store
from tests.support.key_account import unaccounted

NAMES = ("a", "b", "team/c")
Content = frozenset[int]


class Killed(BaseException):
    """The process ends here."""


class FrailDisk(Disk):
    """The real disk until `left` operations are over; then nothing reaches it any more."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.before_sync: Callable[[], None] | None = None

    def _step(self) -> None:
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        self._step()
        super().write_at(fd, source, offset)

    def sync(self, fd: int) -> None:
        self._step()
        if self.before_sync and ".seg" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            act, self.before_sync = self.before_sync, None
            act()
        # Nothing here takes the power away: what was written is there for the next process, synced or not.

    def sync_dir(self, path: Path) -> None:
        self._step()

    def truncate(self, fd: int, length: int) -> None:
        self._step()
        super().truncate(fd, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        self._step()
        return super().punch(fd, offset, length)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)


@dataclass
class Version:
    content: Content
    pinned: bool = False
    label: str | None = None


class Machine(RuleBasedStateMachine):
    """What a store must do, said by a dict of (name, version)."""

    def __init__(self) -> None:
        super().__init__()
        self.cleaning = ExitStack()
        self.path = Path(self.cleaning.enter_context(tempfile.TemporaryDirectory()))
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.versions: dict[tuple[str, int], Version] = {}
        self.last: Counter[str] = Counter()
        self.disk = FrailDisk()
        self.store: Store

    @initialize(encrypted=st.sampled_from([True, True, True, False]))
    def make(self, encrypted: bool) -> None:
        self.encrypted = encrypted
        self.leaked: set[int] = set()
        create_store(self.path / "store", encrypted=encrypted, key_file=self.path / "key" if encrypted else None)
        self.store = self.opened()

    def opened(self) -> Store:
        self.disk = FrailDisk()
        held = Secrets(key_file=self.path / "key") if self.encrypted else Secrets()
        return Store(self.path / "store", held=held, disk=self.disk, now=lambda: self.now)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        self.cleaning.close()

    # ---- what is done

    contents = st.frozensets(st.integers(0, 7), min_size=1, max_size=4)
    names = st.sampled_from(NAMES)

    @rule(name=names, content=contents, multi_writer=st.booleans())
    def put(self, name: str, content: Content, multi_writer: bool) -> None:
        stored = self.store.put(self.source(content), name=name, multi_writer=multi_writer)
        self.came(name, stored.summary.version, content)

    @rule(name=names, content=contents, label=st.sampled_from(["x", "y"]))
    def put_labelled(self, name: str, content: Content, label: str) -> None:
        taken = [one for one, found in self.versions.items() if one[0] == name and found.label == label]
        if taken and self.versions[taken[0]].content != content:
            with pytest.raises(Exception, match="label is taken"):
                self.store.put(self.source(content), name=f"{name}@{label}")
            return
        stored = self.store.put(self.source(content), name=f"{name}@{label}")
        if taken:
            assert stored.summary.version == taken[0][1]
        else:
            self.came(name, stored.summary.version, content, label)

    @precondition(lambda self: self.versions)
    @rule(chosen=st.data(), new=names)
    def tag(self, chosen: st.DataObject, new: str) -> None:
        one = self.choose(chosen)
        newest = self.newest(new)
        stored = self.store.tag(f"{one[0]}@{one[1]}", new)
        if newest and self.versions[newest].content == self.versions[one].content:
            assert stored.summary.version == newest[1]
        else:
            self.came(new, stored.summary.version, self.versions[one].content)

    @precondition(lambda self: self.versions)
    @rule(chosen=st.data(), all_versions=st.booleans())
    def rm(self, chosen: st.DataObject, all_versions: bool) -> None:
        name, version = self.choose(chosen)
        if all_versions:
            self.store.rm(name, all_versions=True)
            self.versions = {one: found for one, found in self.versions.items() if one[0] != name}
        else:
            self.store.rm(f"{name}@{version}")
            del self.versions[name, version]

    @precondition(lambda self: self.versions and self.encrypted)
    @rule(chosen=st.data())
    def erase(self, chosen: st.DataObject) -> None:
        name, version = self.choose(chosen)
        gone = self.versions.pop((name, version))
        shared = gone.content & self.needed()
        receipt = self.store.erase(f"{name}@{version}")
        assert (receipt.blobs_erased, receipt.blobs_shared) == (len(gone.content) - len(shared), len(shared))
        if not self.newest(name):
            self.last[name] = 0  # even the name is forgotten

    @precondition(lambda self: self.versions)
    @rule(chosen=st.data(), pinned=st.booleans())
    def pin(self, chosen: st.DataObject, pinned: bool) -> None:
        one = self.choose(chosen)
        (self.store.pin if pinned else self.store.unpin)(f"{one[0]}@{one[1]}")
        self.versions[one].pinned = pinned

    @rule(margins=st.sampled_from([AT_ONCE, CAREFUL, Margins(2, 3600)]))
    def gc(self, margins: Margins) -> None:
        dry = self.store.gc(margins, dry_run=True)
        real = self.store.gc(margins)
        assert real.dropped == dry.dropped == ()
        if margins == AT_ONCE:
            assert self.store.stats().unreferenced_bytes == 0
            self.check_keys()

    @rule(keep=st.integers(1, 3))
    def gc_keeping_last(self, keep: int) -> None:
        self.store.gc(AT_ONCE, Retention(keep_last=keep))
        for name in NAMES:
            numbers = sorted((number for other, number in self.versions if other == name), reverse=True)
            for number in numbers[keep:]:
                if not (self.versions[name, number].pinned or self.versions[name, number].label):
                    del self.versions[name, number]

    @rule(hours=st.sampled_from([-24 * 400, -2, 1, 23, 24, 49, 24 * 400]))
    def clock_jumps(self, hours: int) -> None:
        self.now = max(self.now + timedelta(hours=hours), datetime(2000, 1, 1, tzinfo=UTC))

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule(name=names, content=contents, after=st.integers(0, 14))
    def crash_in_put(self, name: str, content: Content, after: int) -> None:
        self.disk.left = after
        try:
            stored = self.store.put(self.source(content), name=name)
        except Killed:
            self.restart()
            self.leaked |= unaccounted(self.store)
            found = [one.summary.version for one in self.store.ls(name)]
            if (name, self.last[name] + 1) not in [(name, version) for version in found]:
                return
            stored_version = self.last[name] + 1  # it was committed, and not acknowledged
        else:
            self.disk.left = None
            stored_version = stored.summary.version
        self.came(name, stored_version, content)

    @rule(after=st.integers(0, 10))
    def crash_in_gc(self, after: int) -> None:
        self.disk.left = after
        try:
            self.store.gc(AT_ONCE)
        except Killed:
            self.restart()
        self.disk.left = None

    @rule(name=names, content=contents)
    def theft(self, name: str, content: Content) -> None:
        def steal() -> None:
            [lease] = [one for one in self.store.leases() if one.purpose == "put"]
            self.store.break_lease(lease.id)

        self.store.recover()  # or the hook would meet its sync first
        self.disk.before_sync = steal
        with pytest.raises(Fenced):
            self.store.put(self.source(content), name=name)

    @rule(name=names, content=contents, other=contents)
    def collected_meanwhile(self, name: str, content: Content, other: Content) -> None:
        """Another process collects at once between the writing of a put and its commit."""

        def collect() -> None:
            held = Secrets(key_file=self.path / "key") if self.encrypted else Secrets()
            with Store(self.path / "store", held=held, now=lambda: self.now) as beside:
                beside.gc(AT_ONCE)

        self.store.recover()  # or the hook would meet its sync first
        self.disk.before_sync = collect
        self.put(name, content, False)
        self.disk.before_sync = None

    @rule(name=names, content=contents)
    def overtaken(self, name: str, content: Content) -> None:
        """Another process adds a version between the writing of a put and its commit."""

        def overtake() -> None:
            held = Secrets(key_file=self.path / "key") if self.encrypted else Secrets()
            with Store(self.path / "store", held=held, now=lambda: self.now) as beside:
                version = beside.put(self.source(content), name=name, multi_writer=True).summary.version
                self.came(name, version, content)

        self.store.recover()  # or the hook would meet its sync first
        self.disk.before_sync = overtake
        self.put(name, content, True)
        assert self.disk.before_sync is None

    @rule()
    def a_disk_that_fails(self) -> None:
        def fail() -> None:
            raise StorageFailed("sync", "input/output error")

        self.disk.before_sync = fail
        with pytest.raises(StorageFailed):
            self.store.put(self.source(frozenset([99])), name="a")
        self.reopen()

    # ---- what must hold

    @invariant()
    def only_what_was_put_is_visible(self) -> None:
        if hasattr(self, "store"):
            found = {(one.summary.name, one.summary.version): one.summary for one in self.store.ls()}
            assert found.keys() == self.versions.keys()
            for one, version in self.versions.items():
                assert (found[one].pinned, found[one].label) == (version.pinned, version.label)

    @invariant()
    def all_of_it_reads_back(self) -> None:
        for (name, number), version in self.versions.items():
            artifact = self.store.get(f"{name}@{number}")
            read = {}
            for file in artifact.manifest.files:
                buffer = bytearray(file.size)
                artifact.fill([((artifact.manifest.files.index(file), 0, file.size), memoryview(buffer))])
                read[file.path] = bytes(buffer)
            assert read == {str(n): plain(n) for n in version.content}

    @invariant()
    def sizes_add_up(self) -> None:
        if not hasattr(self, "store"):
            return
        stats = self.store.stats()
        needed = sum(len(plain(n)) for n in self.needed())
        assert stats.artifacts == len(self.versions)
        assert stats.unique_bytes - stats.unreferenced_bytes == needed
        assert stats.logical_bytes == sum(len(plain(n)) for one in self.versions.values() for n in one.content)
        assert stats.quarantined_blobs == 0
        parts = self.store._parts
        with parts.tables.reading() as rows:
            places = [parse_blob(value).place for _, value in rows.scan("blobs", b"")]
            places += [parse_version(value).place for _, value in rows.scan("versions", b"")]
        live: Counter[int] = Counter()
        for place in places:
            live[place.segment] += place.record_bytes
        assert stats.stored_bytes == sum(live.values())
        assert {n: row.live_bytes for n, row in parts.catalog.segments().items() if row.live_bytes} == dict(live)

    @rule()
    def nothing_is_bad(self) -> None:
        assert self.store.verify().corrupt == ()
        for name in NAMES:
            if not self.newest(name):
                with pytest.raises(NotFound):
                    self.store.get(name)

    # ---- how it is done

    def check_keys(self) -> None:
        """Check that every key is needed, lent or spare; only a put that died as it reserved keys may leave others,
        which sealed nothing.
        """
        if self.encrypted:
            assert unaccounted(self.store) <= self.leaked

    def restart(self) -> None:
        """What a new process finds: the store closed by a death, its loans and leases of a process that is gone."""
        self.disk.left = None
        self.store.close()
        self.store = self.opened()

    def came(self, name: str, version: int, content: Content, label: str | None = None) -> None:
        assert version == self.last[name] + 1
        self.last[name] = version
        self.versions[name, version] = Version(content, False, label)

    def choose(self, chosen: st.DataObject) -> tuple[str, int]:
        return chosen.draw(st.sampled_from(sorted(self.versions)))

    def newest(self, name: str) -> tuple[str, int] | None:
        return max((one for one in self.versions if one[0] == name), default=None)

    def needed(self) -> Content:
        return frozenset[int]().union(*(one.content for one in self.versions.values()))

    def source(self, content: Content) -> Path:
        place = self.path / "source"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for n in content:
            (place / str(n)).write_bytes(plain(n))
        return place


def plain(n: int) -> bytes:
    return f"content {n} ".encode() * (100 + 400 * n)


QUICK = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=300, stateful_step_count=60)


def test_a_store_is_a_dict() -> None:
    run_state_machine_as_test(Machine, settings=QUICK)


@pytest.mark.slow
def test_a_store_is_a_dict_for_long() -> None:
    run_state_machine_as_test(Machine, settings=LONG)
