"""Leases with several writers at once: refused, waited for, or joined, and nothing is lost."""

import threading
import time
from pathlib import Path

import pytest

from arstore.store.errors import BadInput, NotFound
from arstore.store.store import Store
from tests.support.command import cli, ended, start
from tests.support.owners import child, contents, holding, resume, source, store

__all__ = ["source", "store"]  # fixtures


MANY = """
import sys
from pathlib import Path
from arstore.store.access import open_store
own, count, apart = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "apart"
source = Path(sys.argv[4]) / f"source-{own}"
with open_store() as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(count):
        source.write_bytes(f"{own if apart else 'both'} {n}".encode() * 20)
        print(store.put(source, name="shared", multi_writer=True).summary.version)
"""


def test_a_second_writer_is_refused_waits_or_joins(source: Path, store: Store, tmp_path: Path) -> None:
    with holding(source) as owner:
        refused = cli("put", source, "model")
        assert refused.code == 11
        assert f"process {owner.pid}" in refused.error
        assert "hint" in refused.err
        assert "--lock-wait" in refused.err
        assert cli("put", source, "other").code == 0  # another name is nobody's
        began = time.monotonic()
        assert cli("put", source, "model", "--lock-wait", "1s").code == 11
        assert time.monotonic() - began >= 1
        waiting = start("put", source, "model", "--lock-wait", "60s", "--json")
        assert cli("put", source, "model", "--multi-writer").code == 0
        assert resume(owner) == (0, "2\n")
        done = ended(waiting)
        assert (done.code, done.json["version"]) == (0, 3)
    assert [one.text for one in store.ls("model")] == ["model@1", "model@2", "model@3"]


def test_listing_and_breaking(source: Path, store: Store) -> None:
    assert cli("lease", "ls", "--json").json == {"leases": []}
    assert cli("lease", "ls").out == ""
    with holding(source) as owner:
        [lease] = cli("lease", "ls", "--json").json["leases"]
        assert set(lease) == {"id", "purpose", "epoch", "pid", "since", "expires_in_s", "state"}
        assert (lease["pid"], lease["purpose"], lease["epoch"], lease["state"]) == (owner.pid, "put", 1, "live")
        assert 30 < lease["expires_in_s"] <= 60
        shown = cli("lease", "ls").out
        assert lease["id"][:16] in shown
        assert str(owner.pid) in shown
        missing = cli("lease", "break", "0123456789abcdef", "--json")
        assert (missing.code, missing.json["error"]["exit_code"]) == (3, 3)
        assert resume(owner)[0] == 0
    with store._parts.leases.hold(b"name-one", "put"), store._parts.leases.hold(b"name-two", "put"):
        with pytest.raises(BadInput, match="2 leases"):
            store.break_lease(b"name".hex())
        with pytest.raises(NotFound):
            store.break_lease("")


def test_a_name_in_use_is_not_in_the_lease_table(source: Path, store: Store) -> None:
    with holding(source, name="secret-name"):
        catalog = (store._parts.root / "catalog" / "data.mdb").read_bytes()
    assert b"secret-name" not in catalog


def test_threads_own_one_by_one(source: Path, store: Store) -> None:
    inside, most = [0], [0]

    def work() -> None:
        with store._parts.leases.hold(b"scope", "put", 30):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert most == [1]
    assert store.leases() == []


@pytest.mark.parametrize("apart", [True, False], ids=["different", "same"])
def test_two_writers_lose_nothing(source: Path, store: Store, tmp_path: Path, apart: bool) -> None:
    many_puts(store, tmp_path, 100, apart)


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False], ids=["different", "same"])
def test_two_writers_lose_nothing_in_1000_puts(source: Path, store: Store, tmp_path: Path, apart: bool) -> None:
    many_puts(store, tmp_path, 1000, apart)


def many_puts(store: Store, tmp_path: Path, count: int, apart: bool) -> None:
    """Let two processes put under one name at once, and check every version of it."""
    words = [count, "apart" if apart else "together", tmp_path]
    both = {own: child(MANY, own, *words) for own in ("a", "b")}
    given: dict[int, bytes] = {}
    for process in both.values():
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in both.values():
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {own: process.communicate(timeout=600)[0] for own, process in both.items()}
    for own, process in both.items():
        assert process.returncode == 0
        versions = [int(line) for line in answers[own].split()]
        assert len(versions) == count
        assert versions == sorted(versions)
        for n, version in enumerate(versions):
            assert version not in given
            given[version] = f"{own if apart else 'both'} {n}".encode() * 20
    assert sorted(given) == list(range(1, 2 * count + 1))
    assert [one.summary.version for one in store.ls("shared")] == sorted(given)
    out = tmp_path / "out"
    for version, content in given.items():
        assert contents(store, f"shared@{version}", out) == content
    stats = store.stats()
    assert stats.blobs == (2 * count if apart else count)
    assert stats.unreferenced_bytes == 0
    assert store.verify().corrupt == ()
