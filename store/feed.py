"""Feed: the steps of a running lane, served to other processes of this user at a socket in the lane's directory.

One line of JSON each way: ["next"] is answered with a step or null, ["take", STEP] with what it needs once that is in
place, {"held": {number: key}, "failed": {number: [kind, where, why]}}, or null when the run has ended; ["over", STEP]
with nothing. What a connection took is over when it closes, so a process that is killed keeps nothing up.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .disk import Disk, disk_errors
from .errors import NotFound, StorageFailed, StoreError
from .lane import Steps, Taken
from .tiers.extent import attach_extent

_ASK_MAX_BYTES = 256
_ANSWER_MAX_BYTES = 1 << 28


@contextlib.contextmanager
def serving(steps: Steps, keys: Sequence[str], path: Path, disk: Disk) -> Iterator[None]:
    """Serve steps at a socket while the body runs; whoever waits for one when it ends is told so."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short(path) as name, disk_errors(path):
        listener.bind(name)
    listener.listen()
    opened: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # when it is shut down
            while True:
                opened.append(listener.accept()[0])
                threading.Thread(target=_serve, args=(steps, keys, opened[-1]), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        for one in (listener, *opened):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        listener.close()
        disk.remove(path)


def _serve(steps: Steps, keys: Sequence[str], connection: socket.socket) -> None:
    owed = set[int]()  # steps that this connection has been given and not said to be over
    bad = (OSError, ValueError, TypeError, IndexError, KeyError)  # of a client that is gone, or that asks for nonsense
    with connection, connection.makefile("rwb") as stream, contextlib.suppress(*bad):
        try:
            while (line := stream.readline(_ASK_MAX_BYTES)).endswith(b"\n"):
                word, *number = json.loads(line)
                if word == "over":
                    owed.remove(number[0])
                    steps.over(number[0])
                    continue
                answer: object = None
                if word == "next":
                    answer = step = steps.next()
                    owed |= {step} if step is not None else set()
                elif word == "take":
                    with contextlib.suppress(StorageFailed):
                        answer = _told(steps.take(number[0]), keys)
                        owed.add(number[0])
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()
        finally:
            for step in owed:
                steps.over(step)


def _told(taken: Taken, keys: Sequence[str]) -> dict[str, Any]:
    failed = {number: [error.kind, error.where, error.why] for number, error in taken.failed.items()}
    return {"held": {number: keys[number] for number in taken.held}, "failed": failed}


class Fed:
    """The steps of a lane of the host tier that another process runs; threads may share it."""

    tier = "host"

    def __init__(self, path: Path) -> None:
        """Take the socket."""
        self._path, self._local = path, threading.local()

    def next(self) -> int | None:
        step = self._ask(["next"])
        return int(step) if step is not None else None

    def take(self, step: int) -> Taken:
        answer = self._ask(["take", step])
        if answer is None:
            raise StorageFailed("run", "has ended")
        held = {
            int(number): attach_extent(self._path.parent / f"{key}.extent", key)
            for number, key in answer["held"].items()
        }
        return Taken(dict(held), {int(number): _error(*told) for number, told in answer["failed"].items()})

    def over(self, step: int) -> None:
        with contextlib.suppress(StorageFailed):  # then everything is over
            self._ask(["over", step], answered=False)

    def _ask(self, words: list[object], *, answered: bool = True) -> Any:
        """Ask on this thread's own connection, so that no thread waits for another's step."""
        try:
            if not hasattr(self._local, "stream"):
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                with _short(self._path) as name:
                    connection.connect(name)
                self._local.stream = connection.makefile("rwb")
                connection.close()  # when the stream is, which the thread's end closes
            self._local.stream.write(json.dumps(words).encode() + b"\n")
            self._local.stream.flush()
            if not answered:
                return None
            line = self._local.stream.readline(_ANSWER_MAX_BYTES)
            return json.loads(line) if line else None
        except FileNotFoundError:
            raise NotFound(str(self._path), "the run has ended") from None
        except OSError as error:
            raise StorageFailed("run", f"has ended ({(error.strerror or str(error)).lower()})") from None


def _error(kind: str, where: str, why: str) -> StoreError:
    kinds = {one.kind: one for one in StoreError.__subclasses__()}
    return kinds.get(kind, StoreError)(where, why)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Name a path so that it fits into a socket's address, which holds 108 bytes."""
    with disk_errors(path.parent):
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
