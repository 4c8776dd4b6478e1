"""Libc: the C library, for system calls that Python lacks. It is imported inside functions, as few commands need it."""

import ctypes
import functools


@functools.cache
def libc() -> ctypes.CDLL:
    """Return the C library; it lets other threads run during a call."""
    return ctypes.CDLL(None, use_errno=True)
