"""A command that works through a plan: what fits at once, what fails, what is killed, and its exit code."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from arstore import Store
from arstore.store.plan.timeline import occupancy, parse_trace
from tests.support.command import PATIENCE_S, PROGRAM, arstore, cli, ended, start
from tests.support.planning import SIZE, job
from tests.support.runs import NAMES, WORK, store, tight, worked
from tests.support.staging import damage, left

__all__ = ["store"]  # fixtures


@pytest.mark.parametrize("to", ["host", "device"])
def test_a_command_works_through_more_than_there_is_room_for(store: Store, tmp_path: Path, host: Path, to: str) -> None:
    ran = arstore(
        "--json", "prefetch", tight(tmp_path, to), "--timeline", tmp_path / "T", "--", sys.executable, "-c", WORK
    )
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0] == "[]"  # nothing stays for the whole run
    wanted = {n: {NAMES[k]: [k] for k in (n % 6, (n + 1) % 6)} for n in range(24)}
    assert worked(ran.out) == wanted
    said = json.loads(ran.err)
    assert said["moved_bytes"] > 6 * SIZE
    assert said["predicted_seconds"] > 0
    timed = parse_trace(json.loads((tmp_path / "T").read_text()), "T")
    assert max(held for _, held in occupancy(timed)["host"]) <= (3 if to == "host" else 4) * SIZE
    assert left(host) == []


@pytest.mark.parametrize("to", ["host", "device"])
def test_objects_that_fit_are_attached_at_once_and_weights_always(store: Store, tmp_path: Path, to: str) -> None:
    path = job(tmp_path, [{"id": 1, "artifacts": ["v"]}, {"id": 2, "artifacts": ["w"]}], to=to, weights=["u"])
    ran = arstore("prefetch", path, "--", sys.executable, "-c", WORK)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0] == "['u', 'v', 'w']"
    assert worked(ran.out) == {1: {"u": [0], "v": [1]}, 2: {"u": [0], "w": [2]}}
    path = job(
        tmp_path, [{"id": n, "artifacts": [name]} for n, name in enumerate("vwx")], f"[budget]\n{to} = {2 * SIZE}\n",
        to=to, weights=["u"],
    )  # fmt: skip
    ran = arstore("prefetch", path, "--", sys.executable, "-c", WORK)
    assert ran.out.splitlines()[0] == "['u']", ran.err
    assert len(worked(ran.out)) == 3


@pytest.mark.parametrize("who", ["arstore", "command"])
def test_every_copy_is_wiped_after_a_kill_in_the_middle(store: Store, tmp_path: Path, host: Path, who: str) -> None:
    wait = "import arstore, pathlib, time\nfor request in arstore.attach().requests():\n"
    wait += f"    pathlib.Path({str(tmp_path / 'up')!r}).write_text(str(__import__('os').getpid()))\n    time.sleep(60)"
    process = start("prefetch", str(tight(tmp_path)), "--", sys.executable, "-c", wait)
    until = time.monotonic() + PATIENCE_S
    while not (tmp_path / "up").exists() or not (tmp_path / "up").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    child = int((tmp_path / "up").read_text())
    if who == "arstore":
        process.kill()
        process.wait()
        time.sleep(0.2)
        assert cli("tiers").code == 0  # which sweeps
        assert list(host.glob("*/*.extent"))  # the command goes on with it
        os.kill(child, signal.SIGKILL)
    else:
        os.kill(child, signal.SIGKILL)
        assert ended(process).code == 137
    while left(host):
        assert time.monotonic() < until + PATIENCE_S, left(host)
        time.sleep(0.05)


def test_the_failures_of_a_plan_are_reported_with_its_exit_code(store: Store, tmp_path: Path) -> None:
    damage(store, "w")
    ran = arstore("--json", "prefetch", tight(tmp_path), "--", sys.executable, "-c", WORK)
    assert ran.code == 4
    assert [one["name"] for one in json.loads(ran.err)["failed"]] == ["w@1"]
    assert sum("['w']" in line for line in ran.out.splitlines()) == 8
    ran = cli("prefetch", job(tmp_path, [{"artifacts": ["u"]}], weights=["w"]), "--", "touch", tmp_path / "ran")
    assert ran.code == 13  # what is needed all the time is missing
    assert not (tmp_path / "ran").exists()
    assert arstore("prefetch", tight(tmp_path), "--", "sh", "-c", "exit 7").code == 7
    plain = "import arstore, sys\ntry: arstore.attach().requests()\nexcept arstore.BadInput as error: sys.exit(9)"
    assert arstore("prefetch", "u", "--", sys.executable, "-c", plain).code == 9


def test_a_timeline_that_cannot_be_written_is_said_before_the_command(store: Store, tmp_path: Path) -> None:
    ran = cli("prefetch", tight(tmp_path), "--timeline", tmp_path / "no/T", "--", "touch", tmp_path / "ran")
    assert ran.code == 1
    assert cli("prefetch", "u", "--timeline", tmp_path).code == 1  # a directory
    (tmp_path / "T").write_text("an older one")
    assert cli("prefetch", "nothing", "--timeline", tmp_path / "T", "--", "touch", tmp_path / "ran").code == 3
    assert (tmp_path / "T").read_text() == "an older one"
    assert not (tmp_path / "ran").exists()
    assert cli("prefetch", tight(tmp_path), "--ttl", "1h", "--", "true").code == 2


def test_a_command_runs_though_an_object_could_not_be_staged(store: Store, tmp_path: Path) -> None:
    damage(store, "w")
    path = job(tmp_path, [{"id": n, "artifacts": [name]} for n, name in enumerate("uvw")])  # and all of it fits
    ran = arstore("prefetch", path, "--", sys.executable, "-c", WORK)
    assert ran.code == 4
    assert ran.out.splitlines()[0] == "['u', 'v']"
    assert "2 {} ['w']" in ran.out


def test_the_next_command_wipes_the_copies_of_processes_that_were_all_killed(
    store: Store, tmp_path: Path, host: Path
) -> None:
    up = tmp_path / "up"
    wait = "import arstore, pathlib, time\nnext(arstore.attach().requests())\n"
    wait += f"pathlib.Path({str(up)!r}).touch()\ntime.sleep(60)"
    process = start("prefetch", str(tight(tmp_path)), "--", sys.executable, "-c", wait)
    until = time.monotonic() + PATIENCE_S
    while not up.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2  # the command and the janitor
    for pid in (*map(int, children), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert any("session" in name for name in left(host))
    while left(host):
        assert time.monotonic() < until + PATIENCE_S, left(host)
        assert cli("tiers").code == 0
        time.sleep(0.05)


def test_attach_raises_where_weights_do_not_fit_the_device(store: Store, tmp_path: Path) -> None:
    path = job(tmp_path, [{"id": 1, "artifacts": ["v"]}], to="device", weights=["u"])
    full = (
        "import arstore, sys\nfrom arstore.store.tiers import device\n"
        "def full(*_): raise arstore.NoRoom('device', 'is full')\n"
        "device.upload = full\n"
        "try: arstore.attach()\nexcept arstore.NoRoom: sys.exit(6)\n"
    )
    assert arstore("prefetch", path, "--", sys.executable, "-c", full).code == 6


def test_a_device_run_that_ends_in_the_middle_of_a_copy_ends_with_its_own_code(store: Store, tmp_path: Path) -> None:
    for number in range(6):
        store.put(tensors={"w": torch.full((8 << 20,), number, dtype=torch.int32)}, name=f"big/{number}")
    requests = [{"id": n, "artifacts": [f"big/{n % 6}"]} for n in range(24)]
    path = job(tmp_path, requests, f"[budget]\ndevice = {96 << 20}\nhost = {256 << 20}\n", to="device")
    early = (
        "import arstore, atexit, threading\n"
        # Called after what attach registers: a thread that is still in torch by then may bring the interpreter down.
        "atexit.register(lambda: print(threading.active_count()))\n"
        "for n, _ in enumerate(arstore.attach().requests()):\n"
        "    if n == 2: raise SystemExit(3)\n"
    )
    ran = arstore("prefetch", path, "--", sys.executable, "-c", early)
    assert (ran.code, ran.out.split()) == (3, ["1"]), ran.err


def test_the_exit_code_reaches_a_caller_that_ignores_its_children(store: Store, tmp_path: Path) -> None:
    ignoring = (
        "import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    words = ["-c", PROGRAM, "prefetch", "u", "--", "sh", "-c", "exit 9"]
    assert subprocess.run([sys.executable, "-c", ignoring, *words], check=False, timeout=PATIENCE_S).returncode == 9


@pytest.mark.parametrize("what", ["JOB.toml", "u"])
@pytest.mark.parametrize("stderr", ["2>&-", "2> >(true)"])
def test_a_command_runs_where_nobody_reads_the_report(store: Store, tmp_path: Path, what: str, stderr: str) -> None:
    tight(tmp_path)
    command = shlex.join(
        [sys.executable, "-c", PROGRAM, "prefetch", what, "--", "sh", "-c", "sleep 0.2; echo ran; exit 9"]
    )
    ran = subprocess.run(
        ["bash", "-c", f"sleep 0.2 2>&1; {command} {stderr}"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (ran.returncode, ran.stdout) == (9, b"ran\n")


def test_a_timeline_that_can_no_more_be_written_does_not_hide_the_code(store: Store, tmp_path: Path) -> None:
    for code, wanted in ((7, 7), (0, 1)):
        (tmp_path / "t").mkdir()
        ran = arstore("prefetch", tight(tmp_path), "--timeline", tmp_path / "t/T", "--", "sh", "-c",
                      f"rm -r {tmp_path}/t; exit {code}")  # fmt: skip
        assert ran.code == wanted
        assert "error: " in ran.err


def test_outputs_go_where_links_and_pipes_lead(store: Store, tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    assert cli("plan", tight(tmp_path), "--out", link).code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["order"]
    process = start("prefetch", "u", "--timeline", str(pipe))
    assert json.loads(pipe.read_text())["traceEvents"]
    assert ended(process).code == 0
    assert pipe.is_fifo()
    assert json.loads(arstore("prefetch", "u", "-q", "--timeline", "/dev/stdout").out)["displayTimeUnit"] == "ms"
