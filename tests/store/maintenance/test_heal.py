"""KV that was lost and put again stays found, whatever is removed, counted or rebuilt after."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arstore import NotFound, Store, create_store, open_store
from arstore.store.access import rebuild_catalog
from tests.support.command import cli

IDENTITY = {"model": "m", "revision": "1", "precision": "bf16", "block_tokens": 16}
TOKENS = list(range(40))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ARSTORE_HOST_DIR", str(tmp_path / "host"))
    create_store()
    with open_store() as opened:
        yield opened


def made(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"layers.0.{side}": torch.randn(40, 2, 16).bfloat16() for side in ("key", "value")}


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


def test_an_erase_takes_the_bounds_of_the_keys_with_it(store: Store) -> None:
    store.kv.put(made(0), name="chat", tokens=TOKENS, identity=IDENTITY, key_bounds=8)
    assert set(store.erase("chat").versions) == {"chat@1", "chat/key-bounds@1"}
    assert store.ls() == []


def test_an_erase_takes_what_was_staged_while_it_ran(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(tensors=made(0), name="m")
    drop, staged = store._parts.catalog.drop, list[Any]()

    def staged_between(*words: object, **more: object) -> int:
        if not staged:
            staged.append(store.prefetch(["m"], ttl_s=60))
            staged[0].release()
        return drop(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store._parts.catalog), "drop", lambda _, *words, **more: staged_between(*words, **more))
    store.erase("m")
    assert staged
    assert store.tiers.arenas.host().residents() == []


def test_what_is_over_time_is_wiped_by_whoever_comes_next(store: Store) -> None:
    for name in ("m", "n"):
        store.put(tensors=made(0), name=name)
    store.prefetch(["m"], ttl_s=600).release()
    assert len(store.tiers.arenas.host().residents()) == 1
    [extent] = store.tiers.arenas.host().directory.glob("*.extent")
    os.utime(extent, (1, 1))  # its time is over
    store.prefetch(["n"]).release()
    assert store.tiers.arenas.host().residents() == []


def test_unstage_knows_the_name_that_was_staged(store: Store) -> None:
    store.put(tensors=made(0), name="m")
    store.prefetch(["m"], ttl_s=60).release()
    store.put(tensors=made(1), name="m")
    assert [one.resident.name for one in store.tiers.unstage(["m"]).gone] == ["m@1"]
    store.prefetch(["m"], ttl_s=60).release()
    store.rm("m", all_versions=True)
    assert [one.resident.name for one in store.tiers.unstage(["m"]).gone] == ["m@2"]
    with pytest.raises(NotFound):
        store.tiers.unstage(["m"])


def test_two_versions_on_a_device_are_two(store: Store) -> None:
    for seed in (0, 1):
        store.put(tensors=made(seed), name="d")
    staged = store.prefetch(["d@1", "d@2"], to="device:cpu")
    assert set(staged) == {"d@1", "d@2"}
    assert torch.equal(staged["d@1"]["layers.0.key"], made(0)["layers.0.key"])


def test_the_word_prefetch_may_be_a_name(store: Store, tmp_path: Path) -> None:
    store.put(tensors=made(0), name="prefetch")
    assert cli("get", "prefetch", "--", tmp_path / "out").code == 0
    assert cli("show", "prefetch", "--").code == 0


def test_half_a_table_of_speeds_is_none(store: Store) -> None:
    speed = {"bytes_per_s": 1, "latency_s": 0, "measured": "x"}
    whole = dict.fromkeys(("local", "host", "device"), speed)
    (store._parts.root / "tiers.json").write_text(json.dumps(whole))
    assert store.tiers.arenas.speeds()
    (store._parts.root / "tiers.json").write_text('{"host": {"bytes_per_s": 1, "latency_s": 0, "measured": "x"}}')
    assert store.tiers.arenas.speeds() == {}


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
