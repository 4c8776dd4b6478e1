"""Leases: who may publish under a scope. There is one owner at a time, fenced by an epoch that only grows.

Invariant: a commit that names a lease succeeds only while that very ownership stands and has not expired. The
committing transaction checks this. Leases expire by CLOCK_BOOTTIME: setting the clock doesn't move it, and it goes on
in suspend. The lease of an owner of another boot, or of a process that is gone, can be taken over at once.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...formats.lease import LeaseRow, ProcessId, parse_lease
from ..errors import BadInput, Fenced, NotFound
from .tables import Rows, Tables

TTL_S = 60.0
TABLE = "leases"


def current_process() -> ProcessId:
    """Return what leases say of this process."""
    boot_id = bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    return ProcessId(boot_id, os.getpid(), process_start(os.getpid()) or 0, os.stat("/proc/self/ns/pid").st_ino)


def sees_dead(here: ProcessId, other: ProcessId) -> bool:
    """Say whether another process is certainly gone: its boot is over, or nothing runs with its number and start.

    Processes of another namespace can't be seen, so the answer for them is no.
    """
    if other.boot_id != here.boot_id:
        return True
    return other.pid_namespace == here.pid_namespace and process_start(other.pid) != other.start


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def now_ns() -> int:
    """Return the clock that leases expire by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Lease:
    """One ownership of a scope. Whoever publishes under the scope names it."""

    scope: bytes
    owner: bytes
    epoch: int

    def check(self, rows: Rows) -> None:
        """Raise Fenced unless this ownership stands; call it inside the committing transaction."""
        row = _read(rows, self.scope)
        if row is None or row.owner != self.owner or row.epoch != self.epoch:
            raise Fenced("lease", "another owner took over; nothing was published")
        if now_ns() >= row.expires_ns:
            raise Fenced("lease", "it expired while this process was held up; nothing was published")


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as `lease ls` shows it. `state` is live, expired or dead; the last two can be taken over."""

    id: str
    purpose: str
    epoch: int
    pid: int
    acquired_s: int
    expires_in_s: float
    state: str


class Leases:
    """The leases of a store."""

    def __init__(
        self, tables: Tables, process: ProcessId, ttl_s: float = TTL_S, clock: Callable[[], int] = now_ns
    ) -> None:
        self._tables, self._process, self._ttl_ns, self._clock = tables, process, int(ttl_s * 1e9), clock

    @contextlib.contextmanager
    def hold(self, scope: bytes, purpose: str, wait_s: float = 0.0) -> Iterator[Lease]:
        """Own a scope while the body runs. A thread renews the lease.

        Raises Fenced if somebody else owns the scope and doesn't release it within `wait_s`.
        """
        lease = self._acquire(scope, purpose, wait_s)
        done = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(lease, done), daemon=True)
        keeper.start()
        try:
            yield lease
        finally:
            done.set()
            keeper.join()
            self._release(lease)

    def held(self) -> list[HeldLease]:
        """Return every lease that has an owner."""
        leases = [(key, parse_lease(value)) for key, value in self._tables.scan(TABLE, b"")]
        return [self._shown(key, row) for key, row in leases if row.held]

    def break_(self, lease_id: str, *, dry_run: bool = False) -> HeldLease:
        """Take a lease away from its owner, who is fenced from then on; raise NotFound if there is none.

        `lease_id` may be the start of an id. Raises BadInput if several ids start like this.
        """
        matching = [held for held in self.held() if lease_id and held.id.startswith(lease_id)]
        if len(matching) == 1:
            if not dry_run:
                self._tables.write(lambda rows: _release(rows, bytes.fromhex(matching[0].id)))
            return matching[0]
        if matching:
            raise BadInput(f"lease {lease_id}", f"{len(matching)} leases start like this; give more digits")
        raise NotFound(f"lease {lease_id}", "no lease of this id is held", hint="'arstore lease ls' lists them")

    def _acquire(self, scope: bytes, purpose: str, wait_s: float) -> Lease:
        deadline = self._clock() + int(wait_s * 1e9)
        while True:
            try:
                return self._tables.write(lambda rows: self._take(rows, scope, purpose))
            except Fenced:
                if self._clock() >= deadline:
                    raise
            time.sleep(0.05)

    def _take(self, rows: Rows, scope: bytes, purpose: str) -> Lease:
        row = _read(rows, scope)
        if row and row.held and self._state(row) == "live":
            seconds = (row.expires_ns - self._clock()) / 1e9
            why = f"held by process {row.process.pid} for {row.purpose}, for at least {seconds:.0f} s more"
            raise Fenced("lease", why, hint="wait with --lock-wait, or see 'arstore lease ls'")
        owner, epoch = os.urandom(16), (row.epoch if row else 0) + 1
        expires = self._clock() + self._ttl_ns
        taken = LeaseRow(epoch, expires, owner, self._process, int(time.time()), purpose)
        rows.put(TABLE, scope, taken.packed())
        return Lease(scope, owner, epoch)

    def _keep(self, lease: Lease, done: threading.Event) -> None:
        """Renew the lease until `done` is set or the lease is lost. A commit that names a lost lease is refused."""
        wait_s = self._ttl_ns / 3e9
        while not done.wait(wait_s):
            wait_s = self._ttl_ns / 3e9
            try:
                self._tables.write(lambda rows: self._renew(rows, lease))
            except Fenced:
                return
            except Exception:  # the lease still runs, and the disk may work the next time
                wait_s /= 10

    def _renew(self, rows: Rows, lease: Lease) -> None:
        lease.check(rows)
        row = _read(rows, lease.scope)
        assert row is not None
        rows.put(TABLE, lease.scope, replace(row, expires_ns=self._clock() + self._ttl_ns).packed())

    def _release(self, lease: Lease) -> None:
        def change(rows: Rows) -> None:
            row = _read(rows, lease.scope)
            if row and row.owner == lease.owner:
                _release(rows, lease.scope)

        self._tables.write(change)

    def _state(self, row: LeaseRow) -> str:
        if sees_dead(self._process, row.process):
            return "dead"
        return "expired" if self._clock() >= row.expires_ns else "live"

    def _shown(self, key: bytes, row: LeaseRow) -> HeldLease:
        left = (row.expires_ns - self._clock()) / 1e9
        return HeldLease(key.hex(), row.purpose, row.epoch, row.process.pid, row.acquired_s, left, self._state(row))


def _read(rows: Rows, scope: bytes) -> LeaseRow | None:
    value = rows.get(TABLE, scope)
    return parse_lease(value) if value is not None else None


def _release(rows: Rows, scope: bytes) -> None:
    row = _read(rows, scope)
    if row:
        rows.put(TABLE, scope, row.released().packed())
