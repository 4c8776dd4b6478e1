"""The shared tier: an arena of sealed extents in memory that the user names: a pool, a CXL node, another NUMA node.

It is a cache. One process publishes an object; any process that needs it reads and verifies it. It may be gone at any
moment. It must lie on a memory file system: a tmpfs (perhaps with `mpol=bind:N`), or one mounted with `dax`. Staged
bytes are plain, so they may not get to a disk; and the empty mount point of a mount that is gone lies on one.
"""

import os
from pathlib import Path

from ...formats.digest import derive
from ..config import setting
from ..disk import Disk, disk_errors
from ..errors import NoRoom, StorageFailed
from .arena import Arena
from .host import directory_name, half_of

_MEMORY = {"tmpfs", "ramfs", "hugetlbfs", "famfs"}
_MOUNTS = Path("/proc/self/mountinfo")
_HINT = "mount a memory file system there, or unset ARSTORE_SHARED_DIR"


def shared_parent() -> Path | None:
    """Return the directory that the user names for the shared tier; None if the user names none."""
    given = setting("shared_dir")
    return Path(given).absolute() if given else None


def open_shared(
    parent: Path, store_id: bytes, tenant: bytes, digest_key: bytes, budget_bytes: int | None, disk: Disk
) -> Arena:
    """Return the shared tier of a tenant.

    Raises StorageFailed if it is gone, if it is not on a memory file system, or if no directory can be made there.
    """
    try:
        with disk_errors(parent):
            device = os.stat(parent).st_dev
            capacity = half_of(parent) if budget_bytes is None else budget_bytes
        if not _is_memory(device):
            raise StorageFailed(str(parent), "is gone, or no memory file system")
        directory = parent / directory_name(store_id, tenant)
        return Arena("shared", directory, capacity, disk, seal=derive(digest_key, "sealed extents"))
    except NoRoom as error:  # its usual hint is about the store's own disk
        raise StorageFailed(error.where, error.why, hint=_HINT) from None
    except StorageFailed as error:
        raise StorageFailed(error.where, error.why, hint=error.hint or _HINT) from None


def _is_memory(device: int) -> bool:
    """Say whether a mounted file system lies in memory; see proc_pid_mountinfo(5)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text("utf-8", "replace").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            kind, options = fields[fields.index("-") + 1], ",".join((fields[5], fields[-1])).split(",")
            return kind in _MEMORY or bool({"dax", "dax=always"} & set(options))
    return False
