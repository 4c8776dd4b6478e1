"""Last write: what the catalog file looked like after the store last wrote to it.

LMDB trusts its pages, and a bad one can end the process. So if anything else changed the file, or a writer was killed,
its pages are checked before LMDB sees them. A file that only the store changed costs one comparison.
"""

import contextlib
import os
import struct
from pathlib import Path

from ..disk import Disk
from ..errors import StoreError

_NAME = "last-write"
_SEEN = struct.Struct("<QQQ")  # inode, length in bytes, time of the last change in nanoseconds


class LastWrite:
    """The note of one open catalog file. Whoever checks or renews it holds the writer's lock."""

    def __init__(self, directory: Path, fd: int) -> None:
        self._directory, self._path, self._fd = directory, directory / _NAME, fd

    def check(self) -> None:
        """Check all pages unless nothing but the store changed the file; raise Corrupt if LMDB could trip over one."""
        if os.fstat(self._fd).st_size and not self._stands():  # a new file is empty, and LMDB fills it
            from .page_check import check_pages

            check_pages(self._directory)
            self.renew()

    def renew(self) -> None:
        """Note what the file looks like. If that can't be written, the next opening checks the pages."""
        with contextlib.suppress(StoreError):
            Disk().write_file_at(self._path, self._seen(), 0)

    def _stands(self) -> bool:
        try:
            return self._path.read_bytes() == self._seen()
        except OSError:
            return False

    def _seen(self) -> bytes:
        status = os.fstat(self._fd)
        return _SEEN.pack(status.st_ino, status.st_size, status.st_mtime_ns)
