"""A catalog that is there and says something untrue: versions that can't be read, counts that are wrong, leftovers."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore import create_store, open_store
from arstore.formats.catalog import Place
from arstore.store.errors import Corrupt, NotFound
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.retention import Retention
from arstore.store.store import Store
from tests.support.command import PATIENCE_S, cli


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store(tmp_path / "store", key_file=tmp_path / "key")
    with open_store(tmp_path / "store", key_file=tmp_path / "key") as opened:
        yield opened


def put(store: Store, path: Path, name: str, *parts: int) -> None:
    """Store one file a part; equal parts are one blob."""
    source = path / f"of-{name}"
    source.mkdir(exist_ok=True)
    for part in parts:
        (source / str(part)).write_bytes(f"part {part} ".encode() * 1000)
    store.put(source, name=name)
    shutil.rmtree(source)


def harm(store: Store, place: Place) -> None:
    """Flip bytes of a record where it lies."""
    path = store._parts.directory / f"{place.segment:016x}.seg"
    with path.open("r+b") as file:
        file.seek(place.offset + 200)
        flipped = bytes(byte ^ 255 for byte in file.read(16))
        file.seek(place.offset + 200)
        file.write(flipped)


def harm_record(store: Store, name: str) -> None:
    harm(store, store._parts.names.resolve(name).row.place)


def lose_key(store: Store, name: str) -> None:
    """Destroy the key of a version's record alone."""
    store._parts.keyring.destroy({store._parts.keys.number: [store._parts.names.resolve(name).row.place.slot]})


def refs(store: Store) -> list[int]:
    return sorted(row.refs for row in store._parts.catalog.all_blobs())


def keys_there(store: Store) -> int:
    return len(store._parts.keyring.slots(store._parts.keys.number)) - len(spare(store))


def spare(store: Store) -> bytes:
    with store._parts.tables.reading() as rows:
        return bytes((rows.get("spare", bytes(4)) or b"")[::8])


# ---- a version whose record is bad


def test_a_version_with_a_bad_record_can_be_erased(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "kept", 1, 2)
    put(store, tmp_path, "bad", 2, 3, 4)
    harm_record(store, "bad")
    with pytest.raises(Corrupt):
        store.show("bad")
    receipt = store.erase("bad")
    assert receipt.versions == ("bad@1",)
    assert receipt.blobs_erased == 2
    assert refs(store) == [1, 1]
    assert keys_there(store) == 3
    assert store.verify().corrupt == ()
    with pytest.raises(NotFound):
        store.show("bad")


def test_an_erase_never_guesses_what_two_bad_versions_need(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "one", 1)
    put(store, tmp_path, "two", 2)
    for name in ("one", "two"):
        harm_record(store, name)
    with pytest.raises(Corrupt):
        store.erase("one")
    assert len(store.ls()) == 2
    assert refs(store) == [1, 1]
    store.rm("two")
    assert store.erase("one").blobs_erased == 2
    assert refs(store) == []


def test_what_a_removed_bad_version_needed_is_collected(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "kept", 1, 2)
    put(store, tmp_path, "bad", 2, 3, 4)
    harm_record(store, "bad")
    store.rm("bad")
    assert refs(store) == [0, 0, 1, 1]
    assert store.gc(AT_ONCE).deleted_blobs == 2


# ---- a version whose key is gone


def test_one_version_that_nobody_can_open_stops_nothing(store: Store, tmp_path: Path) -> None:
    for name, parts in (("a", (1,)), ("b", (1, 2)), ("c", (3,))):
        put(store, tmp_path, name, *parts)
    lose_key(store, "b")
    assert [found.text for found in store.ls()] == ["a@1", "c@1"]
    assert store.stats().artifacts == 2
    [bad] = store.verify().corrupt
    assert "can't be read" in bad.what
    assert store.gc(AT_ONCE, Retention(keep_last=1)).deleted_blobs == 0
    with pytest.raises(Corrupt):
        store.show("b")
    with pytest.raises(Corrupt):
        store.get("b@1")
    put(store, tmp_path, "b", 5)
    assert store.show("b")[0].summary.version == 2


def test_repair_names_it_and_lets_it_go_where_asked(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", 1)
    put(store, tmp_path, "b", 1, 2)
    lose_key(store, "b")
    for dry_run in (True, False):
        done = store.repair(dry_run=dry_run)
        assert len(done.lost) == 1
        assert done.corrected == 0
        assert refs(store) == [1, 2]
    foretold = store.repair(forget_lost=True, dry_run=True)
    assert refs(store) == [1, 2]
    done = store.repair(forget_lost=True)
    assert done == foretold
    assert (len(done.lost), done.corrected) == (1, 2)
    assert refs(store) == [0, 1]
    assert store.repair().lost == ()
    assert store.verify().corrupt == ()


def test_it_can_be_removed_by_name_and_number(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", 1)
    put(store, tmp_path, "b", 1, 2)
    lose_key(store, "b")
    assert [found.text for found in store.rm("b@1")] == ["b@1"]
    assert refs(store) == [0, 1]
    put(store, tmp_path, "b", 3)
    lose_key(store, "b")
    assert store.erase("b").blobs_erased == 2
    assert refs(store) == [1]


# ---- counts


@pytest.mark.parametrize("wrong", [-1, 1, 5])
def test_repair_sets_counts_right(store: Store, tmp_path: Path, wrong: int) -> None:
    put(store, tmp_path, "a", 1, 2)
    put(store, tmp_path, "b", 1)
    catalog = store._parts.catalog
    digest = next(blob.digest for blob in store.show("b")[1].blobs)
    row = catalog.find_blobs([digest])[digest]
    catalog.tables.write(lambda rows: rows.put("blobs", catalog.keys.blob(digest), row.referred(wrong).packed()))
    assert store.repair(dry_run=True).corrected == 1
    assert refs(store) == sorted([1, 2 + wrong])
    assert store.repair().corrected == 1
    assert refs(store) == [1, 2]
    assert store.repair().corrected == 0


# ---- what ended puts left

_INTERRUPTED = """
import os, signal, sys
from arstore import open_store
with open_store(sys.argv[1], key_file=sys.argv[2]) as store:
    synced = store._parts.catalog.commit
    def commit(new):
        os.kill(os.getpid(), signal.SIGINT)
        return synced(new)
    object.__setattr__(store._parts.catalog, "commit", commit)
    store.put(sys.argv[3], name="secret")
"""


def test_an_erase_takes_what_an_interrupted_put_left_of_the_name(store: Store, tmp_path: Path) -> None:
    """Ctrl-C keeps whole blobs for the next put; no version needs those of a source that was changed since."""
    source = tmp_path / "secret"
    source.write_bytes(b"first wording " * 1000)
    command = [sys.executable, "-c", _INTERRUPTED, str(tmp_path / "store"), str(tmp_path / "key"), str(source)]
    ended = subprocess.run(
        command, timeout=60, check=False, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert b"KeyboardInterrupt" in ended.stderr
    assert refs(store) == [0]
    source.write_bytes(b"second wording " * 1000)
    store.put(source, name="secret")
    put(store, tmp_path, "kept", 1)
    assert refs(store) == [0, 1, 1]
    assert store.erase("secret").blobs_erased == 1
    assert refs(store) == [1]
    assert keys_there(store) == 2


_PUT_AND_STOP = """
import sys, time
from arstore import open_store
with open_store(sys.argv[1], key_file=sys.argv[2]) as store:
    def stop(*_):
        print("under way", flush=True)
        time.sleep(600)
    object.__setattr__(store._parts.catalog, "commit", stop)
    store.put(sys.argv[3], name="elsewhere")
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_a_put_in_another_container_is_known_to_live_and_to_be_dead(store: Store, tmp_path: Path) -> None:
    """Process ids mean nothing across pid namespaces; the lock of a loan does."""
    (tmp_path / "file").write_bytes(b"from a container " * 1000)
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", _PUT_AND_STOP]
    running = subprocess.Popen(
        [*command, str(tmp_path / "store"), str(tmp_path / "key"), str(tmp_path / "file")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stdout
        if running.stdout.readline() != "under way\n":
            pytest.skip("no pid namespaces here")
        store.gc(AT_ONCE)
        assert store._parts.ledger.abandoned() == {}
    finally:
        running.kill()
        running.wait()
    until = time.monotonic() + PATIENCE_S
    while not store._parts.ledger.abandoned() and time.monotonic() < until:
        time.sleep(0.01)
    assert len(store._parts.ledger.abandoned()) == 1
    for _ in range(2):
        store.gc(AT_ONCE)
    assert store._parts.ledger.abandoned() == {}
    assert keys_there(store) == 0


def test_the_command_says_what_repair_did(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", 1)
    lose_key(store, "a")
    ran = cli("--store", tmp_path / "store", "--json", "repair", "--forget-lost", "--dry-run")
    assert ran.code == 0
    assert ran.json["dry_run"] is True
    assert len(ran.json["lost"]) == 1
    assert cli("--store", tmp_path / "store", "repair", "--forget-lost").out.startswith("lost: version 1 of a name")


def test_a_loan_that_its_put_has_just_ended_is_not_foreclosed(store: Store, tmp_path: Path) -> None:
    """A collection saw the loan, then the put ended it: its spare keys are the next put's."""
    ledger, tenant = store._parts.ledger, store._parts.keys.number
    made = [slot for slot, _ in store._parts.keyring.reserve(tenant, 4)]
    loan, _ = ledger.borrow_spare(tenant, 0)
    ledger.extend(loan, made)
    ledger.close_loan(loan, made, [])
    ledger.foreclose(loan, made, frozenset())
    assert ledger.doomed() == {}
    put(store, tmp_path, "a", 1)
    store.rm("a")
    assert store._parts.keyring.key(tenant, made[-1])
