"""A command over staged objects: its output, exit code and signals are its own, and its copies are wiped after it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore import Store
from tests.support.command import PATIENCE_S, Ran, arstore, ended
from tests.support.staging import extents, left, put_file, store, wait_for, weights

__all__ = ["store"]  # fixtures


# What a command does that attaches, says so, and goes on until it is told to end; it then checks what it holds.
HOLDER = """
import arstore, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
held = {name: one.files["f"] for name, one in arstore.attach().items()}
first = {name: bytes(one) for name, one in held.items()}
(here / "up").touch()
while not (here / "end").exists():
    time.sleep(0.01)
sys.exit(0 if all(bytes(held[name]) == one and one.count(0) < len(one) / 2 for name, one in first.items()) else 9)
"""


class Held:
    """`arstore prefetch NAMES -- CMD` with a CMD that holds what it attached until it is told to end."""

    def __init__(self, folder: Path, *names: str, cwd: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir()
        program = [sys.executable, "-P", "-c", "from arstore.cli.main import main; main()", "prefetch", *names]
        command = ["--", sys.executable, "-P", "-c", HOLDER, str(folder)]
        self.process = subprocess.Popen(
            program + command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for((folder / "up").exists, "the command")

    def end(self) -> Ran:
        (self.folder / "end").touch()
        return ended(self.process)


@pytest.mark.parametrize(("command", "code"), [("echo out; exit 7", 7), ("exit 130", 130), ("kill -9 $$", 137)])
def test_the_exit_code_and_stdout_are_the_commands(store: Store, host: Path, command: str, code: int) -> None:
    store.put(tensors=weights(), name="m")
    ran = arstore("--json", "prefetch", "m", "--", "sh", "-c", f'test -f "$ARSTORE_STAGED" || exit 99; {command}')
    assert ran.code == code, ran.err
    assert ran.out == ("out\n" if "echo" in command else "")
    assert json.loads(ran.err)["staged"][0]["name"] == "m"
    assert left(host) == []


def test_words_after_the_dashes_go_to_the_command(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")
    ran = arstore("prefetch", "m", "-q", "--", "echo", "--json", "--", "prefetch", "")
    assert (ran.code, ran.out) == (0, "--json -- prefetch \n")
    for words, code in ((["--"], 2), (["--", "no-such-program"], 3)):
        assert arstore("prefetch", "m", *words).code == code
    assert left(host) == []


def test_signals_reach_the_command_and_its_code_comes_back(store: Store, host: Path) -> None:
    store.put(tensors=weights(), name="m")

    def run(command: list[str], sent: Callable[[int], None], *, then_end: bool = False) -> tuple[int, str]:
        words = [sys.executable, "-c", "from arstore.cli.main import main; main()", "prefetch", "m", "--", *command]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        sent(process.pid)
        heard = process.stdout.read(1) if then_end else ""
        if then_end:
            process.terminate()
        out, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, heard + out

    loop = "echo up; while :; do sleep 0.02; done"
    for name, number in (("TERM", signal.SIGTERM), ("USR1", signal.SIGUSR1)):
        command = ["bash", "-c", f"trap 'echo {name}; exit 5' {name}; {loop}"]
        assert run(command, lambda pid, number=number: os.kill(pid, number)) == (5, f"{name}\n")  # type: ignore[misc]
    # An interrupt of arstore alone, as a supervisor sends it, ends the run, whatever the command makes of it.
    for script in ("echo up; exec sleep 60", f"trap 'exit 0' INT; {loop}"):
        assert run(["bash", "-c", script], lambda pid: os.kill(pid, signal.SIGINT))[0] == 130
    assert run(["bash", "-c", loop], lambda pid: os.killpg(pid, signal.SIGINT))[0] == 130
    assert left(host) == []


COUNT = """
import os, signal, time
signal.signal(signal.SIGINT, lambda *_: None)
os.set_blocking(1, False)
signal.set_wakeup_fd(1, warn_on_full_buffer=False)
os.write(1, b"up\\n")
while True: time.sleep(1)
"""


def test_ctrl_c_on_a_terminal_reaches_the_command_once(store: Store, host: Path) -> None:
    """The terminal sends it to arstore and to the command. What arstore gets it doesn't pass on."""
    store.put(tensors=weights(), name="m")
    reading, writing = os.pipe()
    child, terminal = pty.fork()
    if not child:
        os.dup2(writing, 1)
        words = ["-c", "from arstore.cli.main import main; main()", "-q", "prefetch", "m", "--", sys.executable]
        os.execv(sys.executable, [sys.executable, *words, "-c", COUNT])
    os.close(writing)
    assert os.read(reading, 3) == b"up\n", os.read(terminal, 10_000)
    os.write(terminal, b"\x03")
    assert os.read(reading, 1) == bytes([signal.SIGINT])
    os.kill(child, signal.SIGTERM)
    rest = b""
    while part := os.read(reading, 10):
        rest += part
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    assert bytes([signal.SIGINT]) not in rest  # it came once
    os.close(reading)
    os.close(terminal)
    assert left(host) == []


def test_a_signal_that_arstore_ignores_is_ignored_by_the_command_too(store: Store) -> None:
    store.put(tensors=weights(), name="m")
    words = ["nohup", sys.executable, "-c", "from arstore.cli.main import main; main()", "prefetch", "m", "--"]
    done = subprocess.run(
        [*words, "sh", "-c", "kill -HUP $$; exit 3"], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("how", ["ends", "command killed", "arstore killed"])
def test_the_copy_is_wiped_after_the_run_whatever_is_killed(store: Store, tmp_path: Path, host: Path, how: str) -> None:
    content = put_file(store, tmp_path, "m")
    (tmp_path / "json.py").write_text("raise RuntimeError")  # what lies about where a user works is no module of ours
    held = Held(tmp_path / "run", "m", cwd=tmp_path)
    [extent] = extents(host)
    with extent.open("rb") as file:
        assert content in file.read()
        if how == "arstore killed":
            held.process.kill()
            held.process.wait()
            time.sleep(0.3)
            file.seek(0)
            assert content in file.read()  # the command goes on with it
            (held.folder / "end").touch()
            wait_for(lambda: not left(host), "the end of it")
        elif how == "command killed":
            [child] = Path(f"/proc/{held.process.pid}/task/{held.process.pid}/children").read_text().split()[-1:]
            os.kill(int(child), signal.SIGKILL)
            assert ended(held.process).code == 137
        else:
            assert held.end().code == 0
        assert left(host) == []

        def zeros() -> bool:
            file.seek(0)
            return not any(file.read())

        wait_for(zeros, "the overwriting")


def test_the_end_of_a_run_removes_no_copy_of_another_run(store: Store, tmp_path: Path, host: Path) -> None:
    put_file(store, tmp_path, "m")
    first = Held(tmp_path / "first", "m")
    second = Held(tmp_path / "second", "m")
    assert first.end().code == 0
    assert second.process.poll() is None  # the first didn't wait for it: it ends only when it is told to
    time.sleep(0.2)
    assert len(extents(host)) == 1
    assert second.end().code == 0
    wait_for(lambda: not left(host), "the end of it")
