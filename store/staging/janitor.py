"""Janitor: wipes what one run staged, once the run is over. A process of its own: it outlives a stager that is killed.

    python -m arstore.store.staging.janitor SESSION

Its standard input is a pipe that its starter holds open, and says keys on, a line each: the end of it is the end of the
run. Its standard output ends when all is wiped that nobody uses; what somebody still uses by then is waited for; what
somebody else has asked to keep longer stays. Beside a session lies its lock, which the starter holds: where nobody does
and the janitor was killed as well, whoever sweeps the tier removes what is left of the session.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ..disk import Disk
from ..errors import StoreError
from ..tiers.extent import extent_path, forget_session, remove_extent
from ..tiers.filling import remove_partial

_WAIT_S, _WAIT_MAX_S = 0.05, 5.0


def wipe_free(directory: Path, keys: Iterable[str], disk: Disk) -> list[str]:
    """Wipe extents whose time is over and that nobody uses; return the keys of those that somebody does."""
    used = []
    for key in keys:
        path = extent_path(directory, key)
        with contextlib.suppress(StoreError, OSError):
            if path.stat().st_mtime <= time.time() and not remove_extent(path, disk, over=True):
                used.append(key)
    return used


if __name__ == "__main__":
    session, disk = Path(sys.argv[1]), Disk()
    given = sys.stdin.read().split()
    with contextlib.suppress(StoreError):
        forget_session(session, disk)
    for key in given:
        with contextlib.suppress(StoreError):
            remove_partial(session.parent, key, disk)
    left, wait_s = wipe_free(session.parent, given, disk), _WAIT_S
    os.close(sys.stdout.fileno())  # the starter waits for no others
    while left:
        time.sleep(wait_s)
        left, wait_s = wipe_free(session.parent, left, disk), min(2 * wait_s, _WAIT_MAX_S)
