"""Repair where something is gone: it is named, and what is incomplete goes only if asked."""

import os
from pathlib import Path

import pytest

from arstore import Store
from arstore.store.disk import Disk
from arstore.store.keys.opening import open_keyring
from arstore.store.keys.unlock import Secrets
from tests.support.command import cli
from tests.support.rebuilt import TENANTS, everything, filled, goes_on, remove_directory, root

__all__ = ["filled", "root"]  # fixtures


def overwrite(path: Path, content: bytes, at: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_what_was_forgotten_does_not_come_back(tmp_path: Path, root: Path) -> None:
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    for tenant in TENANTS:
        names = {shown["name"] for shown in cli("--json", "--tenant", tenant, "ls").json["artifacts"]}
        assert names == {"a/one", "two"}
        assert cli("--tenant", tenant, "get", "gone", tmp_path / "out").code == 3
        assert cli("--tenant", tenant, "get", "removed", tmp_path / "out").code == 3


def slots_with_keys(root: Path) -> dict[int, set[int]]:
    _, _, keyring = open_keyring(root, Secrets(), lambda: None, Disk())
    try:
        return {number: set(keyring.slots(number)) for number in keyring.tenants()}
    finally:
        keyring.close()


def test_keys_that_nothing_stands_on_are_destroyed_where_asked(root: Path) -> None:
    before = slots_with_keys(root)
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    assert slots_with_keys(root) == before  # a segment that is missing today may be back tomorrow
    assert cli("repair", "--rebuild-catalog", "--forget-lost").code == 0
    assert slots_with_keys(root) != before
    for number, slots in slots_with_keys(root).items():
        with Store(root, tenant=TENANTS[number]) as store:
            catalog = store._parts.catalog
            used = {row.place.slot for row in catalog.all_blobs()} | {row.place.slot for _, row in catalog.versions()}
        assert slots == used
        assert used


def names_of(lost: list[str]) -> set[str]:
    return {one.partition(":")[0] for one in lost}


def test_a_missing_segment_is_named_by_what_misses_it(tmp_path: Path, root: Path) -> None:
    """A version whose record is in one segment and whose blob is in another that is gone."""
    (tmp_path / "file").write_bytes(content := os.urandom(30_000))
    assert cli("put", tmp_path / "file", "blob-elsewhere", "--kind", "file").code == 0
    segments = set((root / "segments").iterdir())
    assert cli("put", tmp_path / "file", "loses-it", "--kind", "intermediate").code == 0
    [fresh] = set((root / "segments").iterdir()) - segments
    first = min(segments)
    first.unlink()
    remove_directory(root)
    repaired = cli("--json", "repair", "--rebuild-catalog")
    assert repaired.code == 0
    assert names_of(repaired.json["lost"]) == {"loses-it@1"}
    # What is left of it stays, is said to be bad, survives collections, and is whole again with the next put.
    assert cli("get", "loses-it", tmp_path / "out").code == 13
    [bad] = cli("--json", "verify").json["error"] and cli("--json", "verify").json["corrupt"]
    assert bad["artifacts"] == ["loses-it@1"]
    assert "missing" in bad["why"]
    assert cli("gc", "--grace", "0s").code == 0
    assert cli("put", tmp_path / "file", "again", "--kind", "file").code == 0
    for name in ("again", "loses-it"):
        assert cli("get", name, tmp_path / "out").code == 0
        assert (tmp_path / "out").read_bytes() == content
    assert cli("verify").code == 0
    assert fresh.exists()


def test_a_segment_that_turns_up_again_is_taken_in_by_another_rebuild(tmp_path: Path, root: Path) -> None:
    """Collections, puts and the numbers of new segments between do it no harm."""
    before = everything(tmp_path)
    first = min((root / "segments").iterdir())
    first.rename(away := tmp_path / "away.seg")
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    (tmp_path / "new").write_bytes(os.urandom(100_000))
    assert cli("put", tmp_path / "new", "put-meanwhile", "--kind", "file").code == 0
    for _ in range(2):
        assert cli("gc", "--grace", "0s").code == 0
    assert not first.exists()
    away.rename(first)
    assert cli("--json", "repair", "--rebuild-catalog").json["lost"] == []
    assert cli("erase", "put-meanwhile").code == 0
    assert everything(tmp_path) == before
    goes_on(tmp_path, root)


def test_with_forget_lost_what_is_incomplete_goes(tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(30_000))
    assert cli("put", tmp_path / "file", "blob-elsewhere", "--kind", "file").code == 0
    segments = set((root / "segments").iterdir())
    assert cli("put", tmp_path / "file", "loses-it", "--kind", "intermediate").code == 0
    assert set((root / "segments").iterdir()) - segments
    min(segments).unlink()
    remove_directory(root)
    assert names_of(cli("--json", "repair", "--rebuild-catalog", "--forget-lost").json["lost"]) == {"loses-it@1"}
    assert cli("--json", "ls").json["artifacts"] == []
    assert cli("verify").code == 0


def test_a_damaged_blob_takes_only_its_versions(tmp_path: Path, root: Path) -> None:
    before = everything(tmp_path)
    with Store(root) as store:
        found, manifest = store.show("a/one@3")
        [row] = store._parts.catalog.find_blobs(blob.digest for blob in manifest.blobs).values()
        assert found.summary.version == 3
    path = root / "segments" / f"{row.place.segment:016x}.seg"
    overwrite(path, b"\xff\x00\xff", row.place.offset + 5000)
    remove_directory(root)
    repaired = cli("--json", "repair", "--rebuild-catalog")
    assert names_of(repaired.json["lost"]) == {"a/one@3"}
    assert cli("get", "a/one@3", tmp_path / "out").code == 13
    assert cli("rm", "a/one@3").code == 0
    assert everything(tmp_path) == {k for k in before if (k.tenant, k.name, k.version) != ("default", "a/one", 3)}
    goes_on(tmp_path, root)


@pytest.mark.parametrize("harm", ["header", "foreign", "empty"])
def test_a_segment_that_is_none_of_ours_blocks_nothing(tmp_path: Path, root: Path, harm: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(30_000))
    before = everything(tmp_path)
    segments = set((root / "segments").iterdir())
    assert cli("put", tmp_path / "file", "lost", "--kind", "intermediate").code == 0
    [fresh] = set((root / "segments").iterdir()) - segments
    match harm:
        case "header":
            overwrite(fresh, b"\xff" * 16, 40)
        case "foreign":
            overwrite(fresh, min(segments).read_bytes()[:4096])
        case "empty":
            fresh.write_bytes(b"")
    content = fresh.read_bytes()
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    assert everything(tmp_path) == before
    # Its id is that of a file that is there, with bytes that may be wanted: it is not given again.
    put = cli("put", tmp_path / "file", "lost", "--kind", "intermediate")
    assert put.code == 0, put.err
    assert fresh.read_bytes() == content
    assert cli("get", "lost", tmp_path / "out").code == 0
    goes_on(tmp_path, root)


def test_a_segment_that_turns_up_again_is_taken_in(tmp_path: Path, root: Path) -> None:
    before = everything(tmp_path)
    [segment] = (root / "segments").iterdir()
    segment.rename(tmp_path / "elsewhere")
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    assert everything(tmp_path) == set()
    (tmp_path / "elsewhere").rename(segment)
    assert cli("repair", "--rebuild-catalog").code == 0
    assert everything(tmp_path) == before


def test_segment_ids_are_not_given_again(tmp_path: Path, root: Path) -> None:
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    there = {int(path.stem, 16) for path in (root / "segments").iterdir()}
    with Store(root) as store:
        assert store._parts.catalog.new_segment(1) > max(there)
