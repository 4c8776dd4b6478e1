"""Repair: a catalog that is gone or damaged is refused, never taken for an empty store, and made anew from segments."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from arstore import Corrupt, Store
from arstore.store.catalog.tables import Rows
from arstore.store.disk import Disk
from arstore.store.keys.opening import open_keyring
from arstore.store.keys.unlock import Secrets
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.repair import rebuild
from tests.support.command import arstore, cli
from tests.support.mortal_disk import Died, deaths

TENANTS = ("default", "guests")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a listing and a get give for one version."""

    tenant: str
    name: str
    version: int
    label: str | None
    id: str
    kind: str
    model: str | None
    length: int
    created: str
    content: bytes


def everything(tmp_path: Path) -> set[Kept]:
    """Read the whole store, through the command line."""
    found = set()
    for tenant in TENANTS:
        for shown in cli("--json", "--tenant", tenant, "ls").json["artifacts"]:
            out = tmp_path / "read-back"
            ref = f"{shown['name']}@{shown['version']}"
            assert cli("--tenant", tenant, "get", ref, out).code == 0
            content = out.read_bytes()
            out.unlink()
            label = cli("--json", "--tenant", tenant, "show", ref).json["label"]
            kept = Kept(
                tenant, shown["name"], shown["version"], label, shown["id"], shown["kind"], shown["model"],
                shown["bytes"], shown["created"], content,
            )  # fmt: skip
            found.add(kept)
    return found


def fill(tmp_path: Path, *init: str) -> Path:
    """Make a store of two tenants with several names, versions and labels, some of them gone again."""
    assert cli("init", *init).code == 0
    assert cli("tenant", "add", "guests").code == 0
    file = tmp_path / "file"
    for tenant in TENANTS:
        for name, content in (
            ("a/one", b"first " * 3000), ("a/one@v2", b"second " * 3000), ("a/one", os.urandom(50_000)),
            ("two", b"first " * 3000), ("gone", os.urandom(40_000)), ("removed", b"removed " * 3000),
        ):  # fmt: skip
            file.write_bytes(content)
            assert cli("--tenant", tenant, "put", file, name, "--model", "m1").code == 0
        if not init:
            assert cli("--tenant", tenant, "erase", "gone").code == 0
        assert cli("--tenant", tenant, "rm", "removed").code == 0
    return tmp_path / "store"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("filled")


@pytest.fixture
def root(tmp_path: Path, filled: Path) -> Path:
    """A store that is filled, the same for every test: made once, then copied with its keys."""
    if not (filled / "store").exists():
        fill(tmp_path)
        shutil.copytree(tmp_path, filled, dirs_exist_ok=True)
    else:
        shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return tmp_path / "store"


def overwrite(path: Path, content: bytes, at: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def remove_file(root: Path) -> None:
    (root / "catalog" / "data.mdb").unlink()


def remove_directory(root: Path) -> None:
    shutil.rmtree(root / "catalog")


def empty(root: Path) -> None:
    (root / "catalog" / "data.mdb").write_bytes(b"")


def cut(root: Path) -> None:
    os.truncate(root / "catalog" / "data.mdb", 4096 * 3)


def garbage(root: Path) -> None:
    size = (root / "catalog" / "data.mdb").stat().st_size
    (root / "catalog" / "data.mdb").write_bytes(random.Random(1).randbytes(size))


def damaged_rows(root: Path) -> None:
    """Damage everything but the two meta pages."""
    path = root / "catalog" / "data.mdb"
    content = bytearray(path.read_bytes())
    for at in range(2 * 4096 + 100, len(content), 61):
        content[at] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [remove_file, remove_directory, empty, cut, garbage, damaged_rows])
def test_a_bad_catalog_is_refused_and_rebuilt(tmp_path: Path, root: Path, harm: Callable[[Path], None]) -> None:
    before = everything(tmp_path)
    assert len(before) == 8
    harm(root)
    refused = cli("ls")
    assert refused.code == 13, refused.out
    assert "repair --rebuild-catalog" in refused.err
    (tmp_path / "file").write_text("new")
    assert cli("put", tmp_path / "file", "new").code == 13
    repaired = cli("--json", "repair", "--rebuild-catalog")
    assert repaired.code == 0, repaired.err
    assert repaired.json["lost"] == []
    assert repaired.json["recovered"] > 0
    assert everything(tmp_path) == before
    goes_on(tmp_path, root)


def goes_on(tmp_path: Path, root: Path) -> None:
    """Check that a store can be worked with: every verb, and no segment id given twice."""
    segments = {path.name: path.stat().st_ino for path in (root / "segments").iterdir()}
    before = {(kept.tenant, kept.name, kept.version): kept for kept in everything(tmp_path)}
    file = tmp_path / "file"
    for tenant in TENANTS:
        assert cli("--tenant", tenant, "verify", "--deep").code == 0
        file.write_bytes(b"later " * 5000)
        assert cli("--tenant", tenant, "put", file, "later").code == 0
        assert cli("--tenant", tenant, "put", file, "late-weights", "--kind", "intermediate").code == 0
    assert cli("gc", "--grace", "0s").code == 0
    assert cli("gc", "--grace", "0s").code == 0
    for path in (root / "segments").iterdir():
        assert path.stat().st_ino == segments.get(path.name, path.stat().st_ino)
    after = {(kept.tenant, kept.name, kept.version): kept for kept in everything(tmp_path)}
    assert {ref: kept for ref, kept in after.items() if not ref[1].startswith("late")} == before
    for tenant in TENANTS:
        assert cli("--tenant", tenant, "rm", "later").code == 0
        assert cli("--tenant", tenant, "rm", "late-weights").code == 0
        assert cli("--tenant", tenant, "verify", "--deep").code == 0


def test_a_catalog_file_that_is_short_and_whole_is_opened(tmp_path: Path, root: Path) -> None:
    """LMDB never writes pages that a transaction took and gave back: its file may end before its last page."""
    before = everything(tmp_path)
    with Store(root) as store:
        rng = random.Random(7)
        environment = store._parts.tables._env

        def come_and_go(found: Rows) -> None:
            rows = [rng.randbytes(24) for _ in range(rng.randrange(1, 400))]
            for row in rows:
                found.put("leases", row, bytes(200))
            for row in rows:
                found.delete("leases", row)

        for _ in range(60):
            store._parts.tables.write(come_and_go)
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if (root / "catalog" / "data.mdb").stat().st_size < needed:
                break
        else:
            pytest.fail("the file was never short")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_are_refused_or_harmless(tmp_path: Path, root: Path, seed: int) -> None:
    """A bit anywhere in the catalog: what is listed and read is right, or the exit code is 13, never a wrong answer."""
    before = everything(tmp_path)
    path, rng = root / "catalog" / "data.mdb", random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(40):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    listed = subprocess.run(
        [sys.executable, "-c", "from arstore.cli.main import main; main()", "--json", "ls"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert listed.returncode in (0, 13), (listed.returncode, listed.stderr)
    assert cli("repair", "--rebuild-catalog").code == 0
    assert everything(tmp_path) == before


def test_a_plain_store_is_rebuilt_too(tmp_path: Path) -> None:
    root = fill(tmp_path, "--no-encryption")
    before = everything(tmp_path)
    for tenant in TENANTS:  # without keys only space that was given back says that a version was removed
        assert cli("--tenant", tenant, "gc", "--grace", "0s").code == 0
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    assert everything(tmp_path) == before
    goes_on(tmp_path, root)


# ---- what is gone


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


# ---- killed


_KILLED_PUT = """
import os, sys
from pathlib import Path
from arstore import Store
from arstore.store.disk import Disk

class Kill(Disk):
    def sync(self, fd):
        super().sync(fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".seg"):
            os.kill(os.getpid(), 9)

Store(Path(sys.argv[1]), disk=Kill()).put(Path(sys.argv[2]), name=sys.argv[3], kind="file")
"""


def test_what_a_killed_put_left_is_taken_in_whole_or_not_at_all(tmp_path: Path, root: Path) -> None:
    before = everything(tmp_path)
    (tmp_path / "leftover").write_bytes(os.urandom(30_000))
    command = [sys.executable, "-c", _KILLED_PUT, str(root), str(tmp_path / "leftover"), "leftover"]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    # Its version record was whole and durable: it may come back, for then all of it does.
    after = everything(tmp_path)
    assert after - before == {kept for kept in after if kept.name == "leftover"}
    assert before <= after
    for kept in after - before:
        assert kept.content == (tmp_path / "leftover").read_bytes()
    goes_on(tmp_path, root)


def test_blobs_that_nothing_needs_are_collected_after_a_rebuild(tmp_path: Path, root: Path) -> None:
    remove_directory(root)
    assert cli("repair", "--rebuild-catalog").code == 0
    with Store(root) as store:
        unneeded = sum(not row.refs for row in store._parts.catalog.all_blobs())
        assert unneeded == 1  # of "removed", which was not collected before
        store.gc(AT_ONCE)
        assert all(row.refs for row in store._parts.catalog.all_blobs())
        assert store.verify().corrupt == ()


@pytest.mark.parametrize("harm", [remove_directory, garbage])
def test_a_rebuild_that_is_killed_is_finished_by_the_next(
    tmp_path: Path, root: Path, harm: Callable[[Path], None]
) -> None:
    before = everything(tmp_path)
    harm(root)
    saved = tmp_path / "saved"
    shutil.copytree(root, saved)
    count = 0
    for disk in deaths():
        shutil.rmtree(root)
        shutil.copytree(saved, root)
        with suppress(Died):
            rebuild(root, Secrets(), lambda: None, disk, lambda *_: None, forget_lost=False)
        count += not disk.alive
        if cli("ls").code:  # not there yet: said so, and done by the next
            assert cli("ls").code == 13
            assert rebuild(root, Secrets(), lambda: None, Disk(), lambda *_: None, forget_lost=False).lost == ()
        assert {one["name"] for one in cli("--json", "ls").json["artifacts"]} == {"a/one", "two"}
        assert not (root / "catalog.new").exists()
    assert count >= 8
    assert everything(tmp_path) == before


def test_a_whole_catalog_survives_a_rebuild_that_is_killed(tmp_path: Path, root: Path) -> None:
    before = everything(tmp_path)
    for disk in deaths():
        with suppress(Died):
            rebuild(root, Secrets(), lambda: None, disk, lambda *_: None, forget_lost=False)
        if cli("ls").code:
            rebuild(root, Secrets(), lambda: None, Disk(), lambda *_: None, forget_lost=False)
        assert cli("verify").code == 0
    assert everything(tmp_path) == before


def test_an_opened_store_is_never_made_empty(root: Path) -> None:
    for harm in (remove_file, remove_directory):
        if (root / "catalog").exists():
            harm(root)
        with pytest.raises(Corrupt, match="missing"):
            Store(root)
        assert not (root / "catalog" / "data.mdb").exists()


# ---- beside others

_OPEN = """
import sys
from arstore import open_store
with open_store() as store:
    print("opened", flush=True)
    sys.stdin.readline()
    store.put(sys.argv[1], name="kept")
"""


def test_a_rebuild_is_refused_while_the_store_is_open(tmp_path: Path, root: Path) -> None:
    """What a store that is open puts into the old catalog would be gone with it."""
    before, rows = everything(tmp_path), (root / "catalog" / "data.mdb").stat().st_ino
    command = [sys.executable, "-c", _OPEN, str(tmp_path / "file")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "opened\n"
    for _ in range(2):  # the first one that was refused left no lock
        refused = cli("repair", "--rebuild-catalog")
        assert refused.code == 11
        assert "open in another process" in refused.err
    process.communicate("\n", timeout=30)
    assert process.returncode == 0
    assert (root / "catalog" / "data.mdb").stat().st_ino == rows
    assert not (root / "catalog.new").exists()
    with Store(root):  # this process counts as another
        assert cli("repair", "--rebuild-catalog").code == 11
    assert cli("repair", "--rebuild-catalog").code == 0
    after = everything(tmp_path)
    assert {kept.name for kept in after - before} == {"kept"}
    assert before <= after


def test_nobody_opens_a_store_that_is_being_rebuilt(tmp_path: Path, root: Path) -> None:
    """Not while segments are read, and not between the old catalog's leaving and the new one's coming."""
    before, answers = everything(tmp_path), []

    class Watched(Disk):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            answers.append(arstore("put", tmp_path / "file", "lost"))

    def look(_advance_bytes: int, _total_bytes: int) -> None:
        if not answers:
            answers.extend([arstore("ls"), cli("ls"), arstore("repair", "--rebuild-catalog")])

    assert rebuild(root, Secrets(), lambda: None, Watched(), look, forget_lost=False).lost == ()
    assert [ran.code for ran in answers] == [11] * 5
    assert all("try again when that is done" in ran.err for ran in answers)
    assert everything(tmp_path) == before
    goes_on(tmp_path, root)


def test_repair_alone_takes_in_what_killed_writers_left(tmp_path: Path, root: Path) -> None:
    (tmp_path / "leftover").write_bytes(os.urandom(30_000))
    command = [sys.executable, "-c", _KILLED_PUT, str(root), str(tmp_path / "leftover"), "leftover"]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    for _ in range(2):
        assert cli("--json", "repair", "--dry-run").json["recovered"] == 1
    assert cli("--json", "repair").json["recovered"] == 1
    assert cli("--json", "repair").json["recovered"] == 0
    assert cli("--json", "put", tmp_path / "leftover", "leftover").json["blobs_reused"] == 1
    assert cli("repair", "--rebuild-catalog", "--dry-run").code == 2
