"""Erase: what was erased stays unreadable for whoever kept every version of every file and has the key file."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore import BadInput, Conflict, NotFound, Store
from arstore.store.maintenance.collect import AT_ONCE
from tests.support.command import arstore, cli
from tests.support.mortal_disk import Died, deaths
from tests.support.plunder import Recorder, Scene, canary, found, plunder

# ---- what the attacker kept


# ---- what the attacker does


# ---- the scene


@pytest.fixture(params=[True, False], ids=["root-outside", "root-inside"])
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return Scene(tmp_path / "store", tmp_path / "safe" / "R", outside=request.param)


@pytest.fixture
def outside(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "store", tmp_path / "safe" / "R")


@dataclass(frozen=True, slots=True)
class Prey:
    """A checkpoint full of canaries, and where it is stored."""

    source: Path
    name: str
    model: str
    canaries: tuple[str, ...]


def prey(tmp_path: Path, what: str, shared: bytes = b"") -> Prey:
    """Make a checkpoint directory in which content, tensor names and file names are canaries."""
    marks = {part: canary(f"{what}-{part}") for part in ("weights", "text", "tensor", "file", "name", "model", "label")}
    source = tmp_path / f"source-{what}"
    source.mkdir()
    noise = np.random.default_rng(len(what)).integers(0, 256, 5000, dtype=np.uint8)
    tensor = np.concatenate([noise, np.frombuffer(marks["weights"].encode(), np.uint8)])
    save_file({marks["tensor"]: tensor}, source / "model.safetensors")
    (source / marks["file"]).write_text(f"{marks['text']} " * 40)
    if shared:
        (source / "shared.bin").write_bytes(shared)
    return Prey(source, f"{marks['name']}@{marks['label']}", marks["model"], tuple(marks.values()))


def put(store: Store, one: Prey) -> list[str | bytes]:
    """Store a prey; return its canaries, its id and the digests of its blobs among them."""
    store.put(one.source, name=one.name, identity={"model": one.model})
    shown, manifest = store.show(one.name)
    digests = [blob.digest for blob in manifest.blobs]
    return [*one.canaries, shown.summary.id, *digests, *(digest.hex() for digest in digests)]


# ---- proof


def test_erased_is_gone_for_whoever_kept_everything(tmp_path: Path, scene: Scene) -> None:
    doomed, kept = prey(tmp_path, "doomed"), prey(tmp_path, "kept-one")
    with scene.open() as store:
        lost = put(store, doomed)
        stays = put(store, kept)
        name = doomed.name.partition("@")[0]
        (doomed.source / "more.txt").write_text(more := canary("second-version"))
        store.put(doomed.source, name=name)
        store.pin(name)
        store.get_to(name, tmp_path / "out")
        store.verify()
        store.gc(AT_ONCE)
    lost = [*lost, more]
    assert found(scene.now(), lost + stays) == set(lost + stays)
    with scene.open() as store:
        receipt = store.erase(name)
        assert len(receipt.versions) == 2
        assert receipt.keys_destroyed == receipt.blobs_erased + 2
        assert not found(scene.worst(), lost)
        with pytest.raises(NotFound):
            store.get(name)
        assert store.verify().corrupt == ()
    assert not found(scene.worst(), lost)
    assert found(scene.worst(), kept.canaries) == set(kept.canaries)
    # The test bites: had the old root not been effaced, or its content been kept, all of it would be there.
    assert found(scene.ever(old_roots=True), lost) == set(lost)
    with scene.open() as store:
        store.gc(AT_ONCE)
        store.get_to(kept.name, tmp_path / "kept")
        assert not found(scene.worst(), lost)
    assert sorted(p.read_bytes() for p in (tmp_path / "kept").iterdir()) == sorted(
        p.read_bytes() for p in kept.source.iterdir()
    )


def test_shared_blobs_stay_and_the_receipt_says_so(tmp_path: Path, scene: Scene) -> None:
    common = canary("common").encode()
    first, second = prey(tmp_path, "first", common), prey(tmp_path, "second-one", common)
    with scene.open() as store:
        put(store, first)
        put(store, second)
        foretold = store.erase(first.name, dry_run=True)
        receipt = store.erase(first.name)
        blobs = len(store.show(second.name)[1].blobs)
        assert (receipt.blobs_erased, receipt.blobs_shared) == (foretold.blobs_erased, foretold.blobs_shared)
        assert (receipt.blobs_erased, receipt.blobs_shared) == (blobs - 1, 1)
        store.get_to(second.name, tmp_path / "out")
        assert (tmp_path / "out" / "shared.bin").read_bytes() == common
        assert found(scene.worst(), [*first.canaries, common]) == {common}
        receipt = store.erase(second.name)
        assert (receipt.blobs_erased, receipt.blobs_shared) == (blobs, 0)
    assert not found(scene.worst(), [*second.canaries, common])


def test_dry_run_changes_nothing(tmp_path: Path, scene: Scene) -> None:
    one = prey(tmp_path, "one")
    with scene.open() as store:
        put(store, one)
        before = scene.now()
        receipt = store.erase(one.name, dry_run=True)
        assert scene.now() == before
        done = store.erase(one.name)
        assert (done.versions, done.keys_destroyed, done.freed_bytes) == (
            receipt.versions,
            receipt.keys_destroyed,
            receipt.freed_bytes,
        )
        assert receipt.keys_destroyed > 0


@pytest.mark.parametrize("chosen", ["", "@1", "@2", "@second"])
def test_a_name_is_every_version_and_a_version_is_one(tmp_path: Path, outside: Scene, chosen: str) -> None:
    marks = [canary("v1"), canary("v2"), canary("v3")]
    with outside.open() as store:
        for mark, label in zip(marks, ("", "@second", ""), strict=True):
            (tmp_path / "file").write_text(mark)
            store.put(tmp_path / "file", name=f"models/one{label}")
        gone = {"": {0, 1, 2}, "@1": {0}, "@2": {1}, "@second": {1}}[chosen]
        foretold = store.erase(f"models/one{chosen}", dry_run=True)
        receipt = store.erase(f"models/one{chosen}")
        assert receipt.versions == foretold.versions == tuple(f"models/one@{n + 1}" for n in sorted(gone))
        assert receipt.blobs_erased == foretold.blobs_erased == len(gone)
        assert [found.summary.version for found in store.ls()] == [n + 1 for n in range(3) if n not in gone]
    assert found(outside.worst(), marks) == {mark for n, mark in enumerate(marks) if n not in gone}


def test_a_version_erased_by_id_takes_no_other_with_it(tmp_path: Path, outside: Scene) -> None:
    one, other = prey(tmp_path, "one"), prey(tmp_path, "other-one")
    with outside.open() as store:
        put(store, one)
        put(store, other)
        receipt = store.erase(store.show(one.name)[0].summary.id[:12])
        assert receipt.versions == (f"{one.name.partition('@')[0]}@1",)
        assert [shown.summary.name for shown in store.ls()] == [other.name.partition("@")[0]]
    assert not found(outside.worst(), one.canaries)


# ---- copies that no row stands on


def test_a_bad_copy_that_was_replaced_is_erased_too(tmp_path: Path, scene: Scene) -> None:
    mark = canary("healed")
    (tmp_path / "file").write_text(mark * 200)
    with scene.open() as store:
        store.put(tmp_path / "file", name="bad", kind="file", codec="stored")
        place = next(iter(store._parts.catalog.all_blobs())).place
    segment = scene.root / "segments" / f"{place.segment:016x}.seg"
    with segment.open("r+b") as file:  # a byte of its padding: the record is refused, but every frame of it opens
        file.seek(place.offset + place.record_bytes - 1)
        file.write(b"\x01")
    with scene.open() as store:
        assert len(store.verify().corrupt) == 1
        store.put(tmp_path / "file", name="bad", kind="file", codec="stored")
        assert store.verify().corrupt == ()
        store.erase("bad")
    assert not found(scene.worst(), [mark])
    assert found(scene.ever(old_roots=True), [mark]) == {mark}


class Interposed(Recorder):
    """Does something of its own once, when the first segment is about to be synced."""

    def __init__(self, between: Callable[[], None], *watched: Path) -> None:
        super().__init__(*watched)
        self._between: Callable[[], None] | None = between

    def sync(self, fd: int) -> None:
        if self._between and os.readlink(f"/proc/self/fd/{fd}").endswith(".seg"):
            between, self._between = self._between, None
            between()
        super().sync(fd)


def test_the_copy_that_lost_a_race_is_erased_too(tmp_path: Path, outside: Scene) -> None:
    mark = canary("raced")
    (tmp_path / "file").write_text(mark)

    def other_put() -> None:
        with outside.open() as store:
            assert store.put(tmp_path / "file", name="winner").blobs_new == 1

    disk = Interposed(other_put, outside.root)
    with Store(outside.root, disk=disk) as store:
        store.put(tmp_path / "file", name="loser")
        copies = _copies(outside, mark)
        assert copies == 2
        assert store.erase("loser").blobs_shared == 1
        assert found(outside.worst(), [mark, "loser"]) == {mark}
        assert _copies(outside, mark) == 1  # the loser's own is gone already
        store.erase("winner")
    outside.disk.versions.update(disk.versions)
    assert not found(outside.worst(), [mark, "loser", "winner"])


def _copies(scene: Scene, mark: str) -> int:
    return sum(piece == mark.encode() for piece in plunder(scene.now()))


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

Store(Path(sys.argv[1]), disk=Kill()).put(Path(sys.argv[2]), name=sys.argv[3])
"""


def killed_put(scene: Scene, source: Path, name: str) -> None:
    """Put in a process that is killed after everything is on disk and before the commit."""
    command = [sys.executable, "-c", _KILLED_PUT, str(scene.root), str(source), name]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    scene.disk.look()


def test_what_a_killed_put_left_is_gone_after_gc(tmp_path: Path, scene: Scene) -> None:
    mark, name = canary("killed"), canary("killed-name")
    (tmp_path / "file").write_text(mark)
    killed_put(scene, tmp_path / "file", name)
    assert found(scene.now(), [mark, name]) == {mark, name}
    with scene.open() as store:
        assert store.ls() == []
        store.gc(AT_ONCE)
    assert not found(scene.worst(), [mark, name])
    assert found(scene.ever(old_roots=True), [mark, name]) == {mark, name}


def test_what_a_killed_put_left_of_an_erased_artifact_is_gone(tmp_path: Path, scene: Scene) -> None:
    mark, name = canary("killed"), canary("killed-name")
    (tmp_path / "file").write_text(mark)
    killed_put(scene, tmp_path / "file", name)
    with scene.open() as store:
        assert store.put(tmp_path / "file", name=name).blobs_reused == 1
        store.erase(name)
    assert not found(scene.worst(), [mark])
    with scene.open() as store:
        store.gc(AT_ONCE)
    assert not found(scene.worst(), [mark, name])


# ---- killed


def test_an_erase_that_is_killed_is_finished_at_the_next_open(tmp_path: Path, scene: Scene) -> None:
    doomed, kept = prey(tmp_path, "doomed"), prey(tmp_path, "kept-one")
    with scene.open() as store:
        put(store, kept)
        lost = put(store, doomed)
    saved, saved_root = tmp_path / "saved", tmp_path / "saved-root"
    shutil.copytree(scene.root, saved)
    if scene.outside:
        shutil.copy(scene.root_file, saved_root)
    deaths_seen = 0
    for disk in deaths():
        shutil.rmtree(scene.root)
        shutil.copytree(saved, scene.root)
        if scene.outside:
            shutil.copy(saved_root, scene.root_file)
        store = Store(scene.root, disk=disk)
        try:
            store.erase(doomed.name)
        except Died:
            deaths_seen += 1
        finally:
            store.close()
        with Store(scene.root) as store:
            assert not found(scene.now(), lost)
            assert [shown.summary.name for shown in store.ls()] == [kept.name.partition("@")[0]]
            assert store.verify().corrupt == ()
            assert store._parts.ledger.doomed() == {}
            assert not store._parts.ledger.doomed()
            with pytest.raises(NotFound):
                store.erase(doomed.name)
    assert deaths_seen >= 12  # pages, their sync, new root, its sync, old root effaced, its sync; each whole and torn


# ---- tenants


def test_erasing_a_tenant_takes_everything_of_it_at_once(tmp_path: Path, scene: Scene) -> None:
    theirs, ours = prey(tmp_path, "theirs"), prey(tmp_path, "ours-too")
    (theirs.source / "bulk").write_bytes(os.urandom(1 << 20))
    with scene.open() as store:
        kept = put(store, ours)
        store.tenants.add("guests")
    with scene.open("guests") as store:
        lost = put(store, theirs)
    assert found(scene.now(), [*lost, *kept]) == {*lost, *kept}
    with scene.open() as store:
        with pytest.raises(Conflict):
            store.tenants.remove("guests")
        with pytest.raises(BadInput):
            store.tenants.remove("default", erase=True)
        assert [shown.summary.name for shown in store.ls()] == [ours.name.partition("@")[0]]
        store.tenants.remove("guests", erase=True)
        assert not found(scene.worst(), lost)
        assert found(scene.worst(), kept) == set(kept)
        assert found(scene.ever(old_roots=True), lost) == set(lost)
        before = _allocated(scene.root)
        assert store.gc(AT_ONCE).freed_bytes > 1 << 20
        assert before - _allocated(scene.root) > 1 << 20
        assert [tenant.name for tenant in store.tenants.all()] == ["default"]
        assert store.verify().corrupt == ()
        store.tenants.add("guests")
    with scene.open("guests") as store:
        assert store.ls() == []


def test_a_tenant_erase_that_is_killed_is_finished_by_the_next(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "store", tmp_path / "R", outside=False)
    (tmp_path / "bulk").write_bytes(os.urandom(1 << 20))
    with scene.open() as store:
        store.put(tmp_path / "bulk", name="ours")
        store.tenants.add("guests")
    with scene.open("guests") as store:
        store.put(tmp_path / "bulk", name="theirs")
    saved = tmp_path / "saved"
    shutil.copytree(scene.root, saved)
    for disk in deaths():
        shutil.rmtree(scene.root)
        shutil.copytree(saved, scene.root)
        store = Store(scene.root, disk=disk)
        try:
            store.tenants.remove("guests", erase=True)
        except Died:
            pass
        finally:
            store.close()
        with Store(scene.root) as store:
            if "guests" in [tenant.name for tenant in store.tenants.all()]:
                store.tenants.remove("guests", erase=True)
            store.gc(AT_ONCE)
            assert len(list(store._parts.catalog.all_blobs())) == 1
            assert store._parts.garbage.survey().blobs == 1  # nothing of the tenant holds space
            assert [shown.summary.name for shown in store.ls()] == ["ours"]
            assert store.verify().corrupt == ()


def _allocated(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*.seg"))


# ---- commands


def test_commands(tmp_path: Path) -> None:
    one = prey(tmp_path, "one")
    assert cli("init").code == 0
    assert cli("put", one.source, one.name).code == 0
    foretold = cli("--json", "erase", one.name, "--dry-run").json
    receipt = cli("--json", "erase", one.name).json
    assert (foretold["dry_run"], receipt["dry_run"]) == (True, False)
    for same in ("blobs_erased", "blobs_shared"):
        assert receipt[same] == foretold[same]
    assert receipt["receipt"]["versions"] == foretold["receipt"]["versions"]
    assert receipt["blobs_erased"] > 0
    assert receipt["blobs_shared"] == 0
    assert cli("get", one.name, tmp_path / "out").code == 3
    assert cli("erase", one.name).code == 3
    assert not (tmp_path / "out").exists()
    again = cli("--json", "put", one.source, one.name).json
    assert again["blobs_reused"] == 0
    assert again["blobs_new"] == receipt["blobs_erased"]
    assert arstore("get", one.name, tmp_path / "out").code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in one.source.iterdir()}


def test_a_store_without_keys_refuses(tmp_path: Path) -> None:
    assert cli("init", "--no-encryption").code == 0
    (tmp_path / "file").write_text("plain")
    assert cli("put", tmp_path / "file", "plain").code == 0
    assert cli("erase", "plain").code == 2
    assert cli("erase", "plain", "--dry-run").code == 2
    assert cli("get", "plain", tmp_path / "out").code == 0


def test_tenant_commands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert cli("init").code == 0
    assert cli("tenant", "add", "guests").code == 0
    assert cli("--tenant", "guests", "put", tmp_path / "file", "one").code == 0
    assert cli("tenant", "rm", "guests").code == 15
    assert cli("--tenant", "guests", "tenant", "rm", "guests", "--erase").code == 2
    assert cli("tenant", "rm", "guests", "--erase").code == 0
    assert cli("--tenant", "guests", "ls").code == 12
    assert cli("tenant", "rm", "guests", "--erase").code == 12


def test_cost_grows_with_keys_and_not_with_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = Scene(tmp_path / "store", tmp_path / "R", outside=False)
    rng = np.random.default_rng(0)
    save_file({f"t{n}": rng.integers(0, 256, 64, dtype=np.uint8) for n in range(4000)}, tmp_path / "many.safetensors")
    with Store(scene.root) as store:
        store.put(tmp_path / "many.safetensors", name="many")
        needed = len(store.show("many")[1].blobs)
        started = time.perf_counter()
        receipt = store.erase("many")
        seconds = time.perf_counter() - started
    assert receipt.blobs_erased == needed >= 4000
    with capsys.disabled():
        print(f"\nerase of {needed} blobs: {1000 * seconds:.0f} ms")
