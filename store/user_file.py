"""User file: a file that a person names is opened without waiting, whatever has been put in its place."""

import os
from pathlib import Path
from typing import BinaryIO


def open_at_once(path: str | Path, flags: int = os.O_RDONLY | os.O_CLOEXEC) -> int:
    """Return a descriptor for reading that doesn't block; an open that blocks would wait for the writer of a pipe.

    The caller checks on the descriptor what was opened. A look at the path before would not help, because another file
    may take its place in between.
    """
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def open_user_file(path: str | Path) -> BinaryIO:
    """Open a small file of a user: a key, tokens, a JOB. Raises OSError if it can't be opened.

    A pipe is read until its writers close it, as `<(...)` of a shell needs. A pipe without a writer is empty.
    """

    def opener(name: str, flags: int) -> int:
        fd = open_at_once(name, flags)
        os.set_blocking(fd, True)
        return fd

    return open(path, "rb", opener=opener)
