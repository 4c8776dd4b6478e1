"""Real processes running every kind of command, killed by SIGKILL at random moments, a thousand times and more.

After each kill the store opens by itself and holds what the dead had been told that it holds, and nothing else: a
command that was under way happened whole or not at all. `pytest -s` prints what ran.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from arstore import Store, open_store
from arstore.store.catalog import key_slots as slots
from tests.support.command import cli
from tests.support.key_account import unaccounted
from tests.support.kill_journal import REBUILD, Deed, Ownership, check_owners, check_refusals, read_journal
from tests.support.kill_model import Model
from tests.support.kill_worker import FRESH, TENANT, Ref, plain
from tests.support.segment_scan import check_keys_are_used_once, records_since

WINDOW_S = 0.25
ROUNDS_BETWEEN_DEEP_CHECKS = 25


class Loop:
    """A store, what it must hold, and what was counted."""

    def __init__(self, store: Path, journals: Path, server: "subprocess.Popen[str]", seed: int) -> None:
        self.store, self.journals, self.server, self.chance = store, journals, server, random.Random(seed)
        self.model = Model()
        self.epochs: Counter[str] = Counter()
        self.durable: dict[int, int] = {}  # what was looked at of each segment
        self.sealed: dict[tuple[bytes, int], tuple[int, int]] = {}  # where each key was seen to seal a record
        self.orphans: set[tuple[bytes, int]] = set()
        self.lives = self.kills = self.rounds = self.finished = self.undone = self.lost_keys = 0
        self.owned = self.owners_killed = 0
        self.acknowledged: Counter[str] = Counter()
        self.killed_in: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    # ---- a round

    def run(self) -> None:
        """Let processes work and kill them, one a little before the other; then look at what they left."""
        alone = self.rounds % 8 == 7
        roles = [self.rounds // 8 % 2] if alone else self.chance.sample([0, 1], 2)
        started = [(role, *self.start(role, alone)) for role in roles]
        killed = list[float]()
        for window_s, (_, pid, _) in zip((WINDOW_S, WINDOW_S / 2), started, strict=False):
            time.sleep(self.chance.uniform(0, window_s))
            killed.append(self.kill(pid))
        deeds, owned = list[Deed](), list[Ownership]()
        for (role, _, journal), moment in zip(started, killed, strict=True):
            done, held = read_journal(journal, role, moment)
            self.killed_in[done[-1].kind if done[-1].code is None else "between"] += 1
            self.acknowledged.update(deed.kind for deed in done if deed.code == 0)
            self.refused.update(deed.kind for deed in done if deed.code)
            self.owners_killed += sum(one.stop == moment for one in held)
            deeds, owned = deeds + done, owned + held
        self.rounds += 1
        check_refusals(deeds)
        self.check_what_is_there(deeds)
        check_owners(deeds, owned, self.epochs)
        self.owned += len(owned)
        self.check_keys(deeds)
        if self.rounds % ROUNDS_BETWEEN_DEEP_CHECKS == 0:
            self.check_deeply()

    def start(self, role: int, alone: bool) -> tuple[int, Path]:
        self.lives += 1
        journal = self.journals / f"{role}"
        journal.unlink(missing_ok=True)
        mine = [(*ref, version.content) for ref, version in self.model.versions.items() if version.role == role]
        orders = {
            "store": str(self.store), "journal": str(journal), "role": role, "seed": self.lives,
            "alone": alone, "mine": mine,
        }  # fmt: skip
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(orders), file=self.server.stdin, flush=True)
        pid = int(self.server.stdout.readline())
        while not (journal.exists() and journal.stat().st_size):
            time.sleep(0.0005)
        return pid, journal

    def kill(self, pid: int) -> float:
        """Kill a process and wait until it is gone; return a moment at which it was still there."""
        moment = time.monotonic()
        with suppress(ProcessLookupError):  # it ended itself, and its journal says why
            alive = os.pidfd_open(pid)
            signal.pidfd_send_signal(alive, signal.SIGKILL)
            assert select.select([alive], [], [], 30)[0], "a killed process did not go"
            os.close(alive)
        self.kills += 1
        return moment

    # ---- what must hold

    def check_what_is_there(self, deeds: Sequence[Deed]) -> None:
        """Check that what was acknowledged is so, what was under way happened or did not, and all reads back."""
        self.model.begin(deeds)
        with open_store(self.store) as store:  # by itself: nothing was repaired
            tenants = {tenant.name for tenant in store.tenants.all()}
            assert all(one.state == "dead" for one in store.leases())
        assert tenants ^ self.model.tenants <= {deed.words[2] for deed in self.model.open if deed.words[0] == "tenant"}
        self.model.tenants = tenants
        seen = set[Ref]()
        for tenant in sorted(tenants):
            with open_store(self.store, tenant=tenant) as store:
                seen.update(self.look(store, tenant))
        gone = self.model.versions.keys() - seen
        assert gone <= self.model.may_go, f"acknowledged and lost: {gone - self.model.may_go}"
        for deed in self.model.open:
            went = gone.intersection(deed.drops) & self.model.versions.keys()
            assert deed.kind != "tenant rm" or len(went) in (0, len(deed.drops)), "a tenant was removed by halves"
            for ref in went:
                self.model.drop(ref, deed.kind if deed.kind == "erase" else "")
            self.finished += bool(went or deed.came)
            self.undone += bool(deed.brings or deed.drops) and not (went or deed.came)
        with open_store(self.store) as store:
            left = self.model.destroyed.intersection(store._parts.keyring.slots(store._parts.keys.number))
        assert not left, f"keys of what was erased or removed are there: {left}"

    def look(self, store: Store, tenant: str) -> Iterator[Ref]:
        """Read every version of a tenant and check it; yield it."""
        for found in store.ls():
            ref = tenant, found.summary.name, found.summary.version
            artifact = store.get(found.text)
            files = artifact.manifest.files
            buffers = [bytearray(file.size) for file in files]
            artifact.fill(((n, 0, len(one)), memoryview(one)) for n, one in enumerate(buffers))
            read = {int(file.path): one for file, one in zip(files, buffers, strict=True)}
            assert all(plain(n) == one for n, one in read.items()), f"{ref} is torn"
            if ref not in self.model.versions:
                self.model.come(ref, sorted(read))
            version = self.model.versions[ref]
            assert sorted(version.content) == sorted(read), f"{ref} is not what was put"
            assert version.pinned in (None, found.summary.pinned), f"{ref}: pinned {found.summary.pinned}"
            version.pinned = found.summary.pinned
            if not version.slot:
                version.slot = found.row.place.slot
                blobs = artifact.manifest.blobs
                own = {blobs[file.blobs[0]].digest: int(file.path) for file in files if int(file.path) >= FRESH}
                rows = store._parts.catalog.find_blobs(own)
                version.slots = {own[digest]: row.place.slot for digest, row in rows.items()}
            yield ref

    def check_keys(self, deeds: Sequence[Deed]) -> None:
        """Check that no key sealed a second record, even where the first is gone since."""
        for header, place in records_since(self.store, self.durable):
            slot = header.binding.tenant, header.slot
            assert self.sealed.setdefault(slot, place) == place, f"key {slot} sealed two records"
        for deed in deeds:
            if deed.kind == REBUILD:  # killed, it may have forgotten loans and not yet destroyed their keys
                self.orphans = set() if deed.code == 0 else set(self.sealed)
        with open_store(self.store) as store:
            self.durable = {segment: row.durable_bytes for segment, row in store._parts.catalog.segments().items()}

    def check_deeply(self) -> None:
        """Collect, and check every byte, every size, and that every key is there for something."""
        ran = cli("--store", self.store, "gc", "--grace", "0s", "--json")
        assert ran.code == 0, ran.err
        assert cli("--store", self.store, "repair", "--json").json["corrected"] == 0
        check_keys_are_used_once(self.store)
        with open_store(self.store) as store, store._parts.tables.reading() as rows:
            owners = {key[:4] for table in ("blobs", "versions", *slots.TABLES) for key, _ in rows.scan(table, b"")}
            there = {number.to_bytes(4, "big") for number in store._parts.keyring.tenants()}
        assert owners <= there, "rows are left of a tenant that is gone"
        self.lost_keys = 0
        for tenant in sorted(self.model.tenants):
            with open_store(self.store, tenant=tenant) as store:
                assert store.verify(deep=True).corrupt == ()
                stats = store.stats()
                mine = [version.content for ref, version in self.model.versions.items() if ref[0] == tenant]
                assert stats.artifacts == len(mine)
                assert stats.unique_bytes == sum(len(plain(n)) for n in set().union(*mine))
                assert (stats.unreferenced_bytes, stats.quarantined_blobs) == (0, 0)
                assert store._parts.ledger.abandoned() == {}
                # A put that was killed between reserving keys and borrowing them leaves some, which sealed nothing. A
                # guest's that did are of a killed `tenant rm`, and go for good when that is run again.
                lost = unaccounted(store)
                sealed = self.sealed.keys() - self.orphans
                assert tenant != TENANT or sealed.isdisjoint((store._parts.keys.tenant.id, slot) for slot in lost)
                self.lost_keys += len(lost)

    def report(self) -> str:
        inside = self.kills - self.killed_in["between"]
        done, refused = self.acknowledged.total(), self.refused.total()
        lines = [
            f"{self.kills} kills, {inside} of them inside a command; {done} commands acknowledged, {refused} refused",
            f"{self.owned} leases owned, {self.owners_killed} owners killed",
            f"under way: {self.finished} came to pass, {self.undone} left no trace",
            f"{len(self.model.destroyed)} keys known to be destroyed, {self.lost_keys} keys lost",
            f"acknowledged: {dict(self.acknowledged.most_common())}",
            f"killed in: {dict(self.killed_in.most_common())}",
            f"refused: {dict(self.refused.most_common())}",
        ]
        return "\n".join(lines)


@contextmanager
def forking() -> "Iterator[subprocess.Popen[str]]":
    """Run the process that the workers are forked from."""
    command = [sys.executable, "-m", "tests.support.kill_worker"]
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root, start_new_session=True) as server:
        try:
            yield server
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # and with it who is left where a check failed


def kill_loop(folder: Path, kills: int, seed: int) -> Loop:
    assert cli("init").code == 0
    journals = folder / "journals"
    journals.mkdir()
    with forking() as server:
        loop = Loop(folder / "store", journals, server, seed)
        try:
            while loop.kills < kills:
                loop.run()
            loop.check_deeply()
        finally:
            print(f"\nseed {seed}, round {loop.rounds}\n{loop.report()}")
    return loop


def test_kills_at_random_moments(tmp_path: Path) -> None:
    loop = kill_loop(tmp_path, 40, seed=1)
    assert loop.kills - loop.killed_in["between"] >= 30


@pytest.mark.slow
def test_a_thousand_kills_at_random_moments(tmp_path: Path) -> None:
    loop = kill_loop(tmp_path, 1000, seed=2)
    assert loop.kills - loop.killed_in["between"] >= 900
    assert min(loop.acknowledged[kind] for kind in ("put", "rm", "erase", "gc", "tenant rm", "key rotate", REBUILD)) > 0
