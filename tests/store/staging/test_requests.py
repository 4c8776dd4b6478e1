"""Requests of a plan are shared by threads and processes, come in their order, and are told when their run ends."""

import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from arstore import Store
from tests.support.command import PATIENCE_S, arstore
from tests.support.planning import SIZE, job
from tests.support.runs import NAMES, WORK, store, tight, value_of, worked
from tests.support.staging import left

__all__ = ["store"]  # fixtures


def test_threads_share_the_requests(store: Store, tmp_path: Path) -> None:
    plan = store.tiers.plan(tight(tmp_path, room=4))
    seen: list[object] = []
    with store.tiers.run(plan) as run:

        def work() -> None:
            for request in run:
                for name in request:
                    assert value_of(request[name]["w"]) == NAMES.index(name)
                time.sleep(0.002)
                seen.append(request.id)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert sorted(map(int, map(str, seen))) == list(range(24))


@pytest.mark.parametrize("to", ["host", "device"])
def test_a_loop_may_hold_on_to_what_the_last_request_had(store: Store, tmp_path: Path, to: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    with store.tiers.run(store.tiers.plan(tight(tmp_path, to, room=2))) as run:
        for request in run:  # while the next one is waited for, `tensors` still has those of this one
            tensors = {name: request[name]["w"] for name in request}
            assert {name: value_of(one) for name, one in tensors.items()} == {n: NAMES.index(n) for n in request}
    assert run.failed == {}
    assert len(tensors) == 2


def test_several_processes_share_the_requests_and_one_that_dies_holds_nothing_up(
    store: Store, tmp_path: Path, host: Path
) -> None:
    spawn = (
        "import subprocess, sys\n"
        "words = [sys.executable, '-c', sys.argv[1]]\n"
        "all_ = [subprocess.Popen(words + more, stdout=subprocess.PIPE, text=True) for more in (['2'], [])]\n"
        "outs = [one.communicate()[0] for one in all_]\n"
        "print('\\n'.join(line for out in outs for line in out.splitlines()))\n"
    )
    ran = arstore("prefetch", tight(tmp_path), "--", sys.executable, "-c", spawn, WORK)
    assert ran.code == 4, ran.err  # one of them died over a request
    assert "requests not finished: 1" in ran.err
    lines = [line for line in ran.out.splitlines() if line != "[]"]
    assert sorted(int(line.split()[0]) for line in lines) == list(range(24))
    assert left(host) == []


def test_a_request_after_the_run_is_told_that_it_was_released(store: Store, tmp_path: Path) -> None:
    late = (
        "import arstore, os, sys, time\nrequests = arstore.attach().requests()\nnext(requests)\n"
        "run = os.getppid()\n"
        "def over():\n    return open(f'/proc/{run}/stat').read().rpartition(') ')[2].startswith('Z')\n"
        "if os.fork() == 0:\n"
        "    while not over(): time.sleep(0.01)\n"  # it is not reaped before we close its output
        "    try:\n        next(arstore.attach().requests())\n"
        f"    except arstore.StoreError as error:\n        open({str(tmp_path / 'said')!r}, 'w').write(str(error))\n"
        "    os._exit(0)\n"
    )
    assert arstore("prefetch", tight(tmp_path), "--", sys.executable, "-c", late).code == 4  # it left its requests
    assert "released" in (tmp_path / "said").read_text()


def test_a_worker_that_dies_while_it_waits_ends_nothing(store: Store, tmp_path: Path) -> None:
    wait = (
        "import arstore, os, signal, subprocess, sys, time\n"
        "first = next(requests := arstore.attach().requests())\n"  # what the other waits for evicts what this has
        "other = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE)\n"
        "other.stdout.readline()\ntime.sleep(0.1)\nother.kill()\nother.wait()\n"
        "print(first.id, sorted(first), *[one.id for one in requests])\nsys.exit(5)\n"
    )
    other = (
        "import arstore\nfrom arstore.store.staging.serve import StepsClient\ntake = StepsClient.take\n"
        "def told(client, number):\n    print('has a request and asks for its objects', flush=True)\n"
        "    return take(client, number)\n"
        "StepsClient.take = told\nnext(arstore.attach().requests())\n"
    )
    ran = arstore("prefetch", tight(tmp_path, room=2), "--", sys.executable, "-c", wait, other)
    assert ran.code == 5, ran.err
    assert ran.out.split()[3:] == [str(n) for n in range(2, 24)]


def test_a_device_run_has_one_process_at_work_which_may_leave_early(store: Store, tmp_path: Path) -> None:
    early = (
        "import arstore, subprocess, sys\nstaged = arstore.attach()\n"
        "again = 'import arstore, sys\\ntry: arstore.attach()\\nexcept arstore.Fenced: sys.exit(8)'\n"
        "for number, request in enumerate(staged.requests()):\n"
        "    if number == 4: break\n"
        "for to, kind in (('host', arstore.BadInput), (None, arstore.Fenced)):\n"
        "    try: arstore.attach(to=to)\n"
        "    except kind: print(kind.__name__)\n"
        "sys.exit(subprocess.call([sys.executable, '-c', again]))\n"
    )
    ran = arstore("prefetch", tight(tmp_path, "device"), "--", sys.executable, "-c", early)
    assert (ran.code, ran.out.split()) == (8, ["BadInput", "Fenced"]), ran.err


def test_the_child_of_a_fork_gets_requests_of_its_own(store: Store, tmp_path: Path) -> None:
    forked = (
        "import arstore, os, sys\n"
        "requests = arstore.attach().requests()\n"
        "first = next(requests)\n"
        "child = os.fork()\n"
        "for request in requests:\n"
        "    said = [request.id, *sorted(request), *(int(request[n]['w'][0]) for n in sorted(request))]\n"
        "    os.write(1, (' '.join(map(str, said)) + '\\n').encode())\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    ran = arstore("prefetch", tight(tmp_path), "--", sys.executable, "-c", forked)
    assert ran.code == 0, ran.err
    wanted = []
    for number in range(1, 24):
        two = sorted((NAMES[number % 6], NAMES[(number + 1) % 6]))
        wanted.append(f"{number} {' '.join(two)} {' '.join(str(NAMES.index(name)) for name in two)}")
    assert sorted(ran.out.splitlines()) == sorted(wanted)


def test_the_child_of_a_fork_has_no_requests_on_a_device(store: Store, tmp_path: Path) -> None:
    forked = (
        "import arstore, os\n"
        "requests = arstore.attach().requests()\n"
        "next(requests)\n"
        "if not os.fork():\n"
        "    try: next(requests)\n"
        "    except arstore.StorageFailed: os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), sum(1 for _ in requests))\n"
    )
    ran = arstore("prefetch", tight(tmp_path, "device"), "--", sys.executable, "-c", forked)
    assert (ran.code, ran.out) == (0, "7 23\n"), ran.err


@pytest.mark.parametrize("to", ["host", "device"])
def test_a_request_waits_for_those_it_is_to_come_after(store: Store, tmp_path: Path, to: str) -> None:
    requests = [{"id": 0, "artifacts": ["u"]}, {"id": 1, "artifacts": ["v"]}]
    requests += [{"id": 2, "artifacts": ["u"], "after": [0]}, {"id": 3, "artifacts": ["v"], "after": [1, 2]}]
    happened, both = [], threading.Event()
    with store.tiers.run(store.tiers.plan(job(tmp_path, requests, to=to))) as run:

        def work() -> None:
            for request in run:
                happened.append(("begins", request.id))
                if request.id == 1:
                    both.set()
                if request.id == 0:
                    both.wait(30)
                time.sleep(0.01)
                happened.append(("ends", request.id))

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
    order = {what: number for number, what in enumerate(happened)}
    assert len(order) == 8
    for id_, after in ((2, 0), (3, 1), (3, 2)):
        assert order["ends", after] < order["begins", id_]
    assert order["begins", 1] < order["ends", 0]  # else nothing was done side by side


@pytest.mark.parametrize("to", ["host", "device"])
def test_a_request_may_call_what_stays_by_another_name(store: Store, tmp_path: Path, to: str) -> None:
    store.put(tensors={"w": torch.full((SIZE // 4,), 0, dtype=torch.int32)}, name="uu")
    assert store.get("uu").summary.id == store.get("u").summary.id
    path = job(tmp_path, [{"id": n, "artifacts": [name]} for n, name in enumerate(("v", "uu", "w"))],
               f"[budget]\n{to} = {2 * SIZE}\n", to=to, weights=["u"])  # fmt: skip
    ran = arstore("prefetch", path, "--", sys.executable, "-c", WORK)
    assert ran.code == 0, ran.err
    assert worked(ran.out) == {0: {"u": [0], "v": [1]}, 1: {"u": [0], "uu": [0]}, 2: {"u": [0], "w": [2]}}
