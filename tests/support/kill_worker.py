"""The processes of the kill loop: real commands, one after the other, until a SIGKILL ends them in the middle of one.

Each notes in a journal what a command is to change before it begins and how it ended after, and when it owned which
lease. A note is one write: what was noted stays, and a command that was begun and has no end was under way.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from arstore.store.catalog.catalog import Catalog
from arstore.store.catalog.changes import NewVersion
from arstore.store.catalog.leases import Lease, Leases
from tests.support.command import Ran, cli

Ref = tuple[str, str, int]  # tenant, name, version

TENANT = "default"
SHARED = tuple(range(8))  # contents that versions have in common; those from FRESH on are of one put alone
FRESH = 1000
_SIZES = (600, 9_000, 70_000, 5_000, 150_000, 20_000, 300, 2 << 20)
FENCED, KEY_REFUSED, CONFLICT, NOT_FOUND = 11, 12, 15, 3
_LIVE_MAX = 14
WAIT = ("--lock-wait", "20s")


@lru_cache(64)
def plain(n: int) -> bytes:
    """Return content number `n`."""
    return random.Random(n).randbytes(_SIZES[n % len(_SIZES)])


class Journal:
    """What a process says of itself, for those who look when it is gone."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, **said: object) -> None:
        os.write(self._fd, json.dumps({"at": time.monotonic(), **said}).encode() + b"\n")


def watch_leases(journal: Journal) -> None:
    """Note every ownership from its first to its last moment, and when a commit under it begins."""
    hold, commit = Leases.hold, Catalog.commit

    @contextlib.contextmanager
    def watched(leases: Leases, scope: bytes, purpose: str, wait_s: float = 0.0) -> Iterator[Lease]:
        with hold(leases, scope, purpose, wait_s) as lease:
            journal.note(owns=scope.hex(), epoch=lease.epoch)
            try:
                yield lease
            finally:
                journal.note(leaves=scope.hex(), epoch=lease.epoch)

    def committed(catalog: Catalog, new: NewVersion) -> None:
        if new.lease:
            journal.note(commits=new.lease.scope.hex(), epoch=new.lease.epoch)
        commit(catalog, new)

    Leases.hold, Catalog.commit = watched, committed  # type: ignore[method-assign, assignment]


class Worker:
    """One of two that share a store. Versions that it put are its own: nobody else removes them."""

    def __init__(self, store: str, journal: str, role: int, seed: int, alone: bool, mine: Sequence[Any]) -> None:
        self.store, self.role, self.alone = store, role, alone
        self.journal = Journal(Path(journal))
        self.source = Path(f"{journal}.source")
        self.chance = random.Random(seed)
        self.fresh = FRESH + 1000 * seed
        self.mine: dict[Ref, list[int]] = {(tenant, name, version): put for tenant, name, version, put in mine}
        self.names, self.guest = (f"{role}/a", f"{role}/b"), f"guest{role}"
        watch_leases(self.journal)

    def work(self) -> None:
        """Run commands for ever."""
        deeds = Counter(
            put=8, put_both=4, put_alone=4, put_guest=3, tag=3, pin=2, rm=3, erase=3, forget=2, gc=4, scrub=4,
            rotate=2, remove_guest=2, break_lease=2, rebuild=4 * self.alone,
        )  # fmt: skip
        while True:
            now = deeds + Counter(rm=20, erase=20) if len(self.mine) > _LIVE_MAX else deeds
            [deed] = self.chance.sample(list(now), 1, counts=list(now.values()))
            getattr(self, deed)()

    # ---- what is done

    def put(self) -> None:
        self.store_one(self.chance.choice(self.names), *self.chance.choice(((), ("--pin",))))

    def put_both(self) -> None:
        self.store_one("both", "--multi-writer")

    def put_alone(self) -> None:
        self.store_one("alone", *WAIT)

    def put_guest(self) -> None:
        if self.do("tenant", "add", self.guest, allowed=(CONFLICT,)).code != KEY_REFUSED:
            self.store_one("g", tenant=self.guest)

    def tag(self) -> None:
        if ref := self.choose():
            new = self.chance.choice(self.names)
            self.do("tag", text(ref), new, brings=(TENANT, new, self.mine[ref]), allowed=(FENCED,))

    def pin(self) -> None:
        if ref := self.choose():
            self.do(self.chance.choice(("pin", "unpin")), text(ref), pins=ref)

    def rm(self) -> None:
        if ref := self.choose():
            self.do("rm", text(ref), drops=[ref])

    def erase(self) -> None:
        if ref := self.choose(self.names):
            self.do("erase", text(ref), drops=[ref])

    def forget(self) -> None:
        """Remove every version of a name."""
        if ref := self.choose(self.names):
            words = self.chance.choice((("rm", ref[1], "--all-versions"), ("erase", ref[1])))
            self.do(*words, drops=[one for one in self.mine if one[:2] == ref[:2]])

    def gc(self) -> None:
        self.do("gc", "--grace", self.chance.choice(("0s", "0s", "24h")), *WAIT)

    def scrub(self) -> None:
        words = self.chance.choice((("verify",), ("verify", "--deep"), ("repair",), ("get",)))
        if words == ("repair",):
            ran = self.do("repair", allowed=(CONFLICT,))
            assert ran.code or (ran.json["lost"], ran.json["corrected"]) == ([], 0), ran
        elif words != ("get",):
            self.do(*words)
        elif ref := self.choose():
            self.do("get", text(ref), f"{self.source}.out")
            shutil.rmtree(f"{self.source}.out", ignore_errors=True)

    def rotate(self) -> None:
        self.do("key", "rotate", allowed=(CONFLICT,))

    def remove_guest(self) -> None:
        drops = [ref for ref in self.mine if ref[0] == self.guest]
        self.do("tenant", "rm", self.guest, "--erase", drops=drops)

    def break_lease(self) -> None:
        """Take the lease of a put that is under way, and put under its name."""
        for _ in range(5):
            held = self.do("lease", "ls").json.get("leases", [])
            for one in held:
                if one["purpose"] == "put" and one["state"] == "live":
                    self.do("lease", "break", one["id"], allowed=(NOT_FOUND,))
                    self.put_alone()
                    return

    def rebuild(self) -> None:
        self.do("repair", "--rebuild-catalog", "--forget-lost")

    # ---- how it is done

    def store_one(self, name: str, *flags: str, tenant: str = TENANT) -> None:
        content = self.chance.sample(SHARED, self.chance.randrange(3))
        content += range(self.fresh, self.fresh + self.chance.randint(0 if content else 1, 2))
        self.fresh += 2
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir()
        for n in content:
            (self.source / str(n)).write_bytes(plain(n))
        self.do("put", self.source, name, *flags, tenant=tenant, brings=(tenant, name, content), allowed=(FENCED,))

    def do(
        self, *words: object, tenant: str = TENANT, brings: object = None, drops: Sequence[Ref] = (),
        pins: Ref | None = None, allowed: Sequence[int] = (),
    ) -> Ran:  # fmt: skip
        """Run one command; what it was to change is not counted on any more unless it was acknowledged."""
        self.journal.note(begin=[str(word) for word in words], brings=brings, drops=drops, pins=pins)
        ran = cli("--store", self.store, "--tenant", tenant, "--json", *words)
        self.journal.note(code=ran.code, answer=ran.json)
        assert ran.code in (0, KEY_REFUSED, *allowed), (words, ran)
        for ref in drops:
            del self.mine[ref]
        if isinstance(brings, tuple) and not ran.code:
            self.mine[tenant, brings[1], ran.json["version"]] = brings[2]
        return ran

    def choose(self, names: Sequence[str] = ()) -> Ref | None:
        refs = [ref for ref in self.mine if ref[0] == TENANT and ref[1] in (names or (*self.names, "both", "alone"))]
        return self.chance.choice(refs) if refs else None


def text(ref: Ref) -> str:
    return f"{ref[1]}@{ref[2]}"


def serve() -> None:
    """Fork a worker for each line of orders and print its pid: it has everything imported when it is born."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead leave no zombies
    for line in sys.stdin:
        orders = json.loads(line)
        pid = os.fork()
        if not pid:
            try:
                Worker(**orders).work()
            except BaseException:
                Journal(Path(orders["journal"])).note(broken=traceback.format_exc())
            finally:
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
