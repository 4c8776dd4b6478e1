"""Scrubbing: bad blobs found, named and healed; longest-ago first, cut short and gone on with, held to a rate."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from arstore import Corrupt, Store
from arstore.formats.catalog import LIVE, QUARANTINED, BlobRow
from arstore.store.maintenance import scrub as scrub_room
from arstore.store.maintenance.scrub import Scrubbed
from tests.support.command import cli


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path / "store"


def store_files(tmp_path: Path, count: int, size: int = 20_000) -> None:
    for number in range(count):
        (tmp_path / f"file{number}").write_bytes(os.urandom(size))
        assert cli("put", tmp_path / f"file{number}", f"file{number}").code == 0


def row_of(root: Path, name: str) -> BlobRow:
    """The row of an artifact's one blob."""
    with Store(root) as store:
        digests = [blob.digest for blob in store.show(name)[1].blobs]
        [row] = store._parts.catalog.find_blobs(digests).values()
    return row


def damage(root: Path, name: str, at: int = 5000) -> None:
    place = row_of(root, name).place
    with (root / "segments" / f"{place.segment:016x}.seg").open("r+b") as file:
        file.seek(place.offset + at)
        old = file.read(1)
        file.seek(place.offset + at)
        file.write(bytes([old[0] ^ 1]))


def at(root: Path, seconds: int) -> Store:
    """The store, opened at a moment."""
    return Store(root, now=lambda: datetime.fromtimestamp(seconds, UTC))


@pytest.mark.parametrize("deep", [False, True])
def test_a_bad_blob_is_found_named_and_healed(tmp_path: Path, root: Path, deep: bool) -> None:
    store_files(tmp_path, 3)
    assert cli("tag", "file1", "same-thing").code == 0
    flags = ["--deep"] if deep else []
    assert cli("--json", "verify", *flags).json["checked"] == 3 + 4
    damage(root, "file1")
    found = cli("--json", "verify", *flags)
    assert found.code == 13
    assert found.json["checked"] == 3 + 4
    [bad] = found.json["corrupt"]
    assert sorted(bad["artifacts"]) == ["file1@1", "same-thing@1"]
    assert f"segment {row_of(root, 'file1').place.segment:016x}" in bad["what"]
    assert "file1@1" in found.err
    assert row_of(root, "file1").state == QUARANTINED
    assert cli("get", "file1", tmp_path / "out").code == 13
    assert not (tmp_path / "out").exists()
    assert cli("get", "file0", tmp_path / "out").code == 0
    again = cli("--json", "put", tmp_path / "file1", "file1").json
    assert again["blobs_new"] == 1
    assert row_of(root, "file1").state == LIVE
    assert cli("get", "same-thing", tmp_path / "healed").code == 0  # the name that shares it is healed as well
    assert (tmp_path / "healed").read_bytes() == (tmp_path / "file1").read_bytes()
    assert cli("verify", *flags).code == 0


def test_only_what_is_named_is_checked(tmp_path: Path, root: Path) -> None:
    store_files(tmp_path, 2)
    damage(root, "file1")
    assert cli("--json", "verify", "file0").json["checked"] == 2
    assert cli("verify", "file0").code == 0
    assert cli("verify", "file0", "file1").code == 13
    assert cli("verify", "--all").code == 13
    assert cli("verify", "nothing").code == 3


def test_a_blob_that_reads_well_again_leaves_quarantine(tmp_path: Path, root: Path) -> None:
    store_files(tmp_path, 1)
    damage(root, "file0")
    assert cli("verify").code == 13
    damage(root, "file0")  # flipped back
    assert cli("get", "file0", tmp_path / "out").code == 13
    assert cli("verify").code == 0
    assert cli("get", "file0", tmp_path / "out").code == 0


def test_a_bad_version_record_is_named_and_the_rest_checked(tmp_path: Path, root: Path) -> None:
    store_files(tmp_path, 2)
    with Store(root) as store:
        place = store.show("file0")[0].row.place
    with (root / "segments" / f"{place.segment:016x}.seg").open("r+b") as file:
        file.seek(place.offset + 170)
        file.write(b"\xff\xff")
    found = cli("--json", "verify")
    assert found.code == 13
    assert [bad["artifacts"] for bad in found.json["corrupt"]] == [["file0@1"]]
    assert cli("verify", "file1").code == 0


def test_only_deep_finds_content_under_another_name(tmp_path: Path, root: Path) -> None:
    """A record that is whole and sealed by this store, whose footer names what its frames do not hold."""
    from arstore.formats.codec import Codec
    from arstore.formats.digest import digest_bytes
    from arstore.formats.record import KIND_BLOB
    from arstore.store.disk import make_buffer
    from arstore.store.segments.key_supply import SlotSupply
    from arstore.store.segments.records import draft_record
    from arstore.store.segments.writer import WRITE_BUFFER_BYTES

    (tmp_path / "file").write_bytes(right := os.urandom(20_000))
    with Store(root) as store:
        parts = store._parts
        slots = SlotSupply(parts.keyring, parts.ledger, parts.keys.number, encrypted=True)
        [(slot, key)] = slots.take(1)
        digest = digest_bytes(parts.keys.tenant.digest_key, right)
        wrong = memoryview(os.urandom(20_000))
        draft = draft_record(parts.keys, slot, key, KIND_BLOB, digest, wrong, Codec.STORED, 1 << 20)
        writer = parts.open_writer("file")
        extent = writer.reserve(draft.record_bytes).use(memoryview(make_buffer(WRITE_BUFFER_BYTES)))
        place = draft.seal_into(extent)
        extent.finish()
        parts.catalog.adopt({digest: place}, writer.sync())
        writer.close()
        slots.end_loan({slot})
    assert cli("--json", "put", tmp_path / "file", "one").json["blobs_reused"] == 1
    assert cli("verify").code == 0
    assert cli("verify", "--deep").code == 13
    assert cli("put", tmp_path / "file", "one").code == 0
    assert cli("verify", "--deep").code == 0


# ---- cut short


def test_no_time_checks_nothing_and_says_what_is_left(tmp_path: Path, root: Path) -> None:
    store_files(tmp_path, 3)
    damage(root, "file1")
    done = cli("--json", "verify", "--max-duration", "0s")
    assert done.code == 0
    assert done.json["left"] == 3
    assert done.json["checked_bytes"] == 0
    assert [row_of(root, f"file{n}").checked_s for n in range(3)] == [0, 0, 0]
    assert cli("--json", "verify").json["left"] == 0


def test_what_was_checked_longest_ago_comes_first(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scrub has time for one batch of one blob; which one follows from when each was last checked."""
    store_files(tmp_path, 4)
    monkeypatch.setattr(scrub_room, "_NOTE_BYTES", 1)  # a batch a blob
    moment = 1_000_000
    for name in ("file2", "file0", "file3", "file1"):
        with at(root, moment) as store:
            assert store.verify([name]).checked == 2
        moment += 100
    order = []
    for _ in range(8):
        with at(root, moment) as store:
            done = store.verify(bytes_per_second=17_000, duration_s=1)  # the second blob waits past the limit
        assert done.left == 2
        before = moment
        order += [name for name in map("file{}".format, range(4)) if row_of(root, name).checked_s == before]
        moment += 100
        if len(order) >= 4:
            break
    assert {*order[:2]} == {"file2", "file0"}
    assert {*order[2:4]} == {"file3", "file1"}


class Killed(BaseException):
    """The process is gone."""


def test_a_scrub_that_is_killed_is_gone_on_with(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_files(tmp_path, 4)
    monkeypatch.setattr(scrub_room, "_NOTE_BYTES", 1)
    seen = 0

    def die_at_the_third(_advance_bytes: int, _total_bytes: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise Killed

    with at(root, 1_000_000) as store, pytest.raises(Killed):
        store.verify(progress=die_at_the_third)
    done = [f"file{n}" for n in range(4) if row_of(root, f"file{n}").checked_s == 1_000_000]
    assert len(done) == 2
    order: list[float] = []
    with at(root, 2_000_000) as store:
        result = store.verify(duration_s=60, progress=lambda *_: order.append(time.monotonic()))
    assert result.left == 0
    assert len(order) == 4
    assert all(row_of(root, f"file{n}").checked_s == 2_000_000 for n in range(4))


def test_a_killed_scrub_leaves_the_rest_for_the_next(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_files(tmp_path, 3)
    monkeypatch.setattr(scrub_room, "_NOTE_BYTES", 1)

    def die(_advance_bytes: int, _total_bytes: int) -> None:
        raise Killed

    with at(root, 1_000_000) as store:
        store.verify(["file0", "file1"])
    damage(root, "file2")
    with at(root, 2_000_000) as store, pytest.raises(Killed):
        store.verify(progress=die)  # in the first batch: file2, which was never checked
    assert row_of(root, "file2").state == QUARANTINED
    assert [row_of(root, f"file{n}").checked_s for n in range(3)] == [1_000_000, 1_000_000, 0]


# ---- beside others


def erase(tmp_path: Path, root: Path) -> None:
    """The key goes, and the bytes, which this process could go on reading with a key that it knows."""
    assert cli("erase", "file1").code == 0
    assert cli("gc", "--grace", "0s").code == 0


def store_anew(tmp_path: Path, root: Path) -> None:
    """The copy that goes bad while its scrub is due is replaced by a good one."""
    damage(root, "file1")
    assert cli("get", "file1", tmp_path / "out").code == 13
    assert cli("put", tmp_path / "file1", "file1").code == 0


def move(tmp_path: Path, root: Path) -> None:
    """Collected, its place given back, and put again."""
    assert cli("rm", "file1").code == 0
    assert cli("gc", "--grace", "0s").code == 0
    assert cli("put", tmp_path / "file1", "file1").code == 0


Change = Callable[[Path, Path], None]


def scrub_in_order(root: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], *, after: int) -> Scrubbed:
    """Scrub file0, then file1; the change comes when the `after`-th of them has been read and not been noted yet."""
    monkeypatch.setattr(scrub_room, "_NOTE_BYTES", 1)
    with at(root, 1_000_000) as store:
        store.verify(["file1"])
    seen = 0

    def progress(_advance_bytes: int, _total_bytes: int) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            change()

    with at(root, 2_000_000) as store:
        done = store.verify(progress=progress)
    assert seen == 2
    assert row_of(root, "file0").checked_s == 2_000_000
    return done


@pytest.mark.parametrize("change", [erase, store_anew, move])
def test_what_is_gone_from_where_it_lay_is_no_finding(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    store_files(tmp_path, 2)
    place = row_of(root, "file1").place
    done = scrub_in_order(root, monkeypatch, lambda: change(tmp_path, root), after=1)
    assert (done.corrupt, done.left) == ((), 0)
    if change is not erase:
        row = row_of(root, "file1")
        assert row.place != place
        assert (row.state, row.checked_s) == (LIVE, 0)
        assert cli("get", "file1", tmp_path / "again").code == 0
    assert cli("verify").code == 0


def test_what_goes_bad_in_its_place_is_a_finding(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_files(tmp_path, 2)
    done = scrub_in_order(root, monkeypatch, lambda: damage(root, "file1"), after=1)
    assert [bad.artifacts for bad in done.corrupt] == [("file1@1",)]
    assert row_of(root, "file1").state == QUARANTINED


def test_only_the_place_that_was_read_is_called_good(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is collected and stored elsewhere before it is noted as good, and that is bad."""
    store_files(tmp_path, 2)

    def change() -> None:
        move(tmp_path, root)
        damage(root, "file1")
        assert cli("get", "file1", tmp_path / "out").code == 13

    assert scrub_in_order(root, monkeypatch, change, after=2).corrupt == ()
    row = row_of(root, "file1")
    assert (row.state, row.checked_s) == (QUARANTINED, 0)
    assert cli("verify").code == 13


@pytest.mark.parametrize("harm", ["quarantined", "missing"])
def test_a_bad_blob_gets_no_second_name(tmp_path: Path, root: Path, harm: str) -> None:
    store_files(tmp_path, 2)
    with Store(root) as store:
        [digest] = [blob.digest for blob in store.show("file0")[1].blobs]
        if harm == "missing":
            store._parts.tables.write(lambda rows: rows.delete("blobs", store._parts.catalog.keys.blob(digest)))
    if harm == "quarantined":
        damage(root, "file0")
        assert cli("get", "file0", tmp_path / "out").code == 13

    def stored() -> tuple[object, ...]:
        listed = cli("--json", "ls").json["artifacts"]
        segments = {path.name: path.read_bytes() for path in (root / "segments").iterdir()}
        return listed, segments, (root / "keys" / "root").read_bytes()

    before = stored()
    for new in ("second", "file1", "file0@label"):
        refused = cli("tag", "file0", new)
        assert refused.code == 13
        assert "missing or bad" in refused.error
        assert "put it again from its source" in refused.err
    assert stored() == before
    assert cli("tag", "file1", "second").code == 0
    assert cli("put", tmp_path / "file0", "file0").code == 0  # heals it
    assert cli("tag", "file0@1", "third").code == 0
    assert cli("verify").code == 0


# ---- rate


def test_the_rate_holds(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is ours: it moves only while the scrub sleeps."""
    store_files(tmp_path, 4, 100_000)
    slept = [0.0]

    def sleep(seconds: float) -> None:
        slept[0] += seconds

    monkeypatch.setattr(scrub_room, "time", SimpleNamespace(monotonic=lambda: slept[0], sleep=sleep))
    assert cli("verify", "--max-rate", "200kB").code == 0
    # 400 kB at 200 kB/s; the last blob is not waited for, having begun within the rate.
    assert 1.4 <= slept[0] <= 2
    slept[0] = 0.0
    assert cli("verify").code == 0
    assert slept[0] == 0


@pytest.mark.parametrize("rate", ["0", "0B", "-1", "fast"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, root: Path, rate: str) -> None:
    store_files(tmp_path, 2)
    assert cli("verify", f"--max-rate={rate}").code == 2


def test_an_erased_blob_is_no_finding(tmp_path: Path, root: Path) -> None:
    store_files(tmp_path, 2)
    assert cli("erase", "file0").code == 0
    assert cli("--json", "verify").json["checked"] == 2
    with Store(root) as store, pytest.raises(Corrupt):
        store._parts.keyring.key(0, 0)
