"""The root file: two slots for the root of the key tree. The readable root with the higher epoch counts.

Invariant: until a new root is durable, its predecessor stays readable; once it is, the predecessor is overwritten with
random bytes. A crash between these steps leaves two readable roots, and the next commit overwrites the older one.
"""

import contextlib
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ...formats.errors import FormatError
from ...formats.frames import KEY_BYTES
from ...formats.keypage import PAGE_BYTES, PageRef, Root, open_root, seal_root
from ..disk import Disk
from ..errors import Corrupt, KeyRefused, StoreError

_RETRIES = 50


def create_root(path: Path, master: bytes, store_id: bytes, disk: Disk) -> None:
    """Write the root of an empty key tree, durably. Nothing happens if the file exists."""
    if not path.exists():
        empty = Root(1, PageRef(), 0, os.urandom(KEY_BYTES))
        slot = seal_root(master, store_id, empty, os.urandom(12))
        disk.replace_file(path, os.urandom(PAGE_BYTES) + slot, 0o600)


class RootFile:
    """The root of one store's key tree on disk. `master` is the key that sealed the newest root."""

    def __init__(self, path: Path, masters: Sequence[bytes], store_id: bytes, disk: Disk) -> None:
        if not path.exists():
            raise KeyRefused(str(path), "the root of the key tree is missing", hint="without it nothing opens")
        self.path, self.master = path, masters[0]
        self._masters, self._store_id, self._disk = list(masters), store_id, disk
        self._fd, self.read_only = disk.open_as_allowed(path)
        self._durable_epoch = 0  # of the newest root that this process saw synced
        self._failure: StoreError | None = None

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> Root:
        """Return the newest root; raise Corrupt if no given master key opens one."""
        # It reads again if neither slot opens: between the two reads of the kernel, a commit may have moved the root
        # from the second slot to the first.
        for _ in range(_RETRIES):
            both = os.pread(self._fd, 2 * PAGE_BYTES, 0)
            roots: list[tuple[Root, bytes]] = []
            for master, start in product(self._masters, (0, PAGE_BYTES)):
                with contextlib.suppress(FormatError):
                    roots.append((open_root(master, self._store_id, both[start : start + PAGE_BYTES]), master))
            if roots:
                newest, self.master = max(roots, key=lambda root_and_master: root_and_master[0].epoch)
                return newest
        raise Corrupt(str(self.path), "no root of the key tree opens")

    def check(self) -> None:
        """Raise the kind of error that an earlier sync failed with. Nothing can be committed then."""
        if self._failure:
            raise type(self._failure)(str(self.path), "a sync failed before; open the store again")

    def ensure_durable(self, root: Root) -> None:
        """Make the root that was read durable, unless this process saw its sync. Call it before pages are reused."""
        # Its writer may have been killed before the sync, and then the pages of the root before must stay. It is
        # written once more first: if a sync failed, here or elsewhere, the kernel may have dropped the bytes, and
        # the next sync alone would report success without them.
        if self._durable_epoch != root.epoch:
            start = root.epoch % 2 * PAGE_BYTES
            self._disk.write_at(self._fd, os.pread(self._fd, PAGE_BYTES, start), start)
            self._sync()
            self._durable_epoch = root.epoch

    def write(self, root: Root) -> None:
        """Write the root that follows the current one, durably, and overwrite the current one with random bytes."""
        sealed = seal_root(self.master, self._store_id, root, os.urandom(12))
        self._disk.write_at(self._fd, sealed, root.epoch % 2 * PAGE_BYTES)
        self._sync()
        self._durable_epoch = root.epoch
        self._disk.write_at(self._fd, os.urandom(PAGE_BYTES), (root.epoch - 1) % 2 * PAGE_BYTES)
        self._sync()

    def use_master(self, master: bytes) -> None:
        """Seal the next root under this master key, and from then on open roots with it only."""
        self._masters, self.master = [master], master

    def _sync(self) -> None:
        try:
            self._disk.sync(self._fd)
        except StoreError as error:
            self._failure = error  # another sync would report success for bytes that the kernel dropped
            raise
