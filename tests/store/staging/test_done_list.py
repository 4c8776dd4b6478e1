"""Done list: a request that a command did not finish is said, and the next run goes on with those that are left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arstore import create_store, open_store
from arstore.store.disk import Disk
from arstore.store.errors import StorageFailed, StoreError
from arstore.store.staging.done_list import DoneList
from tests.support.command import PATIENCE_S, PROGRAM, Ran, arstore
from tests.support.planning import write_speeds

COUNT = 6
# Each word of the arguments is one worker: what it does at its second request. Done requests go to a file.
WORKERS = """
import os, signal, subprocess, sys, time
import arstore
how, log = sys.argv[1:3]
if "," in how:
    workers = [subprocess.Popen([sys.executable, __file__, one, log]) for one in how.split(",")]
    codes = [worker.wait() for worker in workers]
    sys.exit(0)
while how == "waits" and not os.path.exists(log + ".died"):
    time.sleep(0.01)
for number, ready in enumerate(arstore.attach().requests()):
    if number == (how == "dies") and how.startswith("dies") and not os.path.exists(log + ".died"):
        open(log + ".died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1 and how == "fails":
        raise RuntimeError("on purpose")
    if number == 1 and how == "leaves":
        break
    assert len(ready["part"]) == 1
    with open(log, "a") as file:
        file.write(f"{ready.id}\\n")
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A JOB of some requests that each need one artifact."""
    create_store()
    write_speeds()
    with open_store() as store:
        store.put(tensors={"w": torch.ones(8)}, name="part")
    lines = [json.dumps({"id": f"r{n}", "artifacts": ["part"]}) for n in range(COUNT)]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    (tmp_path / "workers.py").write_text(WORKERS)
    path = tmp_path / "job.toml"
    path.write_text('[job]\nto = "host"\nrequests = "requests.jsonl"\n')
    return path


def run(job: Path, how: str, *flags: str) -> Ran:
    words = [sys.executable, job.parent / "workers.py", how, job.parent / "log"]
    command = [sys.executable, "-c", PROGRAM, "--json", "prefetch", job, *flags, "--", *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)  # a traceback is the command's own


def report(ran: Ran) -> dict[str, object]:
    """Return the report of a run, which stands on stderr beside what the command says."""
    line = [line for line in ran.err.splitlines() if line.startswith("{")][-1]
    value: dict[str, object] = json.loads(line)
    return value


def logged(job: Path) -> list[str]:
    return (job.parent / "log").read_text().split()


def test_a_run_that_ends_well_leaves_nothing(job: Path) -> None:
    ran = run(job, "works,works")
    assert ran.code == 0, ran.err
    assert report(ran)["unfinished"] == []
    assert sorted(logged(job)) == [f"r{n}" for n in range(COUNT)]
    assert not job.with_name("job.toml.done").exists()


def test_a_request_of_a_killed_worker_is_said_and_done_the_next_time(job: Path) -> None:
    ran = run(job, "dies at once,waits")
    assert ran.code == 4
    lost = report(ran)["unfinished"]
    assert isinstance(lost, list)
    assert len(lost) == 1
    assert sorted([*logged(job), *lost]) == [f"r{n}" for n in range(COUNT)]
    again = run(job, "works")
    assert again.code == 0, again.err
    assert f"{COUNT - 1} requests are done already" in again.err
    assert logged(job)[COUNT - 1 :] == lost
    assert not job.with_name("job.toml.done").exists()


def test_a_run_is_done_again_if_the_user_says_so(job: Path) -> None:
    ran = run(job, "dies at once,waits", "--redo")
    assert ran.code == 0, ran.err
    assert "runs the command again for 1 requests" in ran.err
    assert sorted(logged(job)) == [f"r{n}" for n in range(COUNT)]


@pytest.mark.parametrize(("how", "code", "left"), [("dies", 137, 5), ("fails", 1, 5), ("leaves", 4, 5)])
def test_what_one_worker_left_is_said(job: Path, how: str, code: int, left: int) -> None:
    ran = run(job, how)
    assert ran.code == code
    unfinished = report(ran)["unfinished"]
    assert isinstance(unfinished, list)
    assert len(unfinished) == left
    assert len(job.with_name("job.toml.done").read_text().splitlines()) == 1 + COUNT - left


def test_a_command_that_asks_for_no_request_lost_none(job: Path) -> None:
    ran = arstore("--json", "prefetch", job, "--", "true")
    assert (ran.code, report(ran)["unfinished"]) == (0, [])


def test_a_run_may_begin_anew(job: Path) -> None:
    assert run(job, "dies").code == 137
    assert run(job, "works", "--from-start").code == 0
    assert logged(job)[1:] == [f"r{n}" for n in range(COUNT)]


@pytest.mark.parametrize("file", ["job.toml", "requests.jsonl"])
def test_a_job_that_was_changed_begins_anew(job: Path, file: str) -> None:
    assert run(job, "dies").code == 137
    with job.with_name(file).open("a") as changed:
        changed.write("\n")
    assert run(job, "works").code == 0
    assert logged(job)[1:] == [f"r{n}" for n in range(COUNT)]


def test_flags_without_a_job_are_refused(job: Path) -> None:
    for words in (("part", "--redo", "--", "true"), ("part", "--from-start"), (job, "--redo")):
        assert arstore("prefetch", *words).code == 2


# ---- the file


def open_list(job: Path, disk: Disk | None = None, failures: list[StoreError] | None = None) -> DoneList:
    return DoneList(job, job.with_name("requests.jsonl"), disk or Disk(), (failures or []).append)


def test_what_was_added_is_there_after_a_kill(job: Path) -> None:
    done = open_list(job)
    for id_ in ("r0", 7, "r\n2"):
        done.add(id_)
    assert open_list(job).ids == {"r0", 7, "r\n2"}
    with done.path.open("a") as file:
        file.write('"r3')  # a kill in the middle of a line
    again = open_list(job)
    assert again.ids == {"r0", 7, "r\n2"}
    again.add("r4")
    assert open_list(job).ids == {"r0", 7, "r\n2", "r4"}
    again.clear()
    assert not done.path.exists()
    assert open_list(job).ids == set()


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b"nonsense\n", b"[" * 5000 + b"\n", b"\xff\n", b'{"job": "other"}\n"r1"\n']
)
def test_another_file_of_that_name_is_no_list(job: Path, content: bytes) -> None:
    job.with_name("job.toml.done").write_bytes(content)
    done = open_list(job)
    assert done.ids == set()
    done.add("r1")
    assert open_list(job).ids == {"r1"}


def test_a_list_that_can_not_be_written_is_said_once(job: Path) -> None:
    class Broken(Disk):
        def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
            raise StorageFailed("write", "input/output error")

    failures: list[StoreError] = []
    done = DoneList(job, None, Broken(), failures.append)
    done.add("r1")
    done.add("r2")
    assert [error.why for error in failures] == ["input/output error"]
    assert done.ids == {"r1", "r2"}
