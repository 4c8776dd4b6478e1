"""The C library, for system calls that Python has no name for. Imported where it is called: most commands need none."""

import ctypes
import functools


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library; it lets other threads run during a call."""
    return ctypes.CDLL(None, use_errno=True)
