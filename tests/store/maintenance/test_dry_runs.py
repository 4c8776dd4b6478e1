"""Dry runs: what `rm`, `erase` and `tenant rm` say they would do is what they then do."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from arstore import Store, create_store, open_store
from arstore.store.maintenance.collect import AT_ONCE
from tests.support.segment_scan import check_keys_are_used_once


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store()
    with open_store() as store:
        yield store


def fill(store: Store, tmp_path: Path, rng: random.Random) -> None:
    """Put versions of a few names that share files."""
    for _ in range(rng.randrange(3, 9)):
        folder = tmp_path / f"{rng.getrandbits(64):x}"
        folder.mkdir()
        for at in rng.sample(range(6), rng.randrange(1, 4)):
            (folder / f"{at}").write_bytes(random.Random(at).randbytes(1000 * (at + 1)))
        store.put(folder, name=rng.choice("abc"))


def kill_a_put(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave what a put leaves whose process is killed before its commit: a loan, keys, and records without a row."""
    (tmp_path / "torn").write_bytes(random.Random(99).randbytes(50_000))
    from arstore.store.artifacts import put

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(put, "commit", killed)
        with pytest.raises(SystemExit):
            store.put(tmp_path / "torn", name="torn")


@pytest.mark.parametrize("seed", range(12))
def test_erase(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    fill(store, tmp_path, rng)
    if seed % 3 == 1:
        store.rm(rng.choice(store.ls()).text)
    if seed % 3 == 2:
        kill_a_put(store, tmp_path, monkeypatch)
    target = rng.choice([rng.choice(store.ls()).text, rng.choice(store.ls()).summary.name])
    told, before = store.erase(target, dry_run=True), store.stats().stored_bytes
    done = store.erase(target)
    for field in ("versions", "blobs_erased", "blobs_shared", "keys_destroyed", "freed_bytes"):
        assert getattr(told, field) == getattr(done, field), field
    assert done.keys_destroyed > 0
    assert before - store.stats().stored_bytes == done.freed_bytes
    check_keys_are_used_once(store._parts.root)


@pytest.mark.parametrize("seed", range(8))
def test_rm(store: Store, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    fill(store, tmp_path, rng)
    version = rng.choice(store.ls())
    name = version.summary.name if seed % 2 else version.text
    told, before = store.rm(name, all_versions=seed % 2 == 1, dry_run=True), store.stats().stored_bytes
    done = store.rm(name, all_versions=seed % 2 == 1)
    assert told == done
    assert (told.keys_destroyed, told.freed_bytes) == (done.keys_destroyed, done.freed_bytes)
    assert done.keys_destroyed == len(done)
    store.gc(AT_ONCE)
    assert before - store.stats().stored_bytes == done.freed_bytes


def test_tenant_rm(store: Store, tmp_path: Path) -> None:
    store.tenants.add("team")
    with open_store(tenant="team") as team:
        fill(team, tmp_path, random.Random(1))
        stored, keys = team.stats().stored_bytes, len(team._parts.keyring.slots(team._parts.keys.number))
    told = store.tenants.remove("team", erase=True, dry_run=True)
    assert (told.stored_bytes, told.keys) == (stored, keys)
    assert store.tenants.remove("team", erase=True) == told


def test_gc_says_what_becomes_free_in_the_end(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(100_000))
    store.put(tmp_path / "file", name="a")
    store.rm("a")
    told = store.gc(dry_run=True)
    assert told.freed_bytes < 100_000 < told.freeable_bytes
    assert store.gc().freeable_bytes >= 100_000
    before = store.stats().stored_bytes
    store.gc(AT_ONCE)
    assert before - store.stats().stored_bytes >= 100_000
