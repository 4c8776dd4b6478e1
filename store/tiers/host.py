"""The host tier: an arena in shared memory for each tenant and user. It lies in ARSTORE_HOST_DIR, else in /dev/shm."""

import os
from pathlib import Path

from ..config import setting
from ..disk import Disk
from ..errors import BadInput
from .arena import Arena, make_private


def open_host(store_id: bytes, tenant: bytes, budget_bytes: int | None, disk: Disk) -> Arena:
    """Return the host tier of a tenant; without a budget it may hold half of its memory file system.

    Raises BadInput if the directory that ARSTORE_HOST_DIR must lie in is not there.
    """
    directory = host_directory(store_id, tenant)
    above = directory.parent.parent
    if not above.is_dir():
        raise BadInput(str(above), "is not there", hint="name a memory file system by ARSTORE_HOST_DIR")
    make_private(directory.parent, disk)
    return Arena("host", directory, half_of(directory.parent) if budget_bytes is None else budget_bytes, disk)


def host_directory(store_id: bytes, tenant: bytes) -> Path:
    """Return where a tenant's extents lie. The directory exists once anything was staged."""
    given = setting("host_dir")
    parent = Path(given).absolute() if given else Path("/dev/shm")
    if _is_open_to_others(parent):  # as /dev/shm is, and the root of a tmpfs that was just mounted
        parent = parent / f"arstore-{os.geteuid()}"
    return parent / directory_name(store_id, tenant)


def _is_open_to_others(directory: Path) -> bool:
    """Say whether a directory is there and belongs to somebody else, or lets others in."""
    try:
        status = directory.stat()
    except OSError:
        return False
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o077)


def directory_name(store_id: bytes, tenant: bytes) -> str:
    """Return the name of the directory of a tenant's arena."""
    return f"{store_id.hex()}-{tenant.hex()}"


def half_of(path: Path) -> int:
    """Return half of the bytes of a file system: what an arena may hold by default.

    A file system without a size of its own, such as a ramfs, counts as large as the memory.
    """
    room = os.statvfs(path)
    return (room.f_blocks * room.f_frsize or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2
