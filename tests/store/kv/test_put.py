"""Put of KV: blocks are stored once, other bytes for an identity are a conflict, and a killed put shows nothing."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from arstore import BadInput, Conflict, Store, create_store, open_store
from arstore.store.access import rebuild_catalog
from arstore.store.disk import Disk
from arstore.store.maintenance.collect import AT_ONCE
from tests.support.kv_made import IDENTITY, made, raw
from tests.support.kv_store import TOKENS, answer, identity_rows, match, put, store
from tests.support.mortal_disk import killed
from tests.support.room import HookedDisk

__all__ = ["store"]  # a fixture


def test_sequences_that_share_a_prefix_store_it_once(store: Store) -> None:
    first = put(store, "first", TOKENS)
    other = [*TOKENS[:40], *range(300, 350)]
    second = put(store, "second", other)
    assert first.blobs_new == 5
    assert (second.blobs_reused, second.blobs_new) == (2, 4)  # of the third block two thirds are the same
    again = put(store, "again", TOKENS)
    assert (again.blobs_reused, again.blobs_new) == (5, 0)
    assert raw(store.kv.open("second").tensors()) == raw(made(other))
    store.erase("first")
    assert answer(store, TOKENS) == raw(made(TOKENS))
    store.erase("again")
    assert match(store, TOKENS) == 32
    assert answer(store, other) == raw(made(other))


def test_what_the_identity_says_of_the_kv_must_be_so(store: Store) -> None:
    for field, value in {"kv_heads": 4, "head_dim": 16, "layers": "0-3"}.items():
        with pytest.raises(BadInput, match="the identity says"):
            store.kv.put(made(TOKENS), name="chat", tokens=TOKENS, identity=IDENTITY | {field: value})
    middle = {name: one for name, one in made(TOKENS).items() if not name.startswith("layers.0")}
    identity = IDENTITY | {"layers": "1-2", "kv_heads": 2, "head_dim": 8}
    store.kv.put(middle, name="stage", tokens=TOKENS, identity=identity)
    hit = store.longest_prefix(TOKENS, identity)
    assert hit.layers == (1, 2)
    assert raw(hit.tensors()) == raw(middle)


def test_other_bytes_for_an_identity_are_both_kept_and_the_first_answer(store: Store) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict, match="second@1: is stored, but its identity") as refused:
        put(store, "second", [*TOKENS[:64], 5, 6], salt=1)
    assert "\n" not in str(refused.value)
    mine, other = raw(made(TOKENS)), raw(made([*TOKENS[:64], 5, 6], salt=1))
    for change in (lambda: None, lambda: store.gc(AT_ONCE), store.repair):
        change()
        assert answer(store, TOKENS) == mine
        assert match(store, [*TOKENS[:64], 5, 6]) == 64
        assert raw(store.kv.open("second").tensors()) == other
    assert store.repair().corrected == 0


def test_a_conflict_brings_back_nothing_that_was_erased_right_after_the_commit(tmp_path: Path) -> None:
    create_store()
    disk = HookedDisk()
    with Store(tmp_path / "store", disk=disk) as store, open_store() as other:
        put(store, "first", TOKENS)

        def erase_second() -> None:
            if any(version.summary.name == "second" for version in other.ls()):
                other.erase("second")

        disk.hook = lambda operation, path: erase_second() if path.suffix == ".seg" else None
        with pytest.raises(Conflict):
            put(store, "second", TOKENS, salt=1)
        erase_second()
        assert sorted(row.refs for row in other._parts.catalog.all_blobs()) == [1] * 5
        with pytest.raises(Conflict):
            put(store, "third", TOKENS, salt=1)
    with open_store() as store:
        assert raw(store.kv.open("third").tensors()) == raw(made(TOKENS, salt=1))


def test_a_conflict_survives_a_rebuild(tmp_path: Path) -> None:
    create_store()
    with open_store() as store:
        put(store, "first", TOKENS)
        with pytest.raises(Conflict):
            put(store, "second", TOKENS, salt=1)
    rebuild_catalog()
    with open_store() as store:
        assert answer(store, TOKENS) == raw(made(TOKENS))
        assert raw(store.kv.open("second").tensors()) == raw(made(TOKENS, salt=1))


@pytest.mark.parametrize("gone", ["first", "second"])
def test_either_side_of_a_conflict_can_be_erased(store: Store, gone: str) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict):
        put(store, "second", TOKENS, salt=1)
    store.erase(gone)
    if gone == "second":
        assert answer(store, TOKENS) == raw(made(TOKENS))
        assert store.repair().corrected == 0
        return
    assert match(store, TOKENS) == 0
    assert raw(store.kv.open("second").tensors()) == raw(made(TOKENS, salt=1))
    assert store.repair().corrected > 0  # what is left answers once the counts are made anew
    assert answer(store, TOKENS) == raw(made(TOKENS, salt=1))


def test_what_came_second_takes_no_claim_with_it_that_it_never_had(store: Store) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict):
        put(store, "second", TOKENS, salt=1)
    store.erase("first")
    put(store, "third", TOKENS, salt=1)
    assert match(store, TOKENS) == 70
    store.erase("second")
    assert answer(store, TOKENS) == raw(made(TOKENS, salt=1))
    store.erase("third")
    assert identity_rows(store) == {}


def test_other_shapes_under_one_identity_are_a_conflict(store: Store) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict):
        store.kv.put(made(TOKENS[:20], heads=4), name="second", tokens=TOKENS[:20], identity=IDENTITY)
    with pytest.raises(Conflict):
        store.kv.put(made(TOKENS[:20], heads=4), name="third", tokens=TOKENS[:20], identity=IDENTITY, join=True)
    assert raw(store.kv.open("third").tensors()) == raw(made(TOKENS[:20], heads=4))
    assert answer(store, TOKENS) == raw(made(TOKENS))


def test_join_stands_on_what_is_there(store: Store) -> None:
    put(store, "first", TOKENS)
    longer = [*TOKENS[:64], *range(300, 330)]
    joined = put(store, "second", longer, salt=1, join=True)
    assert (joined.blobs_new, match(store, longer)) == (2, 94)
    one, two = made(TOKENS), made(longer, salt=1)
    wanted = {name: np.concatenate([one[name][:64], two[name][64:]]) for name in one}
    assert answer(store, longer) == raw(wanted)
    assert raw(store.kv.open("second").tensors()) == raw(wanted)
    store.erase("first")
    assert answer(store, longer) == raw(wanted)
    assert (match(store, TOKENS), store.repair().corrected) == (64, 0)
    assert put(store, "alone", [9, 9], join=True).blobs_new == 1


def test_a_put_that_is_killed_shows_nothing_and_the_next_uses_what_it_left(tmp_path: Path) -> None:
    reused = set()
    for at in itertools.count(1):
        root = tmp_path / str(at)
        create_store(root / "store", key_file=root / "key")

        def work(disk: Disk, root: Path = root) -> None:
            from arstore.store.keys.unlock import Secrets

            with Store(root / "store", held=Secrets(key_file=root / "key"), disk=disk) as store:
                put(store, "chat", TOKENS)

        died = killed(at, work)
        with open_store(root / "store", key_file=root / "key") as store:
            assert match(store, TOKENS) in ((0,) if died else (70,))
            assert identity_rows(store) == {} or not died
            for held in store.leases():
                store.break_lease(held.id)
            reused.add(put(store, "chat", TOKENS).blobs_reused)
            assert answer(store, TOKENS) == raw(made(TOKENS))
            assert store.repair().corrected == 0
        if not died:
            break
    assert at > 5
    assert reused == {0, 5}
