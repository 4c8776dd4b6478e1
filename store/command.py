"""Command: a program that runs while what it reads is held in place for it, wiped after, whatever is killed."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .attach import SESSION_FORMAT
from .disk import Disk
from .errors import NotFound, StorageFailed
from .prefetch import Stage


def run_staged(stage: Stage, directory: Path, command: Sequence[str], to: str, disk: Disk) -> int:
    """Run a command that finds what is staged in the host tier by `arstore.attach()`; return its exit code.

    What the stage moved is held meanwhile and wiped after. Signals of the terminal reach the command itself.
    """
    with Session(directory, disk) as session:
        session.will_stage(one.wanted.key for one in stage.staging.staged if one.fresh)
        artifacts = [{"name": name, "key": key} for name, key in stage.key_of.items()]
        try:
            return session.run(command, {"to": to, "artifacts": artifacts})
        finally:
            stage.hand_over()


class Session:
    """One run of a command with what is staged for it. Leave the with block, and what was staged for it is wiped.

    A process of its own does that, the janitor, which outlives this one: also when this one or the command is killed.
    """

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Take the directory of the host tier's extents; raise StorageFailed if no janitor can be started."""
        self.path, self._disk = directory / f"session-{secrets.token_hex(8)}.json", disk
        try:
            # -P: what lies in the working directory is no module of ours.
            self._janitor = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.janitor", str(self.path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise StorageFailed("janitor", f"can't be started: {(error.strerror or str(error)).lower()}") from None

    def will_stage(self, keys: Iterable[str]) -> None:
        """Say what is, or is going to be, staged for this run alone: before it is there, so that nothing stays."""
        assert self._janitor.stdin
        self._janitor.stdin.writelines(f"{key}\n".encode() for key in keys)
        self._janitor.stdin.flush()

    def run(self, command: Sequence[str], said: Mapping[str, object]) -> int:
        """Run a command that finds in the session what is `said`; return its exit code as a shell does."""
        self._disk.replace_file(self.path, json.dumps({"format": SESSION_FORMAT, **said}).encode())
        return _run(command, {**os.environ, "ARSTORE_STAGED": str(self.path)})

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *failure: object) -> None:
        assert self._janitor.stdin
        assert self._janitor.stdout
        self._janitor.stdin.close()
        self._janitor.stdout.read()  # to its end: what nobody else uses is wiped


_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SENT_TO_ALL = (signal.SIGINT, signal.SIGQUIT)  # by the terminal: the command has it already


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end, whatever signals come; return its exit code as a shell does."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def passed_on(number: int, _: object) -> None:
        if process is None:
            early.append(number)
        elif number in _PASSED_ON:
            process.send_signal(number)

    # What is ignored, as nohup has it, the command is to ignore as well.
    caught = [number for number in _PASSED_ON + _SENT_TO_ALL if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, passed_on) for number in caught}
    try:
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise NotFound(command[0], f"can't be run: {(error.strerror or str(error)).lower()}") from None
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
