"""What was published is wiped by unstage, erase and the removal of its tenant, or said to be left."""

from pathlib import Path

import pytest

from arstore import Store, open_store
from tests.support.command import cli
from tests.support.published import came_from, gone, lying, memory, published, put, store

__all__ = ["memory", "store"]  # fixtures

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no memory file system here")


def test_unstage_wipes_both_tiers(store: Store, tmp_path: Path, memory: Path) -> None:
    for name in "mn":
        published(store, tmp_path, name)
        assert cli("prefetch", name).code == 0
    files = [
        path.open("rb") for path in lying(memory) + lying(memory, "host") if path.stem == store.get("m").summary.id
    ]
    ran = cli("--json", "unstage", "m")
    assert ran.code == 0
    assert {(one["name"], one["tier"]) for one in ran.json["unstaged"]} == {("m@1", "host"), ("m@1", "shared")}
    for file in files:
        assert not any(file.read())
        file.close()
    assert len(files) == 2
    assert len(lying(memory)) == len(lying(memory, "host")) == 1
    with store.prefetch(["n"], to="shared"):
        ran = cli("--json", "unstage", "--all")
        assert (ran.code, ran.json["in_use"]) == (4, ["n@1"])
    assert cli("unstage", "--all").code == 0
    assert lying(memory) == lying(memory, "host") == []


def test_published_copies_that_can_not_be_wiped_are_named(
    store: Store, tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = published(store, tmp_path)
    store.prefetch(["m"], ttl_s=60).release()
    gone(memory, monkeypatch)
    ran = cli("--json", "unstage", "--all")
    assert ran.code == 4
    assert [one["tier"] for one in ran.json["unstaged"]] == ["host"]
    assert [one["tier"] for one in ran.json["degraded"]] == ["shared"]
    assert "warning: without tier shared" in ran.err
    store.tenants.add("other")
    for words in (["erase", "m"], ["tenant", "rm", "other", "--erase"]):
        ran = cli(*words)
        assert ran.code == 1
        assert "arstore: hint: " in ran.err
        assert "ARSTORE_SHARED_DIR" in ran.err
    assert cli("get", "m", tmp_path / "out").code == 0
    assert (tmp_path / "out/f").read_bytes() == content
    assert "other" in [one.name for one in store.tenants.all()]


def test_erase_wipes_the_published_copy(store: Store, tmp_path: Path, memory: Path) -> None:
    for name in "mn":
        published(store, tmp_path, name)
    key = store.get("m").summary.id
    [extent] = [path for path in lying(memory) if path.stem == key]
    with store.prefetch(["m"], to="shared"):
        assert cli("erase", "m").code == 11
        assert cli("get", "m", tmp_path / "out").code == 0
    with extent.open("rb") as file:
        assert cli("erase", "m").code == 0
        assert not any(file.read())
    assert [path.stem for path in lying(memory)] == [store.get("n").summary.id]


def test_removing_a_tenant_wipes_its_published_copies(store: Store, tmp_path: Path, memory: Path) -> None:
    published(store, tmp_path)
    store.tenants.add("other")
    with open_store(tenant="other") as other:
        put(other, tmp_path, "n")
        other.prefetch(["n"], to="shared", ttl_s=60).release()
    [extent] = [path for path in lying(memory) if path.stem != store.get("m").summary.id]
    with extent.open("rb") as file:
        assert cli("tenant", "rm", "other", "--erase").code == 0
        assert not any(file.read())
    assert [path.stem for path in lying(memory)] == [store.get("m").summary.id]


def test_tenants_are_apart_in_the_shared_tier(store: Store, tmp_path: Path, memory: Path) -> None:
    content = put(store, tmp_path)
    store.tenants.add("other")
    with open_store(tenant="other") as other:
        other.put(tmp_path / "of-m", name="m", kind="file")
        other.prefetch(["m"], to="shared", ttl_s=60).release()
        assert came_from(cli("--json", "prefetch", "m")) == ["local"], "the same bytes by the same name"
        assert cli("unstage", "--all").code == 0
        [theirs] = lying(memory)
        published_ = store.tiers.arenas.shared()
        assert published_
        mine = published_.directory / f"{store.get('m').summary.id}.extent"
        mine.write_bytes(theirs.read_bytes())  # whoever may write there still can't sign for another tenant
        with store.prefetch(["m"]) as staged:
            assert staged.staging.staged[0].source == "local"
            assert bytes(staged["m"].files["f"]) == content
        assert not mine.exists()
        assert theirs.exists()
