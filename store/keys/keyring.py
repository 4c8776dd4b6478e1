"""The keyring: tenants and the random key of every record, in a key tree under one root.

Commit: write changed pages to free positions and sync; then `root_file` writes the new root and destroys the old one.
After a crash before the new root is durable, the old tree is whole.
Invariant: a key is durable here before a byte that it seals reaches a segment.
"""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ...formats.digest import derive
from ...formats.errors import FormatError
from ...formats.frames import KEY_BYTES
from ...formats.keypage import (
    DEPTH_MAX,
    LEAF_SLOTS,
    PAGE_BYTES,
    TENANT_NAME_MAX_BYTES,
    Tenant,
    parse_tenant,
    slot_key,
)
from ..disk import Disk, disk_errors
from ..errors import BadInput, Conflict, Corrupt, Fenced, KeyRefused, ReadOnly, StorageFailed
from ..locks import try_lock, wait_lock
from .keytree import NONE, Shadow, changed_leaves, filled_slots, find_leaf, leaf_refs, reached, read_page
from .root_file import RootFile, create_root

PAGES_NAME, LOCK_NAME = "pages", "lock"
_RETRIES = 50
# Of new tenants. Stores from before may have other names, as `..` or letters that look like these; they go on to open.
_TENANT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
T = TypeVar("T")


def create_keyring(directory: Path, root_path: Path, master: bytes, store_id: bytes, disk: Disk) -> None:
    """Make an empty key tree, durably. Files that exist are left as they are."""
    disk.make_dirs(root_path.parent)
    disk.sync_dir(root_path.parent.parent)
    if not (directory / PAGES_NAME).exists():
        os.close(disk.open(directory / PAGES_NAME, create=True))
        os.close(disk.open(directory / LOCK_NAME, create=True))
        disk.sync_dir(directory)
    create_root(root_path, master, store_id, disk)


class Keyring:
    """Opened keys of one store. Threads may share it. A process that forks must open its own.

    `read_only` says that nothing is to be committed, or that the files may not be written.
    """

    def __init__(self, directory: Path, root_path: Path, masters: Sequence[bytes], store_id: bytes, disk: Disk) -> None:
        self._directory, self._store_id, self._disk = directory, store_id, disk
        self._leaves: dict[tuple[int, int], bytes] = {}
        self._guard = threading.RLock()
        self._pid = os.getpid()
        with contextlib.ExitStack() as opened:
            self._root_file = RootFile(root_path, masters, store_id, disk)
            opened.callback(self._root_file.close)
            with disk_errors(directory):
                self._pages, pages_fixed = disk.open_as_allowed(directory / PAGES_NAME)
                opened.callback(os.close, self._pages)
                self._lock, lock_fixed = disk.open_as_allowed(directory / LOCK_NAME)
                opened.callback(os.close, self._lock)
            self.read_only = self._root_file.read_only or pages_fixed or lock_fixed
            if not try_lock(self._pages, shared=True):
                raise Fenced("store", "its catalog is being made anew", hint="try again when that is done")
            self._root = self._root_file.read()
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()

    def own_alone(self) -> None:
        """Keep everybody else from opening the store until this is closed; raise Fenced if somebody has it open."""
        if not try_lock(self._pages):
            raise Fenced("store", "is open in another process or place", hint="stop what uses it and run it again")

    def check_writable(self) -> None:
        """Raise ReadOnly if nothing may be written to the store."""
        if self.read_only:
            raise ReadOnly(str(self._directory.parent), "the store is read-only")

    @property
    def master(self) -> bytes:
        """The master key that opens the root."""
        return self._root_file.master

    @property
    def epoch(self) -> int:
        """The number of the current root. Every commit adds one."""
        return self._root.epoch

    @property
    def catalog_key(self) -> bytes:
        """The key of the checks in catalog rows."""
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

        `open_keys` is for stores without encryption. It derives the tenant's keys from the store id, so such a store
        can be rebuilt from its segments alone.
        """
        if not _TENANT_NAME.fullmatch(name) or len(name) > TENANT_NAME_MAX_BYTES:
            why = f"a name is ASCII letters, digits, '.', '_' and '-', at most {TENANT_NAME_MAX_BYTES} bytes"
            raise BadInput(f"tenant {name!a}", f"{why}, and does not start with '.' or '-'")
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
        """Make `count` random record keys for a tenant, durably, and return them with their slots."""
        with self._commit() as shadow:
            tenant = self._tenant_at(number)
            first = tenant.next_slot
            fresh = [(slot, os.urandom(KEY_BYTES)) for slot in range(first, first + count)]
            keys = shadow.update(tenant.keys, changed_leaves(self._pages, tenant.keys, dict(fresh)))
            grown = tenant.grown(keys, first + count)
            directory = shadow.update(self._root.directory, {number: grown.packed()})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory)
        return fresh

    def destroy(self, doomed: Mapping[int, Iterable[int]]) -> None:
        """Destroy record keys, by tenant. On return no root of the key tree leads to them.

        It costs one commit, however many bytes the keys sealed.
        """
        with self._commit() as shadow:
            directory = self._root.directory
            for number, slots in doomed.items():
                body = find_leaf(self._pages, self._root.directory, number)
                if body is None:
                    continue  # the tenant was removed, and its keys with it
                tenant = parse_tenant(body)
                leaves = changed_leaves(self._pages, tenant.keys, dict.fromkeys(slots))
                if leaves:
                    emptied = tenant.grown(shadow.update(tenant.keys, leaves), tenant.next_slot)
                    directory = shadow.update(directory, {number: emptied.packed()})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory)

    def make_room(self, slots: int) -> None:
        """Make room on the disk for a commit that changes so many slots; raise NoRoom, with no key changed."""
        if self.read_only:
            return  # the commit says so
        with self._guard:
            used = self._steady(self._used)
            rewritten = min(
                len(used), 2 * (DEPTH_MAX + 1) * slots
            )  # a slot's path, in two trees, or all pages there are
            length = (1 + len(used) + rewritten) * PAGE_BYTES
            if os.fstat(self._pages).st_size < length:
                self._disk.reserve(self._pages, length)

    def remove_tenant(self, number: int) -> None:
        """Destroy a tenant and every key of it at once, durably."""
        with self._commit() as shadow:
            directory = shadow.update(self._root.directory, {number: None})
            self._root = replace(self._root, epoch=self._root.epoch + 1, directory=directory)

    def reseal(self, master: bytes) -> None:
        """Seal the root under another master key, durably. The old one opens nothing any more."""
        with self._commit():
            self._root_file.use_master(master)
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

    def refresh(self) -> None:
        """Read what other processes committed; raise KeyRefused if the key was rotated meanwhile."""
        try:
            root = self._root_file.read()
        except Corrupt:  # the same key opened the root before, so the root was sealed under another one
            raise KeyRefused("key", "was rotated meanwhile", hint="open the store again") from None
        if root.epoch != self._root.epoch:
            self._root = root
            self._leaves.clear()

    def _tenant_at(self, number: int) -> Tenant:
        body = find_leaf(self._pages, self._root.directory, number)
        if body is None:
            raise KeyRefused(f"tenant number {number}", "was removed")
        return parse_tenant(body)

    @contextlib.contextmanager
    def _commit(self) -> Iterator[Shadow]:
        """Hold the keyring alone while the body sets the new root, then make that root the only one."""
        if os.getpid() != self._pid:  # the parent shares the lock, so it would keep nobody out
            raise StorageFailed(str(self._root_file.path), "opened before a fork")
        self.check_writable()
        self._root_file.check()
        with self._guard:
            wait_lock(self._lock)
            try:
                self.refresh()
                before = self._root
                try:
                    self._root_file.ensure_durable(before)
                    shadow = Shadow(self._pages, self._used(), self._disk)
                    yield shadow
                    shadow.flush()
                    self._root_file.write(self._root)
                except BaseException as error:
                    self._root = before
                    if isinstance(error, FormatError):
                        raise Corrupt("keys", str(error)) from None
                    raise
                self._leaves.clear()
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _used(self) -> set[int]:
        """Return the positions of all pages that the root reaches."""
        used = reached(self._pages, self._root.directory)
        for ref in leaf_refs(self._pages, self._root.directory).values():
            used |= reached(self._pages, parse_tenant(read_page(self._pages, ref)).keys)
        return used

    def _steady(self, read: Callable[[], T]) -> T:
        """Return what `read` gives. It runs again if another process reused pages of the root that it started from."""
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
