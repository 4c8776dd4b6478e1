"""Done list: which requests of a JOB are done, in a file beside the JOB, so that a run that failed can go on.

The first line names the job by a digest of the JOB and of its requests. Each further line is the id of a request, added
when the request is over. A line that was cut off by a kill does not count. When all requests are done, the file goes.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from ..disk import Disk
from ..errors import StoreError
from ..plan.model import RequestId
from ..user_file import open_user_file

_MAX_BYTES = 1 << 30


class DoneList:
    """The done list of one JOB. Threads may share it."""

    def __init__(
        self, job: Path, requests: Path | None, disk: Disk, on_failure: Callable[[StoreError], object]
    ) -> None:
        """Take the files of a job. If the list can't be written, `on_failure` is told once, and the run goes on."""
        self.path = job.with_name(f"{job.name}.done")
        self._stamp = _digest([job, *([requests] if requests else [])])
        self._disk, self._on_failure = disk, on_failure
        self._guard, self._at, self._failed = threading.Lock(), 0, False
        self.ids: set[RequestId] = self._read()

    def add(self, id_: RequestId) -> None:
        """Note that a request is done."""
        with self._guard:
            self.ids.add(id_)
            first = b"" if self._at else self._line({"job": self._stamp})
            self._append(first + self._line(id_))

    def clear(self) -> None:
        """Forget all of it, and remove the file."""
        with self._guard:
            self.ids.clear()
            self._at = 0
            self._disk.remove(self.path)

    def _read(self) -> set[RequestId]:
        """Return the requests that the file says are done; none if it is of another job, or of none."""
        try:
            with open_user_file(self.path) as file:
                text = file.read(_MAX_BYTES)
            whole = text[: text.rfind(b"\n") + 1]
            head, *lines = [json.loads(line) for line in whole.splitlines()]
            if head != {"job": self._stamp}:
                return set()
        except (OSError, ValueError, RecursionError):
            return set()
        self._at = len(whole)
        return set(lines)

    def _append(self, text: bytes) -> None:
        if self._failed:
            return
        try:
            fd = self._disk.open(self.path, create=True, mode=0o644)
            try:
                if not self._at:
                    self._disk.truncate(fd, 0)
                self._disk.write_at(fd, text, self._at)
            finally:
                os.close(fd)
            self._at += len(text)
        except StoreError as error:
            self._failed = True
            self._on_failure(error)

    @staticmethod
    def _line(value: object) -> bytes:
        return json.dumps(value).encode() + b"\n"


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open_user_file(path) as file:
            content = file.read(_MAX_BYTES)
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
