"""Fingerprint: how a change of a user's file is noticed, by its size, inode and times.

Two changes can go unseen. A program that writes through a mapping changes no time until the page is written back.
A file server stamps files by a clock of its own, which may stand still for longer than the clock here.
"""

import os
import stat
import time

_CLOCK_REALTIME_COARSE = 5  # the kernel stamps files with this clock, which moves every 1 to 10 ms
_SECOND_NS = 10**9
_AHEAD_NS = _SECOND_NS // 10


def fingerprint(status: os.stat_result) -> tuple[int, ...]:
    """Return what differs when a file was changed or replaced; the first part is its size."""
    # ctime counts too: a program can set mtime back, and a new file can get the inode of a removed one.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def stat_at_rest(fd: int) -> os.stat_result | None:
    """Return the state of an open file once any later change must get a later time; None if it keeps changing.

    A change within the same tick as the last one gets the same time. So this waits for the next tick after the last
    change: up to 10 ms, or a second where a file system counts whole seconds. It happens only to a file just written.
    """
    last: os.stat_result | None = None
    while True:
        now_ns = time.clock_gettime_ns(
            _CLOCK_REALTIME_COARSE
        )  # read before fstat, so that a change after it gets a later time
        status = os.fstat(fd)
        grain_ns = 1 if status.st_ctime_ns % _SECOND_NS else _SECOND_NS
        earlier = status.st_ctime_ns // grain_ns < now_ns // grain_ns
        ahead = status.st_ctime_ns > now_ns + _AHEAD_NS  # the clock was set back, so a change now gets an earlier time
        if earlier or ahead or not stat.S_ISREG(status.st_mode):
            return status
        if last and fingerprint(last) != fingerprint(status):
            return None
        last = status
        time.sleep(0.001)
