"""Tenants: none of them sees or opens what another has."""

import re
from pathlib import Path

import pytest

from arstore.formats.errors import FormatError
from arstore.formats.record import KIND_BLOB, KIND_VERSION
from arstore.store.access import create_store, open_store
from arstore.store.errors import BadInput, Corrupt, NotFound
from arstore.store.keys import keyring
from arstore.store.segments.records import OpenRecord
from tests.support.keyed import places, refused, root, source, works

__all__ = ["root", "source"]  # fixtures


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def two_tenants(request: pytest.FixtureRequest, root: Path, source: Path) -> Path:
    """A store in which `default` has the artifact `mine` and `second` has `theirs`, of the same content."""
    create_store(encrypted=request.param)
    with open_store() as store:
        store.tenants.add("second")
        store.put(source, name="mine")
    with open_store(tenant="second") as store:
        store.put(source, name="theirs")
    return root


def test_tenants_do_not_see_each_other(two_tenants: Path, tmp_path: Path) -> None:
    listed = {tenant: works("--tenant", tenant, "ls", "--json").json["artifacts"] for tenant in ("default", "second")}
    assert {tenant: [one["name"] for one in found] for tenant, found in listed.items()} == {
        "default": ["mine"], "second": ["theirs"],
    }  # fmt: skip
    [theirs] = listed["second"]
    for name in ("theirs", "theirs@1", theirs["id"], theirs["id"][:12]):
        for verb in ("show", "rm", "pin", "unpin", "verify"):
            refused(3, verb, name)
        refused(3, "get", name, tmp_path / "out")
        refused(3, "tag", name, "new")
    assert not (tmp_path / "out").exists()
    assert works("stats", "--json").json["artifacts"] == 1
    # A name is free for a tenant whatever others have, and what one drops the other keeps.
    works("--tenant", "second", "tag", "theirs", "mine")
    works("--tenant", "second", "rm", "mine")
    works("get", "mine", tmp_path / "out")


def test_an_unknown_tenant(two_tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "third" in refused(12, "--tenant", "third", "ls")
    monkeypatch.setenv("ARSTORE_TENANT", "third")
    refused(12, "ls")
    assert works("--tenant", "second", "ls", "--json").json["artifacts"][0]["name"] == "theirs"  # flags go first
    monkeypatch.setenv("ARSTORE_TENANT", "second")
    assert works("ls", "--json").json["artifacts"][0]["name"] == "theirs"


@pytest.mark.parametrize(
    "name",
    ["", "a b", "a/b", "../a", "a" * 129, "a\nb", "a\0b", ".", "..", ".a", "-a", "--json", "a\n", "\xe4",
     "default\u0430", "\uff41", "\u0661", "\u00b2", "\ud800"],
    ids=ascii,
)  # fmt: skip
def test_a_bad_name_for_a_tenant(root: Path, name: str) -> None:
    create_store()
    with open_store() as store, pytest.raises(BadInput, match="a name is ASCII letters"):
        store.tenants.add(name)


@pytest.mark.parametrize("name", ["..", "-a", "d\u0435fault"], ids=ascii)
def test_a_tenant_whose_name_was_allowed_before_opens_and_can_be_removed(
    root: Path, source: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store()
    with monkeypatch.context() as before, open_store() as store:
        before.setattr(keyring, "_TENANT_NAME", re.compile(".*"))
        store.tenants.add(name)
    works(f"--tenant={name}", "put", source, "theirs")
    works(f"--tenant={name}", "get", "theirs", tmp_path / "out")
    assert name in works("tenant", "ls").out
    refused(15, "tenant", "rm", "--", name)
    works("tenant", "rm", "--erase", "--", name)
    assert [one["name"] for one in works("tenant", "ls", "--json").json["tenants"]] == ["default"]


def test_a_tenant_is_made_once(two_tenants: Path) -> None:
    refused(15, "tenant", "add", "second")
    assert [one["name"] for one in works("tenant", "ls", "--json").json["tenants"]] == ["default", "second"]


def test_no_record_opens_under_another_tenants_keys(two_tenants: Path) -> None:
    with open_store() as mine, open_store(tenant="second") as theirs:
        encrypted = mine._parts.config.encrypted
        own, other = mine._parts.keys, theirs._parts.keys
        assert own.tenant.id != other.tenant.id
        assert len({own.tenant.digest_key, other.tenant.digest_key, own.tenant.index_key, other.tenant.index_key}) == 4
        keys = [{store._parts.keys.key(place) for place in places(store)} for store in (mine, theirs)]
        assert not encrypted or not keys[0] & keys[1]
        tried = 0
        for kind, found in ((KIND_BLOB, places(theirs)[:-1]), (KIND_VERSION, places(theirs)[-1:])):
            for place in found:
                digest = OpenRecord(theirs._parts.segments, other, place, kind).footer().digest
                OpenRecord(theirs._parts.segments, other, place, kind).check(digest)
                for keys_of in (own, type(own)(own.number, own.tenant, other.keyring, encrypted)):
                    with pytest.raises((FormatError, Corrupt)):
                        OpenRecord(mine._parts.segments, keys_of, place, kind).check(digest)
                    with pytest.raises((FormatError, Corrupt)):
                        OpenRecord(mine._parts.segments, keys_of, place, kind).read_all()
                # Their record keys, but named as mine: the frames are bound to the tenant.
                mixed = type(own)(other.number, own.tenant, other.keyring, encrypted)
                with pytest.raises(FormatError):
                    OpenRecord(mine._parts.segments, mixed, place, kind).read_all()
                tried += 1
        assert tried == 4


def test_one_tenants_catalog_rows_are_not_anothers(two_tenants: Path) -> None:
    with open_store() as mine, open_store(tenant="second") as theirs:
        digests = [blob.digest for blob in theirs.show("theirs")[1].blobs]
        assert len(theirs._parts.catalog.find_blobs(digests)) == len(digests)
        assert mine._parts.catalog.find_blobs(digests) == {}
        with pytest.raises(NotFound):
            mine.get("theirs")
