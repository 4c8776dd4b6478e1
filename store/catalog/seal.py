"""Seal: what the catalog file looked like after the store last wrote to it.

LMDB trusts its pages: a bad one can end the process. So if anything else changed the file, or a writer was killed, its
pages are checked before LMDB sees them. A file that only the store wrote to costs one comparison.
"""

import contextlib
import os
import struct
from pathlib import Path

from ..disk import Disk
from ..errors import StoreError

_NAME = "seal"
_SEAL = struct.Struct("<QQQ")  # inode, length in bytes, time of the last change in nanoseconds


class Seal:
    """The seal of one open catalog file. Whoever checks or renews it holds the writer's lock."""

    def __init__(self, directory: Path, fd: int) -> None:
        self._directory, self._path, self._fd = directory, directory / _NAME, fd

    def stands(self) -> bool:
        """Say whether nothing but the store changed the file."""
        try:
            return self._path.read_bytes() == self._seen()
        except OSError:
            return False

    def check(self) -> None:
        """Check all pages unless the seal stands or the file is empty; raise Corrupt if LMDB could trip over one."""
        if os.fstat(self._fd).st_size and not self.stands():
            from .page_check import check_pages

            check_pages(self._directory)
            self.renew()

    def renew(self) -> None:
        """Seal the file as it is. If that can't be written, the next opening checks the pages."""
        with contextlib.suppress(StoreError):
            Disk().write_file_at(self._path, self._seen(), 0)

    def _seen(self) -> bytes:
        status = os.fstat(self._fd)
        return _SEAL.pack(status.st_ino, status.st_size, status.st_mtime_ns)
