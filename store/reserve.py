"""Reserve: space on the store's disk that is set aside, so that what frees space works on a full disk."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .config import CATALOG_DIR
from .disk import Disk
from .errors import NoRoom, StoreError

RESERVE_NAME = "reserve"
_MIN_BYTES, _LEAST_BYTES, _MAX_BYTES = 4 << 20, 64 << 10, 256 << 20


def set_aside(root: Path, disk: Disk) -> None:
    """Set aside as many bytes as the catalog has, at least 4 MiB, at most 256 MiB; less if there is no more room."""
    path, length = root / RESERVE_NAME, _wanted_bytes(root)
    while length >= _LEAST_BYTES and not (path.exists() and path.stat().st_size >= length):
        with contextlib.suppress(NoRoom):
            _allocate(path, length, disk)
        length //= 2


@contextlib.contextmanager
def spent_reserve(root: Path, disk: Disk) -> Iterator[None]:
    """Let the body use what is set aside if the disk is nearly full. Afterwards it is set aside anew.

    If there is no room all the same, as under a quota, the space is given up, so that a second try has it.
    """
    if _free_bytes(root) < 2 * _wanted_bytes(root):
        disk.remove(root / RESERVE_NAME)
    try:
        yield
    except NoRoom:
        disk.remove(root / RESERVE_NAME)
        raise
    with contextlib.suppress(StoreError):
        set_aside(root, disk)


def _free_bytes(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize


def _wanted_bytes(root: Path) -> int:
    catalog = (root / CATALOG_DIR / "data.mdb").stat().st_size
    return min(max(catalog, _MIN_BYTES), _MAX_BYTES)


def _allocate(path: Path, length: int, disk: Disk) -> None:
    fd = disk.open(path, create=True)
    try:
        disk.reserve(fd, length)
    finally:
        os.close(fd)
