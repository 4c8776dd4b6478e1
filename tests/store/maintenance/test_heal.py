"""Heal: bad blobs are stored anew, from the source or from what is staged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arstore import Store, open_store
from arstore.store.access import rebuild_catalog
from tests.support.command import cli
from tests.support.staged_store import IDENTITY, TOKENS, made, store

__all__ = ["store"]  # fixtures


def put(store: Store, name: str, seed: int, *, join: bool = False) -> None:
    store.kv.put(made(seed), name=name, tokens=TOKENS, identity=IDENTITY, join=join)


def spoil(store: Store, name: str) -> None:
    """Flip bytes of the first block of what was put under a name, and let a scrub find it."""
    digest = store.show(name)[1].blobs[0].digest
    [row] = store._parts.catalog.find_blobs([digest]).values()
    path = store._parts.directory / f"{row.place.segment:016x}.seg"
    with path.open("r+b") as file:
        file.seek(row.place.offset + 500)
        file.write(b"\xff\x00\xff\x00")
    assert store.verify([name]).corrupt


def match(store: Store) -> int:
    return store.longest_prefix(TOKENS, IDENTITY).tokens_count


@pytest.mark.parametrize("then", ["repair", "rm", "erase", "rebuild"])
def test_what_healed_stays_found(store: Store, then: str) -> None:
    put(store, "first", 0)
    spoil(store, "first")
    assert match(store) == 0
    put(store, "second", 1, join=True)
    assert match(store) == 40
    if then == "repair":
        store.repair()
    elif then == "rebuild":
        store.close()
        rebuild_catalog()
        with open_store() as again:
            assert match(again) == 40
        return
    else:
        (store.rm if then == "rm" else store.erase)("first")
    assert match(store) == 40


def test_who_lost_an_identity_takes_nothing_from_who_has_it_now(store: Store) -> None:
    for name in ("a", "a2"):
        put(store, name, 0)
    spoil(store, "a")
    put(store, "b", 1, join=True)
    spoil(store, "b")
    put(store, "c", 0, join=True)
    assert match(store) == 40
    store.rm("a2")
    assert match(store) == 40
    store.erase("a")
    assert match(store) == 40


def test_two_that_join_at_once_both_get_in(store: Store) -> None:
    """Recomputed KV has other bits each time; whoever comes second stands on what is there."""
    for turn in range(3):
        tokens = [1000 + turn, *TOKENS]

        def warm(seed: int, tokens: list[int] = tokens, turn: int = turn) -> None:
            torch.manual_seed(seed)
            kv = {f"layers.0.{side}": torch.randn(41, 2, 16).bfloat16() for side in ("key", "value")}
            store.kv.put(kv, name=f"warm-{turn}-{seed}", tokens=tokens, identity=IDENTITY, join=True)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(warm, range(4)))
        assert store.longest_prefix(tokens, IDENTITY).tokens_count == 41


@pytest.mark.parametrize("staged", [True, False])
def test_verify_heals_from_what_is_staged(store: Store, tmp_path: Path, staged: bool) -> None:
    source = tmp_path / "m"
    source.mkdir()
    save_file({name: one.repeat(50, 1, 1) for name, one in made(0).items()}, source / "a.safetensors")
    (source / "notes.txt").write_bytes(b"no tensors here " * 500)
    store.put(source, name="m", codec="stored")
    if staged:
        store.prefetch(["m"], ttl_s=60).release()
    for row in list(store._parts.catalog.all_blobs()):
        if row.place.plain_bytes > 5000:  # not the header of the file, which is no tensor's
            path = store._parts.directory / f"{row.place.segment:016x}.seg"
            with path.open("r+b") as file:
                file.seek(row.place.offset + 500)
                file.write(b"\xff\x00\xff\x00")
    ran = cli("--json", "verify")
    assert (ran.code, len(ran.json["healed"]), len(ran.json["corrupt"])) == ((0, 3, 0) if staged else (13, 0, 3))
    if staged:
        store.tiers.unstage(["m"])
        assert cli("verify", "--deep").code == 0
        store.get_to("m", tmp_path / "out")
        for path in source.iterdir():
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
