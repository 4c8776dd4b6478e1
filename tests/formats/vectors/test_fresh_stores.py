"""Stores that the product makes now, read by the reader that was written from the specification alone."""

import os
import shutil
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import arstore
from arstore.formats import catalog, digest
from arstore.formats.identity import make_identity
from arstore.formats.kv_shape import parse_shape
from arstore.store.access import rebuild_catalog
from arstore.store.config import write_config
from arstore.store.disk import Disk
from arstore.store.errors import Conflict, Corrupt
from arstore.store.keys.keyring import Keyring, create_keyring
from arstore.store.keys.unlock import Secrets, Stanzas, new_key_file, open_masters
from arstore.store.kv.arrays import cut_of, parts_of
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.store import Store
from tests.support import spec_identity, spec_keys, spec_reader
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    import numpy as np
from tests.support.vectors import check_slots, golden

__all__ = ["golden"]  # fixtures


def test_a_key_tree_of_three_levels_is_read_from_the_specification(tmp_path: Path) -> None:
    """The golden trees are small; leaf 113 is the first that needs a second inner level."""
    root, master, store_id = tmp_path / "root", bytes(range(32)), bytes(16)
    (tmp_path / "keys").mkdir()
    create_keyring(tmp_path / "keys", root, master, store_id, Disk())
    keyring = Keyring(tmp_path / "keys", root, [master], store_id, Disk())
    try:
        number = keyring.add_tenant("big", open_keys=False)
        made = dict(keyring.reserve(number, 127 * 114))

        def tenant() -> spec_keys.Tenant:
            pages = (tmp_path / "keys" / "pages").read_bytes()
            top = spec_keys.open_root([master], store_id, root.read_bytes())
            assert (top.epoch, top.catalog_key) == (keyring.epoch, keyring.catalog_key)
            body = spec_keys.leaf(pages, top.directory, number)
            assert body is not None
            return spec_keys.Tenant(body, pages)

        for slot in (1, 126, 127, 127 * 112, 127 * 113 - 1, 127 * 113, 127 * 114):
            assert tenant().key(slot) == made[slot]
        with pytest.raises(Refused):
            tenant().key(127 * 114 + 1)

        doomed = {1, 126, 127 * 113, *range(127 * 5, 127 * 7)}  # of leaves 5 and 6 nothing is left
        keyring.destroy({number: doomed})
        found = tenant()
        assert found.slots() == made.keys() - doomed == set(keyring.slots(number))
        assert found.key(2) == made[2]
        keyring.destroy({number: made})
        assert tenant().slots() == set()
        [(slot, key)] = keyring.reserve(number, 1)
        assert slot == 127 * 114 + 1
        assert (tenant().slots(), tenant().key(slot)) == ({slot}, key)
    finally:
        keyring.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a directory of files that take every codec, several frames, one blob twice and one name in UTF-8."""
    import numpy as np
    from safetensors.numpy import save_file

    chance = np.random.default_rng(7)
    weights: dict[str, np.ndarray[Any, Any]] = {
        "half": chance.standard_normal((64, 100)).astype(np.float16),
        "single": (chance.standard_normal((31, 5)) * 0.02).astype(np.float32),
        "other": chance.standard_normal((33,)).astype(np.float16),
        "zeros": np.zeros((5 << 20,), np.uint8),
        "empty": np.zeros((0, 3), np.int64),
    }
    home = tmp_path / "checkpoint"
    (home / "größe").mkdir(parents=True)
    save_file(weights, home / "model.safetensors")
    (home / "größe" / "config.json").write_text('{"hidden_size": 8}')
    (home / "again.bin").write_bytes(weights["half"].tobytes())
    (home / "nothing").write_bytes(b"")
    (home / "run.sh").write_bytes(b"#!/bin/sh\n")
    (home / "run.sh").chmod(0o750)
    (home / "random.bin").write_bytes(chance.bytes((8 << 20) + 12345))
    return home


def files_of(home: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(home).as_posix(): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in home.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["key-file", "passphrase", "open"])
def test_a_fresh_store_is_read_from_the_specification(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    root, wanted = tmp_path / "fresh", files_of(checkpoint)
    passphrase = b"correct horse battery staple" if kind == "passphrase" else None
    arstore.create_store(root, encrypted=kind != "open", passphrase=passphrase, key_file=tmp_path / "key")
    with arstore.open_store(root, passphrase=passphrase) as store:
        for number in range(3):
            store.tenants.add(f"other-{number}")
        store.put(checkpoint, name="model", codec="plane", identity={"model": "größe"})
        store.put(checkpoint / "run.sh", name="model@script", pin=True)
    with arstore.open_store(root, passphrase=passphrase, tenant="other-1") as store:
        store.put(checkpoint, name="model")  # where nothing of it is stored yet: that other tenant's blobs are its own
        store.put(checkpoint / "größe", name="model")

    secrets: dict[str, bytes] = {}
    if kind != "open":
        secrets[kind] = passphrase or (tmp_path / "key").read_bytes().strip()
    assert (root / "catalog" / "data.mdb").exists()
    reader = spec_reader.Store(root, secrets)
    script = {"run.sh": wanted["run.sh"]}
    assert reader.files("model", version=1) == wanted
    assert reader.files("model") == script
    assert reader.scanned_files() == {("model", 1): wanted, ("model", 2): script}
    config = {"config.json": wanted["größe/config.json"]}
    other = spec_reader.Store(root, secrets, tenant="other-1")
    assert other.files("model", version=1) == wanted
    assert other.files("model") == config
    assert other.scanned_files() == {("model", 1): wanted, ("model", 2): config}
    check_slots(reader)
    check_slots(other)
    codecs = {catalog.parse_blob(value[:-8]).place.codec for value in reader.catalog()["blobs"].values()}
    assert codecs == {0, 1, 2, 3}, "it would prove little if all were stored alike"
    if kind != "open":
        with pytest.raises(Refused):
            spec_reader.Store(root, {kind: b"another secret"})


HEADS = {0: (2, 8, 2, 8), 3: (4, 6, 1, 2)}  # layer -> key heads, key dim, value heads, value dim


LATENT = {0: (1, 5, 0, 0), 1: (1, 7, 0, 0)}


KV_FIELDS = {"model": "größe", "revision": "r", "precision": "f16", "rope_theta": 5e5, "block_tokens": 16}


def made_kv(tokens: int, layers: Mapping[int, Sequence[int]]) -> "dict[str, np.ndarray[Any, Any]]":
    """Return KV as arrays [tokens, heads, dim], with every bit pattern in it."""
    import numpy as np

    chance, found = np.random.default_rng(11), {}
    for number, (key_heads, key_dim, value_heads, value_dim) in layers.items():
        for side, heads, dim in (("key", key_heads, key_dim), ("value", value_heads, value_dim)):
            if heads:
                words = chance.integers(0, 1 << 16, (tokens, heads, dim), "uint16")
                found[f"layers.{number}.{side}"] = words.view(np.float16)
    return found


def head_major(arrays: "dict[str, np.ndarray[Any, Any]]", tokens: int) -> dict[str, bytes]:
    return {name: array[:tokens].transpose(1, 0, 2).tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_kv_of_a_fresh_store_is_read_from_the_specification(encrypted: bool, tmp_path: Path) -> None:
    """From identity and tokens to the bytes of every layer, whatever layout and codec they were put in."""
    import numpy as np

    arstore.create_store(tmp_path / "store", encrypted=encrypted, key_file=tmp_path / "key")
    tokens, sparse = list(range(70, 110)), {**KV_FIELDS, "layers": [3, 0]}
    arrays, latent = made_kv(40, HEADS), made_kv(40, LATENT)
    turned = {name: np.ascontiguousarray(array.transpose(1, 0, 2)) for name, array in arrays.items()}
    begun = {name: array[:33] for name, array in arrays.items()}
    fork = {name: np.concatenate([array[:20], array[:20]]) for name, array in arrays.items()}
    forked = [*tokens[:20], *tokens[:20]]
    with arstore.open_store(tmp_path / "store") as store:
        store.kv.put(arrays, name="plain", tokens=tokens, identity=sparse)
        assert store.kv.put(begun, name="begun", tokens=tokens[:33], identity=sparse).blobs_new == 1
        store.kv.put(fork, name="fork", tokens=forked, identity=sparse, join=True)
        store.kv.put(turned, name="turned", tokens=tokens, identity={**sparse, "layout": "HND"}, codec="zstd")
        store.kv.put(latent, name="latent", tokens=tokens, identity={**KV_FIELDS, "engine": "e", "strict": "yes"})
    secrets = {"key-file": (tmp_path / "key").read_bytes().strip()} if encrypted else {}
    reader = spec_reader.Store(tmp_path / "store", secrets)
    plain = dict(make_identity(sparse))
    strict = dict(make_identity({**KV_FIELDS, "engine": "e", "strict": "yes"}))
    for identity, source in ((plain, arrays), ({**plain, "layout": "HND"}, arrays), (strict, latent)):
        assert reader.kv(tokens, identity) == (40, head_major(source, 40))
        assert reader.kv([*tokens[:32], 5], identity) == (32, head_major(source, 32))
        assert reader.kv([5, *tokens], identity) == (0, {})
        assert reader.kv(tokens, {**identity, "model": "other"}) == (0, {})
    assert reader.kv(tokens[:33], plain) == (33, head_major(arrays, 33))
    assert reader.kv(tokens[:33], strict)[0] == 32, "a short last block counts only where the sequence ends with it"
    assert reader.kv(forked, plain) == (40, head_major(fork, 40))
    found, held = reader.identities(reader.catalog())
    assert reader.scanned_identities() == (found, held)
    assert len(found) == 7 + 4 + 4
    stranger = spec_identity.key_id(digest.derive(bytes(32), "identity"), "kv", plain)
    assert reader.named(reader.catalog(), stranger) is None, "ids hang on the tenant"


def test_identities_are_rebuilt_by_what_was_created_first(tmp_path: Path) -> None:
    """Other bytes under one identity never win; once the catalog is lost, the time of the put says who was first."""
    root, secrets = tmp_path / "store", Secrets(tmp_path / "key")
    arstore.create_store(root, key_file=tmp_path / "key")
    secret = {"key-file": (tmp_path / "key").read_bytes().strip()}
    tokens, arrays = list(range(40)), made_kv(40, HEADS)
    other = {name: array[::-1].copy() for name, array in arrays.items()}
    identity = {**KV_FIELDS, "layers": "0,3"}

    def put(year: int, kv: "dict[str, np.ndarray[Any, Any]]") -> None:
        with Store(root, held=secrets, now=lambda: datetime(year, 1, 1, tzinfo=UTC)) as store:
            store.kv.put(kv, name=f"of-{year}", tokens=tokens, identity=identity)

    put(2030, arrays)
    with pytest.raises(Conflict):
        put(2020, other)
    put(2025, arrays)
    canonical = dict(make_identity(identity))
    reader = spec_reader.Store(root, secret)
    assert reader.kv(tokens, canonical) == (40, head_major(arrays, 40))
    shutil.rmtree(root / "catalog")
    rebuild_catalog(root, key_file=tmp_path / "key")
    rebuilt = spec_reader.Store(root, secret)
    assert rebuilt.kv(tokens, canonical) == (40, head_major(other, 40))
    found, held = rebuilt.identities(rebuilt.catalog())
    assert (found, held) == rebuilt.scanned_identities()
    assert sorted(row[0] for row in found.values()) == [1, 1, 1, 3], "three versions claim the key id, one all blocks"
    assert sorted(held.values()) == [1, 1, 4]


def test_a_prefix_ends_before_a_block_in_quarantine(tmp_path: Path) -> None:
    root, tokens, arrays = tmp_path / "store", list(range(40)), made_kv(40, LATENT)
    arstore.create_store(root, encrypted=False)
    with arstore.open_store(root) as store:
        store.kv.put(arrays, name="kv", tokens=tokens, identity=KV_FIELDS)
    [segment] = (root / "segments").iterdir()
    whole = bytearray(segment.read_bytes())
    whole[whole.index(head_major(arrays, 32)["layers.1.key"][16 * 14 :])] ^= 1  # the second half, in the second block
    segment.write_bytes(whole)
    with arstore.open_store(root) as store:
        hit = store.longest_prefix(tokens, KV_FIELDS)
        assert hit.tokens_count == 40
        with pytest.raises(Corrupt):
            hit.tensors()
        assert store.longest_prefix(tokens, KV_FIELDS).tokens_count == 16
    reader = spec_reader.Store(root, {})
    assert reader.kv(tokens, dict(make_identity(KV_FIELDS))) == (16, head_major(arrays, 16))
    mark = reader.row(reader.catalog(), "counters", b"quarantines" + bytes(4))
    assert mark == struct.pack("<Q", 1)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("layers", "heads", "dim", "tokens", "parts", "frame_bytes"),
    [
        (2, 2, 8, 16, [2048], MIB // 4), (3, 8, 128, 256, [3 * MIB], MIB // 4),
        (1, 3, 5, 100, [6000], 44 * 6000), (40, 8, 128, 256, [32 * MIB, 8 * MIB], MIB // 4),
        (3, 8, 128, 4096, [32 * MIB, 16 * MIB], MIB), (2, 6, 64, 512, [3 * MIB // 2], 3 * MIB // 8),
        (1, 1, 2048, 2048, [16 * MIB], MIB), (2, 1, 4096, 4096, [64 * MIB, 64 * MIB], MIB),
        (1, 1, 1024, 2048, [8 * MIB], 4 * MIB),
    ],
)  # fmt: skip
def test_parts_and_frames_of_a_block(
    layers: int, heads: int, dim: int, tokens: int, parts: list[int], frame_bytes: int
) -> None:
    """Worked out by hand from section 8 of FORMAT.md."""
    shape = parse_shape({"dtype": "F16", "layers": [[0, layers, heads, dim, heads, dim]]})
    found = [cut_of(part) for part in parts_of(shape, 0, tokens)]
    assert [cut.length for cut in found] == parts
    assert {cut.frame_bytes for cut in found} == {frame_bytes}


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_a_store_with_holes_is_read_from_the_specification(encrypted: bool, tmp_path: Path) -> None:
    """What was erased, removed and collected leaves holes, empty slots and missing leaves; readers step over them."""
    root, key_file = tmp_path / "store", tmp_path / "key"
    arstore.create_store(root, encrypted=encrypted, key_file=key_file)
    wanted = {}
    with arstore.open_store(root) as store:
        for name in ("gone", "shared", "kept", "erased"):
            (home := tmp_path / name).mkdir()
            for number in range(40):  # 160 records: more than the slots of one leaf
                text = f"{name if number else 'all'} {number} ".encode() * 2000
                (home / f"{number}").write_bytes(text)
            store.put(home, name=name)
            wanted[name] = files_of(home)
        store.put(tmp_path / "gone", name="again")
        store.rm("gone")
        store.rm("shared")
        if encrypted:
            store.erase("erased")
        else:
            store.rm("erased")
        for number in range(3):
            store.tenants.add(f"other-{number}")
        store.tenants.remove("other-0")
        collected = store.gc(AT_ONCE)
        assert collected.deleted_blobs >= 38
    with arstore.open_store(root, tenant="other-1") as store:
        store.put(tmp_path / "kept", name="kept")
    left = {"kept": wanted["kept"], "again": wanted["gone"]}
    secrets = {"key-file": key_file.read_bytes().strip()} if encrypted else {}
    reader = spec_reader.Store(root, secrets)
    assert {name: reader.files(name) for name in left} == left
    assert reader.scanned_files() == {(name, 1): files for name, files in left.items()}
    check_slots(reader)
    other = spec_reader.Store(root, secrets, tenant="other-1")
    assert other.scanned_files() == {("kept", 1): wanted["kept"]}
    check_slots(other)
    rows = reader.catalog()
    leases = [spec_reader.parse_lease(reader.row(rows, "leases", key)) for key in rows["leases"]]
    assert {held.owner for held in leases} == {bytes(16)}
    assert {held.purpose for held in leases} == {"put", "gc"}
    whole = b"".join(path.read_bytes()[4096:] for path in sorted((root / "segments").iterdir()))
    holes = sum(not any(whole[at : at + 4096]) for at in range(0, len(whole), 4096))
    assert holes, "it would prove little without holes"

    rebuild_catalog(root, forget_lost=True)
    rebuilt = spec_reader.Store(root, secrets)
    assert {name: rebuilt.files(name) for name in left} == left
    check_slots(rebuilt)


@pytest.mark.parametrize("resealed", [False, True], ids=["root under the old key", "root under the new key"])
def test_a_rotation_that_was_killed_is_read_from_the_specification(resealed: bool, tmp_path: Path) -> None:
    root, old_file, new_file = tmp_path / "store", tmp_path / "key", tmp_path / "new"
    config = arstore.create_store(root, key_file=old_file)
    (tmp_path / "file").write_bytes(b"bytes " * 100)
    with arstore.open_store(root) as store:
        store.put(tmp_path / "file", name="file")
    wanted, newer = {"file": (0o644, b"bytes " * 100)}, os.urandom(32)
    old, new = old_file.read_bytes().strip(), new_key_file(new_file, Disk())
    older = open_masters(root / "keys", Secrets(old_file), config.store_id, lambda: None)
    grown = Stanzas.read(root / "keys").adding("key-file", new, newer, config.store_id)
    grown.adding_previous(older[0], newer, config.store_id).write(root / "keys", Disk())
    if resealed:
        keyring = Keyring(root / "keys", root / "keys" / "root", older, config.store_id, Disk())
        keyring.reseal(newer)
        keyring.close()
        with pytest.raises(Refused):
            spec_reader.Store(root, {"key-file": old})
    else:
        assert spec_reader.Store(root, {"key-file": old}).files("file") == wanted
    assert spec_reader.Store(root, {"key-file": new}).files("file") == wanted
    before = spec_reader.Store(root, {"key-file": new}).top.catalog_key

    arstore.open_store(root, key_file=new_file).close()
    kinds = [way["kind"] for way in Stanzas.read(root / "keys").ways]
    assert kinds == ["key-file", "key-file", "previous"], "nothing is dropped while the config names the old key file"
    write_config(root, replace(config, key_file=new_file), Disk())
    arstore.open_store(root).close()
    finished = spec_reader.Store(root, {"key-file": new})
    assert finished.files("file") == wanted
    assert finished.top.catalog_key == before
    assert [way["kind"] for way in Stanzas.read(root / "keys").ways] == ["key-file"]
    with pytest.raises(Refused):
        spec_reader.Store(root, {"key-file": old})
