"""Janitor: wipes what one run staged, once the run is over. A process of its own: it outlives a stager that is killed.

    python -m arstore.store.janitor SESSION KEY…

Its standard input is a pipe that its starter holds open: the end of it is the end of the run. What the command still
uses by then is waited for; what somebody else has asked to keep longer stays.
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .disk import Disk, wait_lock
from .errors import StoreError
from .tiers.host import wipe


def clean_up(session: Path, keys: Sequence[str], disk: Disk) -> None:
    """Remove a session, and wipe the extents it had staged."""
    disk.remove(session)
    for key in keys:
        path = session.parent / f"{key}.extent"
        with contextlib.suppress(StoreError, FileNotFoundError):
            fd = disk.open(path)
            try:
                wait_lock(fd)
                if os.fstat(fd).st_nlink and os.fstat(fd).st_mtime <= time.time():
                    wipe(fd, path, disk)
            finally:
                os.close(fd)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clean_up(Path(sys.argv[1]), sys.argv[2:], Disk())
