"""Serve: hands the steps of a running lane to other processes of this user, at a socket in the lane's directory.

One line of JSON each way:
    ["next"]        a step, or null after the last
    ["take", STEP]  its objects, once all of them came or failed, or null if the run has ended:
                    {"held": {number: key}, "failed": {number: [kind, where, why]}}
    ["over", STEP, DONE]  the step is over, and whether its work was done; no answer
    ["own", NAME]   whether all steps from here on are given to this client only
When a connection closes, all steps that it was given are over and not done. So a process that is killed holds nothing
up, and its steps are known.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..disk import Disk, disk_errors
from ..errors import Fenced, StorageFailed, StoreError
from ..tiers.extent import attach_extent, extent_path
from .steps import StepObjects, Steps

_ASK_MAX_BYTES = 256
_ANSWER_MAX_BYTES = 1 << 28
_RETRY_S = 0.05
_LAST_WORDS_S = 2.0  # for a client that outlives the command and waits for a step


class StepsServer:
    """Answers connections, each in a thread of its own. `given` and `done` are the steps that were."""

    def __init__(
        self, steps: Steps, keys: Sequence[str], listener: socket.socket, on_done: Callable[[int], object]
    ) -> None:
        self._steps, self._keys, self._listener, self._on_done = steps, keys, listener, on_done
        self.given, self.done = set[int](), set[int]()
        self._connections = dict[socket.socket, threading.Thread]()
        self._owner: str | None = None
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take what clients have said so far, then end all connections."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        connections = dict(self._connections)
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):  # first no more is read than was said already
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(how)
            deadline = time.monotonic() + _LAST_WORDS_S
            for thread in connections.values():
                thread.join(max(deadline - time.monotonic(), 0))
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()[0]
            except OSError:  # the listener is closed, or too many files are open at the moment
                time.sleep(_RETRY_S)
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._connections[connection] = thread
            try:
                thread.start()
            except RuntimeError:  # too many threads; the client finds the connection closed
                self._connections.pop(connection, None)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        owed = set[int]()  # steps that this connection was given and has not finished
        client_errors = (OSError, ValueError, TypeError, IndexError)  # the client is gone, or asks for nonsense
        with contextlib.suppress(*client_errors), connection, connection.makefile("rwb") as stream:
            try:
                while (line := stream.readline(_ASK_MAX_BYTES)).endswith(b"\n"):
                    word, *rest = json.loads(line)
                    if word == "over":
                        self._finish(rest[0], rest[1] is True and rest[0] in owed)
                        owed.discard(rest[0])
                        continue
                    stream.write(json.dumps(self._answer(word, rest, owed)).encode() + b"\n")
                    stream.flush()
            finally:
                self._connections.pop(connection, None)
                for step in owed:
                    self._finish(step, done=False)

    def _finish(self, step: int, done: bool) -> None:
        if done:
            self.done.add(step)
            self._on_done(step)
        self._steps.finish(step, done=done)

    def _answer(self, word: str, rest: list[Any], owed: set[int]) -> object:
        if word == "own":
            self._owner = self._owner or str(rest[0])
            return self._owner == rest[0]
        if word == "next":
            step = self._steps.next()
            owed |= {step} if step is not None else set()
            self.given |= owed
            return step
        owed.add(rest[0])
        with contextlib.suppress(StorageFailed):
            return _packed(self._steps.take(rest[0]), self._keys)
        return None


@contextlib.contextmanager
def serving(
    steps: Steps, keys: Sequence[str], path: Path, disk: Disk, on_done: Callable[[int], object] = lambda _: None
) -> Iterator[StepsServer]:
    """Serve steps at a socket while the body runs. After it, clients that wait get StorageFailed.

    `on_done` is called with each step whose work was done.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _short_path(path) as name, disk_errors(path):
        listener.bind(name)
        listener.listen()
    server = StepsServer(steps, keys, listener, on_done)
    try:
        yield server
    finally:
        server.close()
        disk.remove(path)


def _packed(taken: StepObjects, keys: Sequence[str]) -> dict[str, Any]:
    failed = {number: [error.kind, error.where, error.why] for number, error in taken.failed.items()}
    return {"held": {number: keys[number] for number in taken.held}, "failed": failed}


_clients = weakref.WeakSet["StepsClient"]()
os.register_at_fork(after_in_child=lambda: [*map(StepsClient._forget_connections, list(_clients))])


class StepsClient:
    """The steps of a lane of the host tier that runs in another process. Threads may share one client."""

    tier = "host"

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        """Take the socket. With `alone` no other client gets steps; raise Fenced if another one has them already."""
        self._path = path
        self._forget_connections()
        _clients.add(self)
        if alone and not self._ask(["own", secrets.token_hex(8)]):
            why = "another process of this run works on them already"
            raise Fenced("requests", why, hint="on a device one process works through the requests of a run")

    def _forget_connections(self) -> None:
        """Begin without connections. In the child of a fork, close its parent's, so that they end with the parent."""
        for connection in list(getattr(self, "_connections", ())):
            if (fd := connection.detach()) >= 0:
                os.close(fd)
        self._local, self._connections = threading.local(), weakref.WeakSet[socket.socket]()

    def next(self) -> int | None:
        step = self._ask(["next"])
        return int(step) if step is not None else None

    def take(self, step: int) -> StepObjects:
        answer = self._ask(["take", step])
        if answer is None:
            raise StorageFailed("run", "has ended")
        directory = self._path.parent
        held = {int(number): attach_extent(extent_path(directory, key), key) for number, key in answer["held"].items()}
        failed = {int(number): _parse_error(*error) for number, error in answer["failed"].items()}
        return StepObjects(dict(held), failed)

    def finish(self, step: int, *, done: bool = True) -> None:
        with contextlib.suppress(StorageFailed):  # the run has ended, and so has every step
            self._ask(["over", step, done], answered=False)

    def stop(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _ask(self, words: list[object], *, answered: bool = True) -> Any:
        """Ask on this thread's own connection, so that no thread waits for another thread's step."""
        try:
            if not hasattr(self._local, "stream"):
                self._local.stream = self._connect()
            self._local.stream.write(json.dumps(words).encode() + b"\n")
            self._local.stream.flush()
            if not answered:
                return None
            line = self._local.stream.readline(_ANSWER_MAX_BYTES)
            return json.loads(line)
        except (OSError, ValueError) as error:  # ValueError: an answer that was cut off
            why = str(getattr(error, "strerror", None) or "the connection closed").lower()
            raise StorageFailed("run", f"has ended ({why})") from None

    def _connect(self) -> Any:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _short_path(self._path) as name:
            connection.connect(name)
        self._connections.add(connection)
        stream = connection.makefile("rwb")
        connection.close()  # takes effect when the stream is closed, which the end of its thread does
        return stream


def _parse_error(kind: str, where: str, why: str) -> StoreError:
    kinds = {subclass.kind: subclass for subclass in StoreError.__subclasses__()}
    return kinds.get(kind, StoreError)(where, why)


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Yield a name of a path that fits into the address of a socket, which holds 108 bytes."""
    with disk_errors(path.parent):
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
