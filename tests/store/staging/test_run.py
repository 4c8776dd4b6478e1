"""Plans carried out: every request finds what it needs in place, in this process and in a command, whatever dies."""

import contextlib
import gc
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arstore import BadInput, Corrupt, NoRoom, Store, create_store, open_store
from arstore.formats.record import HEADER_BYTES
from arstore.store.config import default_store
from arstore.store.disk import Disk
from arstore.store.errors import StorageFailed
from arstore.store.plan.planfile import Plan, settle_plan
from arstore.store.plan.timeline import Timed, occupancy, parse_trace
from arstore.store.staging.requests import Ready, requests_of
from arstore.store.staging.serve import StepsClient, serving
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.tier import Held
from tests.support.command import PATIENCE_S, PROGRAM, arstore, cli, ended, start

IDENTITY = {"model": "m", "revision": "1", "precision": "bf16"}
IDENTITY_TABLE = "[identity]\n" + "".join(f'{name} = "{value}"\n' for name, value in IDENTITY.items())
SIZE = 40_000  # of each artifact's one tensor
BLOCK = 256 * 2 * 2 * 2 * 16 * 2  # tokens, layers, sides, heads, dimensions, bytes
NAMES = "uvwxyz"


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    memory = Path("/dev/shm")
    path = (memory if memory.is_dir() else tmp_path) / f"arstore-test-{secrets.token_hex(8)}"
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def store() -> Iterator[Store]:
    """A store with an artifact for each of NAMES, filled with its number, and speeds as if measured."""
    create_store()
    speed = {"bytes_per_s": 1e9, "latency_s": 0.0, "measured": "2026-01-01T00:00:00Z"}
    (default_store() / "tiers.json").write_text(json.dumps(dict.fromkeys(("local", "host", "device"), speed)))
    with open_store() as opened:
        for number, name in enumerate(NAMES):
            opened.put(tensors={"w": torch.full((SIZE // 4,), number, dtype=torch.int32)}, name=name)
        yield opened


def job(folder: Path, requests: Sequence[Mapping[str, object]], more: str = "", **fields: object) -> Path:
    (folder / "requests.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in requests))
    fields = {"to": "host", "requests": "requests.jsonl", **fields}
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    (path := folder / "JOB.toml").write_text("[job]\n" + "\n".join(lines) + f"\n{more}")
    return path


def tight(folder: Path, to: str = "host", room: int = 3) -> Path:
    """Return a job that walks over all artifacts four times, with room for three of them."""
    requests = [{"id": n, "artifacts": [NAMES[n % 6], NAMES[(n + 1) % 6]]} for n in range(24)]
    return job(folder, requests, f"[budget]\n{to} = {room * SIZE}\nhost = {(room + 1) * SIZE}\n" if to != "host" else
               f"[budget]\nhost = {room * SIZE}\n", to=to)  # fmt: skip


def value_of(tensor: torch.Tensor) -> int:
    """Return the one number that fills a tensor."""
    found = torch.unique(tensor).tolist()
    assert len(found) == 1, found
    return int(found[0])


def left(host: Path) -> list[str]:
    return [path.name for path in host.rglob("*") if path.is_file() or path.is_socket()]


def staged_bytes(host: Path) -> int:
    total = 0
    for path in [*host.glob("*/*.extent"), *host.glob("*/.*.partial")]:
        with contextlib.suppress(FileNotFoundError):
            total += max(path.stat().st_size - 4096, 0)
    return total


def damage(store: Store, name: str) -> None:
    """Flip a bit of the largest blob of an artifact."""
    blob = max(store.get(name).manifest.blobs, key=lambda one: one.length)
    [row] = store._parts.catalog.find_blobs([blob.digest]).values()
    path = default_store() / "segments" / f"{row.place.segment:016x}.seg"
    with path.open("r+b") as file:
        file.seek(row.place.offset + HEADER_BYTES)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


# ---- in this process


@pytest.mark.parametrize("to", ["host", "device"])
@pytest.mark.parametrize("order", ["given", "prefix"])
def test_every_request_has_what_it_needs_within_the_budget(
    store: Store, tmp_path: Path, host: Path, to: str, order: str
) -> None:
    plan = store.tiers.plan(tight(tmp_path, to), order=order)
    seen, most = [], 0
    with store.tiers.run(plan) as run:
        for request in run:
            assert sorted(request) == sorted({NAMES[int(request.id) % 6], NAMES[(int(request.id) + 1) % 6]})
            for name in request:
                assert value_of(request[name]["w"]) == NAMES.index(name)
            seen.append(request.id)
            most = max(most, staged_bytes(host))
    assert seen == [plan.job.requests[number].id for number in plan.order]
    assert most <= plan.job.tiers[-1].capacity_bytes  # type: ignore[operator]
    gc.collect()
    assert left(host) == []
    assert run.failed == {}
    check_timeline(plan, run.timeline())


def check_timeline(plan: Plan, timed: Timed) -> None:
    """Every planned move was made, once, and no tier ever held more than planned."""
    moves = [(event.tier, event.name) for event in timed.events if event.kind == "move"]
    objects = plan.job.objects
    wanted = [(t.name, objects[m.object].id) for t, lane in zip(plan.job.tiers, plan.lanes, strict=True) for m in lane]
    assert sorted(moves) == sorted(wanted)
    for tier, peak in zip(plan.job.tiers, plan.peak_bytes, strict=True):
        assert max(held for _, held in occupancy(timed)[tier.name]) <= peak
    assert sum(event.kind == "request" for event in timed.events) == len(plan.order)


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


def test_tensors_that_outlive_their_request_stay_whole_and_are_wiped_after(
    store: Store, tmp_path: Path, host: Path
) -> None:
    kept: dict[str, torch.Tensor] = {}
    with store.tiers.run(store.tiers.plan(tight(tmp_path))) as run:
        for request in run:
            for name in request:
                kept.setdefault(name, request[name]["w"])
    assert {name: value_of(tensor) for name, tensor in kept.items()} == {n: i for i, n in enumerate(NAMES)}
    kept.clear()
    store.tiers.arenas.sweep()
    assert left(host) == []


def test_what_was_kept_too_long_is_wiped_when_it_is_dropped(store: Store, tmp_path: Path, host: Path) -> None:
    key = store.get("u").summary.id
    kept: list[torch.Tensor] = []
    with store.tiers.run(store.tiers.plan(tight(tmp_path, room=2))) as run:
        for request in run:
            if request.id == 0:
                kept.append(request["u"]["w"])
            if request.id == 3:
                assert list(host.glob(f"*/{key}.extent")), "it is in use"
                kept.clear()
            if request.id == 4:  # u comes again with request 5
                assert not list(host.glob(f"*/{key}.extent"))
                break


def test_prefix_blocks_are_in_place(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = list(range(640))
    kv = {f"layers.{n}.{side}": torch.randn(512, 2, 16).bfloat16() for n in range(2) for side in ("key", "value")}
    store.kv.put(kv, name="kv", tokens=tokens[:512], identity=IDENTITY)
    more = f"{IDENTITY_TABLE}[recompute]\ntokens_per_second = 100\n"
    plan = store.tiers.plan(job(tmp_path, [{"id": "a", "tokens": tokens}], more))
    with store.tiers.run(plan) as run:
        [over] = list(run)
        assert over.blocks == []  # what a request had is let go when it is over
    with store.tiers.run(plan) as run:
        for request in run:
            joined = {name: torch.cat([block[name] for block in request.blocks]) for name in kv}
            assert all(torch.equal(joined[name], kv[name]) for name in kv)
            assert len(request) == 0


def test_a_bad_object_fails_the_requests_that_need_it_and_no_others(store: Store, tmp_path: Path) -> None:
    damage(store, "w")
    plan = store.tiers.plan(tight(tmp_path))
    good, bad = 0, 0
    with store.tiers.run(plan) as run:
        for request in run:
            for name in {*request, *request.failed}:
                if name == "w":
                    with pytest.raises(Corrupt):
                        request["w"]
                    bad += 1
                else:
                    assert value_of(request[name]["w"]) == NAMES.index(name)
                    good += 1
    assert (good, bad) == (40, 8)
    assert list(run.failed) == ["w@1"]


def test_without_room_nothing_moves(store: Store, tmp_path: Path, host: Path) -> None:
    with store.prefetch(["z"]) as held:
        plan = store.tiers.plan(tight(tmp_path))
        small = plan.within(3 * SIZE)
        assert held
        path = job(tmp_path, [{"artifacts": ["u", "v", "w"]}], f"[budget]\nhost = {3 * SIZE}\n")
        with pytest.raises(NoRoom), store.tiers.run(store.tiers.plan(path)):
            pass  # z is in use, and not of the plan
        assert len(list(host.glob("*/*.extent"))) == 1
    with pytest.raises(NoRoom):
        small.within(2 * SIZE)


@pytest.mark.parametrize("to", ["host", "device"])
def test_a_loop_may_hold_on_to_what_the_last_request_had(store: Store, tmp_path: Path, to: str) -> None:
    tensors: dict[str, torch.Tensor] = {}
    with store.tiers.run(store.tiers.plan(tight(tmp_path, to, room=2))) as run:
        for request in run:  # while the next one is waited for, `tensors` still has those of this one
            tensors = {name: request[name]["w"] for name in request}
            assert {name: value_of(one) for name, one in tensors.items()} == {n: NAMES.index(n) for n in request}
    assert run.failed == {}
    assert len(tensors) == 2


def test_whoever_waits_is_told_when_a_run_breaks(store: Store, tmp_path: Path) -> None:
    run = store.tiers.run(store.tiers.plan(tight(tmp_path)))
    with pytest.raises(BadInput, match="has not begun"):
        iter(run)

    def broken(*_: object, **__: object) -> bool:
        raise RuntimeError("a bug")

    with run, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arena, "remove", broken)
        with pytest.raises(StorageFailed, match="has ended") as caught:
            list(run)
        patch.undo()
    assert isinstance(caught.value.__cause__, RuntimeError)


# ---- for a command

WORK = """
import arstore, os, sys
staged = arstore.attach()
print(sorted(staged), flush=True)
for number, request in enumerate(staged.requests()):
    values = {name: request[name]["w"].unique().tolist() for name in request}
    print(request.id, values, sorted(request.failed), flush=True)
    if len(sys.argv) > 1 and number == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
"""


def worked(out: str) -> dict[int, dict[str, list[int]]]:
    """Return what a command said of each request."""
    rows = [line.split(" ", 1) for line in out.splitlines()[1:]]
    return {int(id_): eval(rest.partition("} ")[0] + "}", {}) for id_, rest in rows}


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
def test_what_fits_is_attached_at_once_and_weights_always(store: Store, tmp_path: Path, to: str) -> None:
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
    assert ran.code == 0, ran.err
    lines = [line for line in ran.out.splitlines() if line != "[]"]
    assert sorted(int(line.split()[0]) for line in lines) == list(range(24))
    assert left(host) == []


@pytest.mark.parametrize("who", ["arstore", "command"])
def test_killed_in_the_middle_everything_is_wiped(store: Store, tmp_path: Path, host: Path, who: str) -> None:
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


def test_the_run_that_ended_is_said(store: Store, tmp_path: Path) -> None:
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
    assert arstore("prefetch", tight(tmp_path), "--", sys.executable, "-c", late).code == 0
    assert "released" in (tmp_path / "said").read_text()


def test_failures_come_back(store: Store, tmp_path: Path) -> None:
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


def test_a_plan_file_runs_as_planned(store: Store, tmp_path: Path) -> None:
    path = tight(tmp_path)
    assert cli("plan", path, "--order", "prefix", "--out", tmp_path / "PLAN").code == 0
    order = json.loads((tmp_path / "PLAN").read_text())["order"]
    assert cli("prefetch", "v").code == 0  # it is there by now, which the plan does not know
    ran = arstore("prefetch", tmp_path / "PLAN", "--", sys.executable, "-c", WORK)
    assert ran.code == 0, ran.err
    assert list(worked(ran.out)) == order
    assert cli("prefetch", tmp_path / "PLAN", "--to", "device").code == 2
    ran = cli("prefetch", tmp_path / "PLAN")  # all at once does not fit
    assert ran.code == 14
    store.rm("z")
    assert cli("prefetch", tmp_path / "PLAN").code == 3
    with pytest.raises(BadInput):
        store.tiers.plan(path, to="shared")


def test_what_was_found_and_is_gone_comes_again(store: Store, tmp_path: Path) -> None:
    assert cli("prefetch", "u", "v").code == 0
    assert cli("plan", tight(tmp_path), "--out", tmp_path / "PLAN").code == 0
    assert cli("unstage", "--all").code == 0
    ran = arstore("prefetch", tmp_path / "PLAN", "--", sys.executable, "-c", WORK)
    assert ran.code == 0, ran.err
    assert len(worked(ran.out)) == 24


def test_nonsense_at_the_socket_harms_nobody(store: Store, tmp_path: Path) -> None:
    rude = (
        "import arstore, json, os, pathlib, socket\n"
        "path = pathlib.Path(os.environ['ARSTORE_STAGED']).with_suffix('.socket')\n"
        "os.chdir(path.parent)\n"
        "for word in (b'', b'x', b'[]\\n', b'[\"take\", 99]\\n', b'[\"take\", \"a\"]\\n', b'[' * 9000):\n"
        "    one = socket.socket(socket.AF_UNIX); one.connect(path.name); one.sendall(word); one.close()\n"
        "exec(" + repr(WORK) + ")\n"
    )
    ran = arstore("prefetch", tight(tmp_path), "--", sys.executable, "-c", rude)
    assert ran.code == 0, ran.err
    assert len(worked(ran.out)) == 24
    assert "Traceback" not in ran.err


# ---- what went wrong once


def test_a_step_that_is_over_before_its_objects_came_does_not_go_early(store: Store, tmp_path: Path) -> None:
    plan = store.tiers.plan(tight(tmp_path, room=2))
    with store.tiers.run(plan) as run:
        lane = run.lanes[0]
        for step in (0, 1, 2):  # given away and given up before it was taken
            assert lane.next() == step
            lane.finish(step)
        for request in run:
            assert {name: value_of(request[name]["w"]) for name in request} == {n: NAMES.index(n) for n in request}
            assert len(lane.held()) <= 2
    assert run.failed == {}


def test_an_error_that_is_raised_again_keeps_nothing(store: Store, tmp_path: Path, host: Path) -> None:
    damage(store, "w")

    def use(request: Ready) -> None:
        tensors = [request[name]["w"] for name in request]
        for name in request.failed:
            request[name]
        assert tensors

    with store.tiers.run(store.tiers.plan(tight(tmp_path, room=2))) as run:
        for request in run:
            with contextlib.suppress(Corrupt):
                use(request)
            assert staged_bytes(host) <= 3 * SIZE
    store.tiers.arenas.sweep()
    assert left(host) == []


def test_a_plan_of_other_sizes_is_refused(store: Store, tmp_path: Path) -> None:
    plan = store.tiers.plan(tight(tmp_path))
    smaller = replace(plan.job, objects=tuple(replace(one, length_bytes=8) for one in plan.job.objects))
    (tmp_path / "PLAN").write_text(json.dumps(settle_plan(smaller, plan.order, plan.lanes).fields()))
    for command in ([], ["--", "true"]):
        ran = arstore("prefetch", tmp_path / "PLAN", *command)
        assert ran.code == 2
        assert "another size" in ran.err


def test_a_timeline_that_cannot_be_written_is_said_before_the_command(store: Store, tmp_path: Path) -> None:
    ran = cli("prefetch", tight(tmp_path), "--timeline", tmp_path / "no/T", "--", "touch", tmp_path / "ran")
    assert ran.code == 1
    assert cli("prefetch", "u", "--timeline", tmp_path).code == 1  # a directory
    (tmp_path / "T").write_text("an older one")
    assert cli("prefetch", "nothing", "--timeline", tmp_path / "T", "--", "touch", tmp_path / "ran").code == 3
    assert (tmp_path / "T").read_text() == "an older one"
    assert not (tmp_path / "ran").exists()
    assert cli("prefetch", tight(tmp_path), "--ttl", "1h", "--", "true").code == 2


def test_what_could_not_be_staged_is_no_reason_not_to_run(store: Store, tmp_path: Path) -> None:
    damage(store, "w")
    path = job(tmp_path, [{"id": n, "artifacts": [name]} for n, name in enumerate("uvw")])  # and all of it fits
    ran = arstore("prefetch", path, "--", sys.executable, "-c", WORK)
    assert ran.code == 4
    assert ran.out.splitlines()[0] == "['u', 'v']"
    assert "2 {} ['w']" in ran.out


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


def test_on_a_device_one_process_works_and_may_leave_early(store: Store, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("to", ["host", "device"])
def test_what_is_to_be_computed_comes_between_what_is_fetched(store: Store, tmp_path: Path, to: str) -> None:
    torch.manual_seed(0)
    kv = {f"layers.{n}.{side}": torch.randn(512, 2, 16).bfloat16() for n in range(2) for side in ("key", "value")}
    requests = []
    for number in range(6):
        tokens = list(range(number * 10_000, number * 10_000 + 1024))
        store.kv.put(kv, name=f"kv/{number}", tokens=tokens[:512], identity=IDENTITY)
        requests.append({"id": number, "tokens": tokens})
    more = f"{IDENTITY_TABLE}[recompute]\ntokens_per_second = 1000\n[budget]\n{to} = {5 * BLOCK}\n"
    show = "import arstore\nfor r in arstore.attach().requests(): print(r.id, len(r.blocks), sorted(r.failed))"
    ran = arstore("prefetch", job(tmp_path, requests, more, to=to), "--", sys.executable, "-c", show)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [f"{number} 2 []" for number in range(6)]


def test_when_all_are_killed_the_next_to_come_by_wipes_what_is_left(store: Store, tmp_path: Path, host: Path) -> None:
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


def test_weights_that_do_not_come_to_the_device_are_said(store: Store, tmp_path: Path) -> None:
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


def test_on_a_device_the_child_of_a_fork_is_told_that_it_has_none(store: Store, tmp_path: Path) -> None:
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


def test_a_code_comes_back_to_one_who_ignores_its_children(store: Store, tmp_path: Path) -> None:
    ignoring = (
        "import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    words = ["-c", PROGRAM, "prefetch", "u", "--", "sh", "-c", "exit 9"]
    assert subprocess.run([sys.executable, "-c", ignoring, *words], check=False, timeout=PATIENCE_S).returncode == 9


def test_a_client_without_a_thread_is_let_go_and_the_next_is_served(
    store: Store, tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.tiers.run(store.tiers.plan(tight(tmp_path))) as run:
        path, real = store.tiers.arenas.host().directory / "s.socket", threading.Thread.start
        with serving(run.lanes[0], run.keys, path, Disk()):
            with monkeypatch.context() as patched:
                failed = threading.Event()

                def no_thread(thread: threading.Thread) -> None:
                    if not failed.is_set():
                        failed.set()
                        raise RuntimeError("can't start new thread")
                    real(thread)

                patched.setattr(threading.Thread, "start", no_thread)
                with pytest.raises(StorageFailed):
                    StepsClient(path).next()
            assert StepsClient(path).next() == 0


@pytest.mark.parametrize("what", ["JOB.toml", "u"])
@pytest.mark.parametrize("stderr", ["2>&-", "2> >(true)"])
def test_a_command_runs_whoever_hears_of_it(store: Store, tmp_path: Path, what: str, stderr: str) -> None:
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


def test_the_child_of_a_fork_neither_speaks_for_its_parent_nor_keeps_its_connections(
    store: Store, tmp_path: Path
) -> None:
    plan = store.tiers.plan(tight(tmp_path))
    with store.tiers.run(plan) as run:
        path = store.tiers.arenas.host().directory / "s.socket"
        with serving(run.lanes[0], run.keys, path, Disk()):
            client = StepsClient(path)
            requests = requests_of(plan, client)
            next(requests)

            def ask() -> None:
                with contextlib.suppress(StorageFailed):
                    client.take(20)  # which waits, as there is no room for it yet

            threading.Thread(target=ask, daemon=True).start()
            while len(client._connections) < 2:
                time.sleep(0.01)
            mine = {f"socket:[{os.fstat(one.fileno()).st_ino}]" for one in client._connections}
            if not (child := os.fork()):
                kept = set()
                with contextlib.suppress(BaseException):
                    for fd in Path("/proc/self/fd").iterdir():
                        with contextlib.suppress(FileNotFoundError):
                            kept.add(os.readlink(fd))
                    requests.close()
                    os._exit(len(kept & mine))
                os._exit(99)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            time.sleep(0.1)
            assert run.lanes[0]._over == -1
            assert not run.lanes[0]._over_ahead
            requests.close()


def test_what_another_move_makes_room_for_waits_until_there_is_some(
    store: Store, tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(tensors={"w": torch.full((SIZE // 2,), 9, dtype=torch.int32)}, name="large")
    requests = [{"id": n, "artifacts": [name]} for n, name in enumerate(("large", "u", "v"))]
    plan = store.tiers.plan(job(tmp_path, requests, f"[budget]\nhost = {2 * SIZE}\n"))
    assert [len(move.evict) for move in plan.lanes[0]] == [0, 1, 0]
    remove, fill, most = Arena.remove, Arena.fill, [0]

    def slowly(arena: Arena, key: str, **how: bool) -> bool:
        time.sleep(0.2)
        return remove(arena, key, **how)

    def watched(arena: Arena, key: str, source: Held, *more: Any, **named: Any) -> Held:
        most.append(staged_bytes(host) + source.length_bytes)
        return fill(arena, key, source, *more, **named)

    monkeypatch.setattr(Arena, "remove", slowly)
    monkeypatch.setattr(Arena, "fill", watched)
    with store.tiers.run(plan) as run:
        assert [request.id for request in run] == [0, 1, 2]
    assert len(most) == 4
    assert max(most) <= 2 * SIZE
