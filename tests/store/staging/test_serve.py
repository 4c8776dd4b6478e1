"""Steps served at a socket: clients share them, get their objects and errors, and learn when the run has ended."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore import Store
from arstore.store.disk import Disk
from arstore.store.errors import Fenced, NotFound, StorageFailed
from arstore.store.plan.model import Move
from arstore.store.progress import ignore_bytes
from arstore.store.staging.lane import Lane
from arstore.store.staging.lane_plan import LanePlan
from arstore.store.staging.requests import requests_of
from arstore.store.staging.serve import StepsClient, serving
from arstore.store.tiers.arena import Arena
from arstore.store.tiers.sources import Sources
from tests.support.command import arstore
from tests.support.fresh_memory import fresh_memory
from tests.support.runs import WORK, store, tight, worked
from tests.support.tier_faults import given
from tests.support.tier_suite import whole

__all__ = ["store"]  # fixtures

KEYS = [letter * 64 for letter in "abc"]
OBJECTS = [given() for _ in KEYS[:2]]  # of the third there is none


@pytest.fixture
def lane() -> Iterator[Lane]:
    """A lane of two steps into the host tier: the first has two objects, the second one that is nowhere."""
    with fresh_memory() as memory:
        store, host = (Arena(name, memory / name, 1 << 30, Disk()) for name in ("local", "host"))
        for key, content in zip(KEYS, OBJECTS, strict=False):
            store.fill(key, content)
        moves = (Move(0, 0), Move(1, 0), Move(2, 1))
        plan = LanePlan(keys=KEYS, moves=moves, needs=((0, 1), (1, 2)), always=(), waits=(), resident=())
        made = Lane(
            host,
            plan,
            below=None,
            sources=Sources([], store),
            on_event=lambda kind, number, source, began: None,
            on_bytes=ignore_bytes,
            clock=time.monotonic,
        )
        made.start()
        yield made
        made.close()


@pytest.fixture
def path(lane: Lane) -> Iterator[Path]:
    tier = lane._tier
    assert isinstance(tier, Arena)
    path = tier.directory / "s.socket"
    with serving(lane, KEYS, path, Disk()):
        yield path
    assert not path.exists()


def test_clients_share_the_steps_and_have_their_objects(path: Path) -> None:
    first, second = StepsClient(path), StepsClient(path)
    assert (first.next(), second.next(), first.next()) == (0, 1, None)
    held = first.take(0).held
    assert [whole(held[number]) for number in (0, 1)] == [content.content for content in OBJECTS]


def test_an_object_that_failed_comes_with_its_error(path: Path) -> None:
    taken = StepsClient(path).take(1)
    assert [*taken.held] == [1]
    assert isinstance(taken.failed[2], NotFound)
    assert str(taken.failed[2]) == f"{KEYS[2][:16]}: is not in local (any more)"


def test_a_step_is_over_when_its_client_says_so_or_goes(lane: Lane, path: Path) -> None:
    client = StepsClient(path)
    assert client.next() == 0
    client.finish(0)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b'["next"]\n')
        assert json.loads(connection.makefile().readline()) == 1
        assert lane._over < 1
    for _ in range(1000):
        if lane._over == 1:
            break
        time.sleep(0.01)
    assert lane._over == 1, "its connection is closed, so its step is over"


def test_steps_that_are_one_clients_alone_are_no_others(path: Path) -> None:
    alone = StepsClient(path, alone=True)
    with pytest.raises(Fenced):
        StepsClient(path, alone=True)
    assert alone.next() == 0


def test_after_the_run_clients_are_told_that_it_has_ended(lane: Lane) -> None:
    tier = lane._tier
    assert isinstance(tier, Arena)
    with serving(lane, KEYS, tier.directory / "s.socket", Disk()):
        client = StepsClient(tier.directory / "s.socket")
        assert client.next() == 0
    for ask in (client.next, lambda: client.take(0)):
        with pytest.raises(StorageFailed, match="has ended"):
            ask()
    client.finish(0)  # nothing is left to say it to


def test_a_lane_that_ends_is_said_in_the_answer(lane: Lane, path: Path) -> None:
    client = StepsClient(path)
    lane.stop()
    with pytest.raises(StorageFailed, match="run: has ended"):
        client.take(0)


def test_a_path_too_long_for_a_socket_is_served(lane: Lane, tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    with serving(lane, KEYS, directory / "s.socket", Disk()):
        assert StepsClient(directory / "s.socket").next() == 0


def test_nonsense_at_the_socket_disturbs_no_client(store: Store, tmp_path: Path) -> None:
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
