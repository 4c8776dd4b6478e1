"""Reserve: space on the store's disk that is set aside, so that what frees space works on a full disk.

It is a file of its own. `rm`, `erase` and `gc` remove it while they run, and make it anew at their end.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from .config import CATALOG_DIR
from .disk import Disk
from .errors import StoreError

RESERVE_NAME = "reserve"
_MIN_BYTES, _LEAST_BYTES, _MAX_BYTES = 4 << 20, 64 << 10, 256 << 20


def set_aside(root: Path, disk: Disk) -> None:
    """Set aside as many bytes as the catalog has, at least 4 MiB, at most 256 MiB; less where there is no more room."""
    with contextlib.suppress(OSError):
        wanted = (root / CATALOG_DIR / "data.mdb").stat().st_size
        length = min(max(wanted, _MIN_BYTES), _MAX_BYTES)
        while length >= _LEAST_BYTES:
            try:
                _allocate(root / RESERVE_NAME, length, disk)
            except StoreError:
                length //= 2
            else:
                return


@contextlib.contextmanager
def spent_reserve(root: Path, disk: Disk) -> Iterator[None]:
    """Let the body use the space that is set aside. Afterwards as much of it is set aside anew as there is room for."""
    with contextlib.suppress(StoreError):
        disk.remove(root / RESERVE_NAME)
    try:
        yield
    finally:
        set_aside(root, disk)


def _allocate(path: Path, length: int, disk: Disk) -> None:
    fd = disk.open(path, create=True)
    try:
        disk.reserve(fd, length)
    finally:
        os.close(fd)
