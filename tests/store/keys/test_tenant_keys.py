"""Tenant keys: the key of a record, and the records that get none."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from arstore.formats.catalog import missing_place
from arstore.formats.record import AES_256_GCM, PLAIN
from arstore.store.config import Config
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt
from arstore.store.keys.keyring import Keyring, create_keyring
from arstore.store.keys.tenant_keys import TenantKeys, every_tenant
from tests.support.catalog_rows import place
from tests.support.keyed import MASTER, STORE_ID


@pytest.fixture
def keyring(tmp_path: Path) -> Iterator[Keyring]:
    create_keyring(tmp_path, tmp_path / "root", MASTER, STORE_ID, Disk())
    with closing(Keyring(tmp_path, tmp_path / "root", [MASTER], STORE_ID, Disk())) as keyring:
        keyring.add_tenant("team-a", open_keys=False)
        keyring.add_tenant("team-b", open_keys=False)
        yield keyring


def keys(keyring: Keyring, name: str, *, encrypted: bool = True) -> TenantKeys:
    number, tenant = keyring.tenant(name)
    return TenantKeys(number, tenant, keyring, encrypted)


def test_a_sealed_record_has_the_key_of_its_slot(keyring: Keyring) -> None:
    owner = keys(keyring, "team-b")
    [(slot, key)] = keyring.reserve(owner.number, 1)
    assert owner.key(replace(place(1, slot), protection=AES_256_GCM)) == key


def test_a_plain_record_has_no_key(keyring: Keyring) -> None:
    assert keys(keyring, "team-a", encrypted=False).key(replace(place(1, 0), protection=PLAIN)) is None


@pytest.mark.parametrize(("protection", "encrypted"), [(PLAIN, True), (AES_256_GCM, False)])
def test_a_record_that_is_protected_otherwise_than_its_store_is_refused(
    keyring: Keyring, protection: int, encrypted: bool
) -> None:
    owner = keys(keyring, "team-a", encrypted=encrypted)
    [(slot, _)] = keyring.reserve(owner.number, 1)
    with pytest.raises(Corrupt, match=r"segment 0{15}1 at byte 4096"):
        owner.key(replace(place(1, slot), protection=protection))


def test_a_record_that_no_segment_had_is_missing(keyring: Keyring) -> None:
    with pytest.raises(Corrupt, match="is missing"):
        keys(keyring, "team-a").key(missing_place(100))


def test_every_tenant_is_found_by_its_id(keyring: Keyring) -> None:
    config = Config(STORE_ID, encrypted=True)
    assert every_tenant(keyring, config) == {
        owner.tenant.id: owner for owner in (keys(keyring, "team-a"), keys(keyring, "team-b"))
    }
