"""Janitor: wipes what one run staged, once the run is over. A process of its own: it outlives a stager that is killed.

    python -m arstore.store.janitor SESSION

Its standard input is a pipe that its starter holds open, and says keys on, a line each: the end of it is the end of the
run. Its standard output ends when all is wiped that nobody uses; what somebody still uses by then is waited for; what
somebody else has asked to keep longer stays.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .disk import Disk
from .errors import StoreError
from .tiers.extent import remove_extent


def clean_up(session: Path, keys: Sequence[str], disk: Disk, *, wait: bool) -> None:
    """Remove a session, and wipe the extents it had staged; with `wait` also those that are in use first."""
    with contextlib.suppress(StoreError):
        for path in (session, session.with_suffix(".plan"), session.with_suffix(".socket")):
            disk.remove(path)
    for path in (session.parent / f"{key}.extent" for key in keys):
        with contextlib.suppress(StoreError, OSError):
            remove_extent(path, disk, wait=wait, over=True)


if __name__ == "__main__":
    given = sys.stdin.read().split()
    clean_up(Path(sys.argv[1]), given, Disk(), wait=False)
    os.close(sys.stdout.fileno())  # the starter waits for no others
    clean_up(Path(sys.argv[1]), given, Disk(), wait=True)
