"""Janitor: wipes the objects that were staged for one command. It is a process of its own: it outlives a killed stager.

    python -m arstore.store.staging.janitor SESSION

Its standard input is a pipe that its starter holds open. The starter writes keys to it, one a line. The end of input is
the end of the run. Then the janitor wipes the objects that nobody uses, and closes its standard output. Others it wipes
when they come out of use. An object that another process asked to keep longer stays.

Beside a session lies its lock, which the starter holds. If nobody holds it any more and the janitor was killed as well,
the next sweep of the tier removes the session.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ..disk import Disk
from ..errors import StoreError
from ..tiers.extent import extent_path, remove_extent, remove_session
from ..tiers.filling import remove_partial

_WAIT_S, _WAIT_MAX_S = 0.05, 5.0


def wipe_free(directory: Path, keys: Iterable[str], disk: Disk) -> list[str]:
    """Wipe expired extents that nobody uses; return the keys of those that are in use."""
    used = []
    for key in keys:
        path = extent_path(directory, key)
        with contextlib.suppress(StoreError, OSError):
            if path.stat().st_mtime <= time.time() and not remove_extent(path, disk, expired_only=True):
                used.append(key)
    return used


if __name__ == "__main__":
    session, disk = Path(sys.argv[1]), Disk()
    keys = sys.stdin.read().split()
    with contextlib.suppress(StoreError):
        remove_session(session, disk)
    for key in keys:
        with contextlib.suppress(StoreError):
            remove_partial(session.parent, key, disk)
    left, wait_s = wipe_free(session.parent, keys, disk), _WAIT_S
    os.close(sys.stdout.fileno())  # the starter waits for this, and not for other users
    while left:
        time.sleep(wait_s)
        left, wait_s = wipe_free(session.parent, left, disk), min(2 * wait_s, _WAIT_MAX_S)
