"""The keyring: tenants and the random key of every record, in a key tree under one root.

Commit: changed pages to free positions, sync; the new root into the root slot that is not current, sync; the old
root effaced in place, sync. A crash before the new root leaves the old tree whole; a crash after it leaves two
readable roots, of which the higher epoch counts; the next commit goes over the lower one.
A key is durable here before a byte that it seals reaches a segment.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TypeVar

from ...formats.digest import derive
from ...formats.errors import FormatError
from ...formats.frames import KEY_BYTES
from ...formats.keypage import (
    LEAF_SLOTS,
    PAGE_BYTES,
    TENANT_NAME_MAX_BYTES,
    Root,
    Tenant,
    open_root,
    parse_tenant,
    seal_root,
    slot_key,
)
from ..disk import Disk, disk_errors, try_lock, wait_lock
from ..errors import BadInput, Conflict, Corrupt, Fenced, KeyRefused, StorageFailed, StoreError
from .keytree import NONE, Shadow, changed_leaves, filled_slots, find_leaf, leaf_refs, reached, read_page

PAGES_NAME, LOCK_NAME = "pages", "lock"
_RETRIES = 50
T = TypeVar("T")


def create_keyring(directory: Path, root_path: Path, master: bytes, store_id: bytes, disk: Disk) -> None:
    """Make an empty key tree, durably. Nothing happens where one is already."""
    disk.make_dirs(root_path.parent)
    disk.sync_dir(root_path.parent.parent)
    if not (directory / PAGES_NAME).exists():
        os.close(disk.open(directory / PAGES_NAME, create=True))
        os.close(disk.open(directory / LOCK_NAME, create=True))
        disk.sync_dir(directory)
    if not root_path.exists():
        slot = seal_root(master, store_id, Root(1, NONE, 0, os.urandom(KEY_BYTES)), os.urandom(12))
        disk.replace_file(root_path, os.urandom(PAGE_BYTES) + slot, 0o600)


class Keyring:
    """Opened keys of one store. Threads may share it; a process that forks must open its own."""

    def __init__(self, directory: Path, root_path: Path, masters: Sequence[bytes], store_id: bytes, disk: Disk) -> None:
        self._masters, self._store_id, self._disk = list(masters), store_id, disk
        self._root_path = root_path
        self.master = masters[0]  # of the given ones, that under which the root lies
        if not root_path.exists():
            raise KeyRefused(str(root_path), "the root of the key tree is missing", hint="without it nothing opens")
        with disk_errors(directory):
            self._pages = disk.open(directory / PAGES_NAME)
            self._lock = disk.open(directory / LOCK_NAME)
        self._root_fd = disk.open(root_path)
        if not try_lock(self._pages, shared=True):
            self.close()
            raise Fenced("store", "its catalog is being made anew", hint="try again when that is done")
        self._leaves: dict[tuple[int, int], bytes] = {}
        self._guard = threading.RLock()
        self._failure: StoreError | None = None
        self._pid = os.getpid()
        self._durable_epoch = 0  # of the newest root that this process saw synced
        try:
            self._root = self._read_root()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for fd in (self._pages, self._lock, self._root_fd):
            os.close(fd)

    def own_alone(self) -> None:
        """Keep everybody else from opening the store until this is closed; raise Fenced if somebody has it open."""
        if not try_lock(self._pages):
            raise Fenced("store", "is open in another process or place", hint="stop what uses it and run it again")

    @property
    def epoch(self) -> int:
        """The number of the root that stands; it grows."""
        return self._root.epoch

    @property
    def catalog_key(self) -> bytes:
        """The key of the catalog's row checks."""
        return self._root.catalog_key

    def tenants(self) -> dict[int, Tenant]:
        """Return every tenant by its number."""

        def read() -> dict[int, Tenant]:
            leaves = leaf_refs(self._pages, self._root.directory)
            return {number: parse_tenant(read_page(self._pages, ref)) for number, ref in leaves.items()}

        return self._steady(read)

    def tenant(self, name: str) -> tuple[int, Tenant]:
        """Return a tenant and its number; raise KeyRefused if there is none of that name."""
        for number, tenant in self.tenants().items():
            if tenant.name == name:
                return number, tenant
        raise KeyRefused(f"tenant {name}", "not known here", hint=f"make it with 'arstore tenant add {name}'")

    def add_tenant(self, name: str, *, open_keys: bool, quota_bytes: int = 0) -> int:
        """Make a tenant with keys of its own, durably, and return its number; raise Conflict if the name is taken.

        `open_keys` derives its keys from the store id, for stores without encryption, so that segments alone
        are enough to rebuild such a store.
        """
        if not name or len(name.encode()) > TENANT_NAME_MAX_BYTES or not all(c.isalnum() or c in "._-" for c in name):
            raise BadInput(f"tenant {name!r}", "a name is letters, digits, '.', '_' and '-', at most 128 bytes")
        seed = derive(self._store_id + name.encode(), "open tenant", 80) if open_keys else os.urandom(80)
        with self._commit() as shadow:
            if any(tenant.name == name for tenant in self.tenants().values()):
                raise Conflict(f"tenant {name}", "exists already")
            number = self._root.next_tenant
            tenant = Tenant(seed[:16], name, seed[16:48], seed[48:], quota_bytes, 1, NONE)
            directory = shadow.update(self._root.directory, {number: tenant.packed()})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory, next_tenant=number + 1)
        return number

    def reserve(self, number: int, count: int) -> list[tuple[int, bytes]]:
        """Make `count` fresh random record keys of a tenant durable, and return them with their slots."""
        with self._commit() as shadow:
            tenant = self._tenant_at(number)
            first = tenant.next_slot
            made = [(slot, os.urandom(KEY_BYTES)) for slot in range(first, first + count)]
            keys = shadow.update(tenant.keys, changed_leaves(self._pages, tenant.keys, dict(made)))
            grown = tenant.grown(keys, first + count)
            directory = shadow.update(self._root.directory, {number: grown.packed()})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory)
        return made

    def destroy(self, doomed: Mapping[int, Iterable[int]]) -> None:
        """Destroy record keys, by tenant, for good: on return no root of the key tree leads to them.

        Costs one commit, whatever they sealed.
        """
        with self._commit() as shadow:
            directory = self._root.directory
            for number, slots in doomed.items():
                body = find_leaf(self._pages, self._root.directory, number)
                if body is None:
                    continue  # the tenant is gone, and every key of it
                tenant = parse_tenant(body)
                leaves = changed_leaves(self._pages, tenant.keys, dict.fromkeys(slots))
                if leaves:
                    emptied = tenant.grown(shadow.update(tenant.keys, leaves), tenant.next_slot)
                    directory = shadow.update(directory, {number: emptied.packed()})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory)

    def remove_tenant(self, number: int) -> None:
        """Destroy a tenant and every key of it at once, durably."""
        with self._commit() as shadow:
            directory = shadow.update(self._root.directory, {number: None})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory)

    def reseal(self, master: bytes) -> None:
        """Seal the root under another master key, durably; the old one opens nothing any more."""
        with self._commit():
            self._masters, self.master = [master], master
            self._root = replace(self._root, epoch=self._root.epoch + 1)

    def slots(self, number: int) -> list[int]:
        """Return every slot of a tenant that holds a key."""
        return self._steady(lambda: filled_slots(self._pages, self._tenant_at(number).keys))

    def key(self, number: int, slot: int) -> bytes:
        """Return the key in a slot; raise Corrupt if it was destroyed or never made."""
        leaf = (number, slot // LEAF_SLOTS)
        with self._guard:
            body = self._leaves.get(leaf)
            key = slot_key(body, slot) if body else None
            if key is None:
                self.refresh()
                if number not in self.tenants():
                    raise Corrupt(f"keys: slot {slot}", "the key is gone: its tenant was removed")
                body = self._steady(lambda: find_leaf(self._pages, self._tenant_at(number).keys, leaf[1]))
                key = slot_key(body, slot) if body else None
                if key is None or body is None:
                    raise Corrupt(f"keys: slot {slot}", "the key is gone: erased, or the key tree was replaced")
                self._leaves[leaf] = body
        return key

    def _tenant_at(self, number: int) -> Tenant:
        body = find_leaf(self._pages, self._root.directory, number)
        if body is None:
            raise KeyRefused(f"tenant number {number}", "was removed")
        return parse_tenant(body)

    @contextlib.contextmanager
    def _commit(self) -> Iterator[Shadow]:
        """Hold the keyring alone, let the body set the new root, and make it the one root there is."""
        if os.getpid() != self._pid:  # the lock is the parent's too, and keeps nobody out
            raise StorageFailed(str(self._root_path), "opened before a fork")
        if self._failure:
            raise type(self._failure)(str(self._root_path), "a sync failed before; open the store again")
        with self._guard:
            wait_lock(self._lock)
            try:
                self.refresh()
                before = self._root
                try:
                    self._settle_root()
                    shadow = Shadow(self._pages, self._used(), self._disk)
                    yield shadow
                    shadow.flush()
                    self._write_root(self._root)
                except BaseException as error:
                    self._root = before
                    if isinstance(error, FormatError):
                        raise Corrupt("keys", str(error)) from None
                    raise
                self._leaves.clear()
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _settle_root(self) -> None:
        # Killed before its sync, this root may not be durable: until it is, the pages of the one before must stay.
        # It is written once more before: a sync that failed, here or elsewhere, may have let go of it, and the next
        # one would report a success that is none.
        if self._durable_epoch != self._root.epoch:
            start = self._root.epoch % 2 * PAGE_BYTES
            self._disk.write_at(self._root_fd, os.pread(self._root_fd, PAGE_BYTES, start), start)
            self._sync_root()
            self._durable_epoch = self._root.epoch

    def _used(self) -> set[int]:
        used = reached(self._pages, self._root.directory)
        for ref in leaf_refs(self._pages, self._root.directory).values():
            used |= reached(self._pages, parse_tenant(read_page(self._pages, ref)).keys)
        return used

    def _write_root(self, root: Root) -> None:
        sealed = seal_root(self.master, self._store_id, root, os.urandom(12))
        self._disk.write_at(self._root_fd, sealed, root.epoch % 2 * PAGE_BYTES)
        self._sync_root()
        self._durable_epoch = root.epoch
        self._efface(root.epoch - 1)

    def _sync_root(self) -> None:
        try:
            self._disk.sync(self._root_fd)
        except StoreError as error:
            self._failure = error  # the next sync would report a success that is none
            raise

    def _efface(self, epoch: int) -> None:
        self._disk.write_at(self._root_fd, os.urandom(PAGE_BYTES), epoch % 2 * PAGE_BYTES)
        self._sync_root()

    def refresh(self) -> None:
        """Take in what other processes committed; raise KeyRefused if the key was rotated meanwhile."""
        try:
            root = self._read_root()
        except Corrupt:  # it opened before
            raise KeyRefused("key", "was rotated meanwhile", hint="open the store again") from None
        if root.epoch != self._root.epoch:
            self._root = root
            self._leaves.clear()

    def _read_root(self) -> Root:
        # Read again if neither opens: a commit may have moved the root from the second slot to the first between.
        for _ in range(_RETRIES):
            both = os.pread(self._root_fd, 2 * PAGE_BYTES, 0)
            found: list[tuple[Root, bytes]] = []
            for master, start in product(self._masters, (0, PAGE_BYTES)):
                with contextlib.suppress(FormatError):
                    found.append((open_root(master, self._store_id, both[start : start + PAGE_BYTES]), master))
            if found:
                newest, self.master = max(found, key=lambda one: one[0].epoch)
                return newest
        raise Corrupt(str(self._root_path), "no root of the key tree opens")

    def _steady(self, read: Callable[[], T]) -> T:
        """Return what `read` gives from one root: a writer may reuse pages of the root that a reader still holds."""
        with self._guard:
            for _ in range(_RETRIES):
                root = self._root
                try:
                    return read()
                except FormatError as error:
                    self.refresh()
                    if self._root.epoch == root.epoch:
                        raise Corrupt("keys", str(error)) from None
        raise Corrupt("keys", "the key tree kept changing")
