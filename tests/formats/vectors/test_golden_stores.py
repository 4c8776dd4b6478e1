"""Golden stores: the product reads them, and so does a reader written from the specification alone."""

import shutil
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arstore.store.access import rebuild_catalog
from arstore.store.errors import Corrupt
from arstore.store.kv.prefix import Prefix
from arstore.store.maintenance.collect import AT_ONCE
from tests.support import spec_reader
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    pass
from tests.support.vectors import check_slots, golden, opened, spec_store

__all__ = ["golden"]  # fixtures


def test_golden_store_is_read_by_the_product(golden: tuple[str, Path, Any], tmp_path: Path) -> None:
    _, root, told = golden
    with opened(root) as store:
        listed = {found.summary.name: found.summary for found in store.ls()}
        assert listed.keys() == told["artifacts"].keys() | {one["name"] for one in told["kv"]}
        for name, artifact in told["artifacts"].items():
            summary = listed[name]
            expected = artifact["version"], artifact["label"], artifact["pinned"]
            assert (summary.version, summary.label, summary.pinned) == expected
            single = len(artifact["files"]) == 1
            store.get_to(name, dest := tmp_path / "out" / name)
            for path, file in artifact["files"].items():
                got = dest if single else dest / path
                assert got.read_bytes().hex() == file["bytes"]
                assert stat.S_IMODE(got.stat().st_mode) == file["mode"]
        scrubbed = store.verify(deep=True)
        assert scrubbed.corrupt == ()
        assert scrubbed.checked == sum(map(len, (told["catalog"][table] for table in ("blobs", "versions"))))


def test_golden_store_takes_more(golden: tuple[str, Path, Any], tmp_path: Path) -> None:
    way, root, told = golden
    (tmp_path / "more").write_bytes(b"more " * 100)
    with opened(root) as store:
        assert store.put(tmp_path / "more", name="golden/more").summary.version == 1
        assert store.put(tmp_path / "more", name="golden/note").summary.version == 2
        assert store.put(tmp_path / "more", name="golden/more").blobs_new == 0
        store.rm("golden/note@1")
        assert store.verify(deep=True).corrupt == ()
    other = spec_store(way, root, told)
    assert other.files("golden/note") == {"more": (0o644, b"more " * 100)}


def test_golden_store_ends_what_was_killed_in_it(golden: tuple[str, Path, Any]) -> None:
    """In the sealed one an erase came no further than its doomed list, and a put left its loan."""
    way, root, told = golden
    before = spec_store(way, root, told)
    check_slots(before)
    opened(root).close()
    erased = spec_store(way, root, told)
    assert before.tenant.slots() - erased.tenant.slots() == ({10} if way == "sealed" else set())
    check_slots(erased)
    with opened(root) as store:
        assert [(held.purpose, held.epoch, held.state) for held in store.leases()] == [("gc", 3, "dead")]
        assert store.gc(AT_ONCE).deleted_blobs == 0
        assert store.leases() == []
    after = spec_store(way, root, told)
    assert before.tenant.slots() - after.tenant.slots() == ({5, 6, 10} if way == "sealed" else set())
    check_slots(after)
    rows = after.catalog()
    assert spec_reader.parse_lease(after.row(rows, "leases", b"gc")).epoch == 4
    assert after.row(rows, "counters", b"gc-cycle") == struct.pack("<Q", 4)
    assert {version for _, version in after.scanned_files()} == {one["version"] for one in told["artifacts"].values()}


def test_golden_store_is_rebuilt(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    shutil.rmtree(root / "catalog")
    with pytest.raises(Corrupt):
        opened(root)
    repaired = rebuild_catalog(root, key_file=root.parent / "key", forget_lost=True)
    assert repaired.lost == ()
    assert repaired.recovered == sum(len(told["catalog"][table]) for table in ("blobs", "versions"))
    store = spec_store(way, root, told)
    rows = store.catalog()
    ends_of = {"blobs": 62 + 5, "names": None, "segments": None, "identities": None}
    for table, ends in ends_of.items():  # what only the catalog knew is gone
        for key_text, value_text in told["catalog"][table].items():
            found = store.row(rows, table, bytes.fromhex(key_text))
            assert found[:ends] == bytes.fromhex(value_text)[:-8][:ends], table
    for table in ("versions", "identities"):
        assert rows[table].keys() == {bytes.fromhex(key) for key in told["catalog"][table]}
    assert store.identities(rows) == store.scanned_identities()
    assert not any(rows[table] for table in ("loans", "spare", "doomed", "leases"))
    check_slots(store)


def test_golden_store_is_read_from_the_specification(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    store = spec_store(way, root, told)
    assert store.top.epoch == told["epoch"]
    assert store.top.catalog_key.hex() == told["catalog_key"]
    for slot in told["slots_without_a_key"]:
        with pytest.raises(Refused):
            store.tenant.key(slot)
    scanned = store.scanned_files()
    for name, artifact in told["artifacts"].items():
        files = {path: (file["mode"], bytes.fromhex(file["bytes"])) for path, file in artifact["files"].items()}
        assert store.files(name) == files
        assert scanned[name, artifact["version"]] == files


def arrays_of(prefix: Prefix, **how: Any) -> dict[str, tuple[list[int], str]]:
    """Return shape and bytes, in hex, of the tensors of a prefix."""
    import torch

    tensors = prefix.tensors(**how).items()
    return {name: (list(one.shape), one.view(torch.uint8).numpy().tobytes().hex()) for name, one in tensors}


def test_golden_kv_is_read_by_the_product(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    long, short = told["kv"]
    with opened(root) as store:
        for one in (long, short):
            wanted = {name: (array["shape"], array["bytes"]) for name, array in one["arrays"].items()}
            hit = store.longest_prefix(one["tokens"], one["identity"])
            assert (hit.tokens_count, hit.blocks_count) == (len(one["tokens"]), -(-len(one["tokens"]) // 4))
            assert arrays_of(hit) == arrays_of(store.kv.open(one["name"])) == wanted
            other = {**one["identity"], "engine": "another"}
            assert arrays_of(store.longest_prefix([*one["tokens"], 5], other)).keys() == wanted.keys()
        assert store.longest_prefix([*long["tokens"][:8], 9], long["identity"]).tokens_count == 8
        assert store.longest_prefix(long["tokens"][:6], long["identity"]).tokens_count == 4
        assert not store.longest_prefix(long["tokens"], {**long["identity"], "layout": "NHD"})
        store.rm(long["name"])
        assert store.longest_prefix(long["tokens"], long["identity"]).tokens_count == 4
        store.rm(short["name"])
        assert not store.longest_prefix(long["tokens"], long["identity"])
    after = spec_store(way, root, told)
    assert after.catalog()["identities"] == {}


def test_golden_kv_is_read_from_the_specification(golden: tuple[str, Path, Any]) -> None:
    way, root, told = golden
    store, (long, short) = spec_store(way, root, told), told["kv"]
    for one in (long, short):
        wanted = {name: bytes.fromhex(array["bytes"]) for name, array in one["arrays"].items()}
        assert store.kv(one["tokens"], one["identity"]) == (len(one["tokens"]), wanted)
        [(_, content)] = store.files(one["name"]).values()
        assert sorted(content) == sorted(b"".join(wanted.values()))
    assert store.kv([*long["tokens"][:8], 9], long["identity"])[0] == 8
    assert store.kv(long["tokens"][1:], long["identity"])[0] == 0
    assert store.kv(long["tokens"], {**long["identity"], "model": "another"}) == (0, {})
    found, held = store.identities(store.catalog())
    assert store.scanned_identities() == (found, held)
    assert {id_.hex() for id_ in found} == set(told["ids"].values())
    assert sorted(row[0] for row in found.values()) == [1, 1, 1, 2, 2], "the sequences share key id and first block"
    assert sorted(held.values()) == [0] * len(told["artifacts"]) + [3, 4]
