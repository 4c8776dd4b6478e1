"""Leases: an owner that went is taken over, a sleeper publishes nothing, and epochs only grow."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arstore.formats.lease import LeaseRow, ProcessId, parse_lease
from arstore.store.access import create_store, open_store
from arstore.store.catalog import leases as leases_room
from arstore.store.catalog.leases import Leases, current_process, now_ns, process_start, sees_dead
from arstore.store.errors import Fenced, StorageFailed
from arstore.store.store import Store
from tests.support.command import PATIENCE_S, cli
from tests.support.owners import contents, holding, resume, source, store

__all__ = ["source", "store"]  # fixtures


def held(store: Store, name: str = "model") -> LeaseRow:
    """The row of the lease on a name."""
    with store._parts.tables.reading() as rows:
        value = rows.get("leases", store._parts.catalog.scope(name))
    assert value is not None
    return parse_lease(value)


def plant(store: Store, process: ProcessId, *, expires_in_s: float = 3600, epoch: int = 7) -> None:
    """Write the row of another owner."""
    row = LeaseRow(epoch, now_ns() + int(expires_in_s * 1e9), b"o" * 16, process, int(time.time()), "put")
    store._parts.tables.write(lambda rows: rows.put("leases", store._parts.catalog.scope("model"), row.packed()))


def test_an_owner_killed_is_taken_over_at_once(source: Path, store: Store, tmp_path: Path) -> None:
    with holding(source) as owner:
        owner.kill()
        owner.wait()
        assert [one.state for one in store.leases()] == ["dead"]
        began = time.monotonic()
        assert cli("put", source, "model").code == 0
        assert time.monotonic() - began < 20  # the lease itself runs for 60
    assert held(store).epoch == 2
    assert contents(store, "model@1", tmp_path / "out") == source.read_bytes()


def test_a_killed_owner_that_nobody_waited_for_is_gone_too(source: Path, store: Store) -> None:
    with holding(source) as owner:
        owner.kill()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert Path(f"/proc/{owner.pid}").exists()
        assert cli("put", source, "model").code == 0


def expire(store: Store, name: str = "model") -> None:
    """Let the lease on a name be over, as it is once its owner has slept for long."""
    row = replace(held(store, name), expires_ns=now_ns() - 1)
    store._parts.tables.write(lambda rows: rows.put("leases", store._parts.catalog.scope(name), row.packed()))


def when_it_waits(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[float]:
    """Act when somebody in this process begins to wait for a lease; return how long each of its waits was to be."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            act()

    monkeypatch.setattr(leases_room, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))
    return waits


def test_a_sleeper_past_its_expiry_publishes_nothing(
    source: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"second" * 1000)
    with holding(source) as owner:
        os.kill(owner.pid, signal.SIGSTOP)
        assert cli("put", theirs, "model").code == 11  # not before it expires
        waits = when_it_waits(monkeypatch, lambda: expire(store))
        assert cli("put", theirs, "model", "--lock-wait", "20s").code == 0
        assert waits
        os.kill(owner.pid, signal.SIGCONT)
        code, said = resume(owner)
    assert code == 11, said
    assert "nothing was published" in said
    assert [one.text for one in store.ls()] == ["model@1"]
    assert contents(store, "model", tmp_path / "out") == theirs.read_bytes()
    assert store.verify().corrupt == ()


def test_a_sleeper_is_refused_though_nobody_took_over(source: Path, store: Store) -> None:
    with holding(source) as owner:
        os.kill(owner.pid, signal.SIGSTOP)
        expire(store)
        assert [one.state for one in store.leases()] == ["expired"]
        os.kill(owner.pid, signal.SIGCONT)
        code, said = resume(owner)
    assert (code, "expired" in said) == (11, True)
    assert store.ls() == []


def test_a_sleeper_is_fenced_by_a_taker_that_is_done_already(source: Path, store: Store) -> None:
    with holding(source) as owner:
        os.kill(owner.pid, signal.SIGSTOP)
        expire(store)
        assert cli("put", source, "model").code == 0  # takes over, publishes and releases
        assert not held(store).held
        os.kill(owner.pid, signal.SIGCONT)
        assert resume(owner)[0] == 11
    assert [one.text for one in store.ls()] == ["model@1"]


def test_an_owner_whose_lease_was_broken_publishes_nothing(source: Path, store: Store) -> None:
    with holding(source) as owner:
        [lease] = cli("lease", "ls", "--json").json["leases"]
        told = cli("lease", "break", lease["id"][:12], "--json", "--dry-run")
        assert (told.code, told.json["dry_run"], told.json["broken"]["id"]) == (0, True, lease["id"])
        assert "would break" in cli("lease", "break", lease["id"][:12], "--dry-run").out
        assert [one.state for one in store.leases()] == ["live"]
        broken = cli("lease", "break", lease["id"][:12], "--json")
        assert (broken.code, broken.json["dry_run"]) == (0, False)
        assert broken.json["broken"]["pid"] == owner.pid
        assert cli("lease", "ls", "--json").json == {"leases": []}
        assert resume(owner)[0] == 11
    assert store.ls() == []
    assert cli("put", source, "model").code == 0


class Clock:
    """A clock that stands still until it is moved, of a keeper that looks whether to renew a hundred times a second."""

    TTL_S = 0.03

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.fails, self.asked = now_ns(), False, threading.Semaphore(0)
        monkeypatch.setattr(leases_room, "now_ns", lambda: self.now)  # what a lease is checked by

    def __call__(self) -> int:
        self.asked.release()
        if self.fails:
            raise StorageFailed("disk", "input/output error")
        return self.now

    def move(self, share: float) -> None:
        """Let a share of a lease's time pass."""
        self.now += int(share * self.TTL_S * 1e9)

    def wait(self, times: int) -> None:
        """Wait until the clock was read so many times more."""
        while self.asked.acquire(blocking=False):
            pass
        for _ in range(times):
            assert self.asked.acquire(timeout=PATIENCE_S)


def test_an_owner_outlives_many_expiries_while_it_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    leases = Leases(store._parts.tables, current_process(), clock.TTL_S, clock)
    with leases.hold(b"scope", "put") as lease:
        for _ in range(8):
            clock.move(0.8)
            clock.wait(2)  # a renewal began after the clock was moved, and another after that one was done
            with pytest.raises(Fenced):
                leases._acquire(b"scope", "put", 0)
        store._parts.tables.write(lease.check)
        assert lease.epoch == 1


def test_a_put_renews_its_lease(source: Path, store: Store) -> None:
    with holding(source, ttl_s=3.0) as owner:
        first = held(store).expires_ns
        until = time.monotonic() + PATIENCE_S
        while held(store).expires_ns == first:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert cli("put", source, "model").code == 11
        assert resume(owner) == (0, "1\n")


@pytest.mark.parametrize(("passes", "survives"), [(0.8, True), (1.1, False)])
def test_a_renewal_that_fails_is_tried_again_until_the_lease_is_over(
    store: Store, passes: float, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is read in the transaction that renews; where it can't be, that transaction fails as on a bad disk."""
    clock, threads = Clock(monkeypatch), threading.active_count()
    with Leases(store._parts.tables, current_process(), clock.TTL_S, clock).hold(b"scope", "put") as lease:
        clock.fails = True
        clock.wait(3)
        clock.move(passes)
        clock.fails = False
        if survives:
            clock.wait(2)
            clock.move(0.8)  # over by now, had it not been renewed
            store._parts.tables.write(lease.check)
            assert threading.active_count() == threads + 1
        else:
            with pytest.raises(Fenced, match="expired"):
                store._parts.tables.write(lease.check)
            until = time.monotonic() + PATIENCE_S
            while threading.active_count() > threads:  # nobody renews what is lost
                assert time.monotonic() < until
                time.sleep(0.01)


def test_an_owner_of_another_boot_is_taken_over(source: Path, store: Store) -> None:
    plant(store, replace(current_process(), boot_id=b"b" * 16))
    assert cli("put", source, "model").code == 0
    assert held(store).epoch == 8


def test_a_process_with_the_number_of_the_owner_is_not_the_owner(source: Path, store: Store) -> None:
    here = current_process()
    assert process_start(here.pid) == here.start
    plant(store, replace(here, start=here.start - 1))
    assert cli("put", source, "model").code == 0
    plant(store, here)
    assert cli("put", source, "model").code == 11
    assert sees_dead(here, replace(here, start=here.start + 1))
    assert not sees_dead(here, here)


def test_an_owner_in_another_pid_namespace_is_waited_for(
    source: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(current_process(), pid=4_000_000, pid_namespace=1)
    plant(store, elsewhere)
    assert cli("put", source, "model").code == 11
    waits = when_it_waits(monkeypatch, lambda: expire(store))
    assert cli("put", source, "model", "--lock-wait", "20s").code == 0
    assert len(waits) == 1


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_the_wall_clock_has_no_say(source: Path, store: Store, jump_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: max(real() + jump_s, 0))
    scope = store._parts.catalog.scope("model")
    with store._parts.leases.hold(scope, "put") as lease:
        monkeypatch.setattr(time, "time", real)
        assert cli("put", source, "model").code == 11  # neither expired nor
        store._parts.tables.write(lease.check)  # fenced by it
        assert [one.state for one in store.leases()] == ["live"]


def test_suspended_time_counts(store: Store) -> None:
    """CLOCK_MONOTONIC stands still in suspend; a lease by it would outlive its owner's right to it."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= now_ns() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    ahead = [0]
    leases = Leases(store._parts.tables, current_process(), 10.0, lambda: now_ns() + ahead[0])
    first = leases._acquire(b"scope", "put", 0)
    ahead[0] = int(9e9)
    with pytest.raises(Fenced):
        leases._acquire(b"scope", "put", 0)
    ahead[0] = int(11e9)
    assert leases._acquire(b"scope", "put", 0).epoch == first.epoch + 1
    with pytest.raises(Fenced):
        store._parts.tables.write(first.check)


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.sampled_from(["take", "release", "expire", "break", "die", "stale release"]), max_size=20))
def test_epochs_only_grow(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    root = tmp_path_factory.mktemp("epochs")
    create_store(root / "store", encrypted=False)
    with open_store(root / "store") as store:
        ahead = [0]
        tables = store._parts.tables
        leases = Leases(tables, current_process(), 1000.0, lambda: now_ns() + ahead[0])
        taken = []
        for step in steps:
            owned = [one for one in leases.held() if one.state == "live"]
            if step == "take":
                if owned:
                    with pytest.raises(Fenced):
                        leases._acquire(b"scope", "put", 0)
                else:
                    taken.append(leases._acquire(b"scope", "put", 0))
            elif step == "release" and taken:
                leases._release(taken[-1])
            elif step == "stale release" and len(taken) > 1:
                leases._release(taken[0])
                assert [one.epoch for one in leases.held() if one.state == "live"] == [one.epoch for one in owned]
            elif step == "expire":
                ahead[0] += int(1001e9)
            elif step == "break" and leases.held():
                leases.break_(b"scope".hex())
            elif step == "die" and leases.held():
                with tables.reading() as rows:
                    row = parse_lease(rows.get("leases", b"scope") or b"")
                gone = replace(row, process=replace(row.process, start=1))
                tables.write(lambda rows, gone=gone: rows.put("leases", b"scope", gone.packed()))  # type: ignore[misc]
            for stale in taken[:-1]:
                with pytest.raises(Fenced):
                    tables.write(stale.check)
        assert [one.epoch for one in taken] == list(range(1, len(taken) + 1))
