"""The keyring: keys that come back, keys that are gone, and two openings of one tree."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from arstore.formats.keypage import LEAF_SLOTS
from arstore.store.disk import Disk
from arstore.store.errors import BadInput, Conflict, Corrupt, Fenced, KeyRefused, StorageFailed
from arstore.store.keys.keyring import Keyring, create_keyring
from tests.support.keyed import MASTER, STORE_ID

Opening = Callable[[], AbstractContextManager[Keyring]]


@pytest.fixture
def opening(tmp_path: Path) -> Opening:
    """Return what opens one key tree, as many times as it is called."""
    directory = tmp_path / "keys"
    directory.mkdir()
    create_keyring(directory, directory / "root", MASTER, STORE_ID, Disk())
    return lambda: closing(Keyring(directory, directory / "root", [MASTER], STORE_ID, Disk()))


@pytest.fixture
def keyring(opening: Opening) -> Iterator[Keyring]:
    with opening() as keyring:
        yield keyring


@pytest.fixture
def tenant(keyring: Keyring) -> int:
    return keyring.add_tenant("team-a", open_keys=False)


def test_reserved_keys_come_back_after_a_reopening(opening: Opening, keyring: Keyring, tenant: int) -> None:
    given = dict([*keyring.reserve(tenant, 3), *keyring.reserve(tenant, 2 * LEAF_SLOTS)])
    assert sorted(given) == list(range(1, 2 * LEAF_SLOTS + 4))
    assert len(set(given.values())) == len(given)
    with opening() as again:
        assert {slot: again.key(tenant, slot) for slot in again.slots(tenant)} == given


def test_destroyed_keys_are_gone_and_the_others_stay(opening: Opening, keyring: Keyring, tenant: int) -> None:
    given = dict(keyring.reserve(tenant, 2 * LEAF_SLOTS))
    assert keyring.key(tenant, 1) == given[1]  # its page is kept in memory from now on
    keyring.destroy({tenant: [1, LEAF_SLOTS, 10_000], 99: [1]})
    with opening() as again:
        for ring in (keyring, again):
            assert set(ring.slots(tenant)) == given.keys() - {1, LEAF_SLOTS}
            assert ring.key(tenant, 2) == given[2]
            with pytest.raises(Corrupt, match="the key is gone"):
                ring.key(tenant, 1)


def test_a_slot_is_not_given_twice_after_its_key_was_destroyed(keyring: Keyring, tenant: int) -> None:
    [(slot, _)] = keyring.reserve(tenant, 1)
    keyring.destroy({tenant: [slot]})
    assert [slot for slot, _ in keyring.reserve(tenant, 1)] == [slot + 1]


def test_another_opening_finds_keys_that_were_made_after_it_was_opened(opening: Opening, keyring: Keyring) -> None:
    with opening() as other:
        tenant = keyring.add_tenant("team-a", open_keys=False)
        [(slot, key)] = keyring.reserve(tenant, 1)
        assert other.key(tenant, slot) == key
        assert dict(other.reserve(tenant, 2)).keys() == {slot + 1, slot + 2}
        keyring.refresh()
        assert keyring.epoch == other.epoch == 4
        assert keyring.slots(tenant) == [slot, slot + 1, slot + 2]


def test_a_reader_goes_on_when_its_pages_were_used_again(opening: Opening, keyring: Keyring, tenant: int) -> None:
    given = dict(keyring.reserve(tenant, 1))
    with opening() as other:
        for _ in range(5):  # the first pages are written over
            given |= keyring.reserve(tenant, 1)
        assert other.slots(tenant) == sorted(given)
        assert other.tenant("team-a")[0] == tenant


def test_tenants_have_keys_of_their_own(keyring: Keyring) -> None:
    numbers = [keyring.add_tenant(name, open_keys=False, quota_bytes=5) for name in ("team-a", "team-b")]
    assert numbers == [0, 1]
    first, second = keyring.tenants().values()
    assert (first.name, second.name, first.quota_bytes) == ("team-a", "team-b", 5)
    assert len({first.digest_key, second.digest_key, first.index_key, second.index_key}) == 4
    assert first.id != second.id
    assert keyring.reserve(0, 1)[0][1] != keyring.reserve(1, 1)[0][1]


def test_open_keys_follow_from_store_and_name(tmp_path: Path, keyring: Keyring) -> None:
    keyring.add_tenant("team-a", open_keys=True)
    other = tmp_path / "other"
    other.mkdir()
    create_keyring(other, other / "root", bytes(32), STORE_ID, Disk())
    with closing(Keyring(other, other / "root", [bytes(32)], STORE_ID, Disk())) as ring:
        ring.add_tenant("team-a", open_keys=True)
        assert ring.tenant("team-a")[1] == keyring.tenant("team-a")[1]
        ring.add_tenant("team-b", open_keys=False)
        assert ring.tenant("team-b")[1].digest_key != ring.tenant("team-a")[1].digest_key


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ä" * 65, "x" * 129])
def test_a_bad_tenant_name_is_refused(keyring: Keyring, name: str) -> None:
    with pytest.raises(BadInput, match="at most 128 bytes"):
        keyring.add_tenant(name, open_keys=False)
    assert keyring.epoch == 1


def test_a_taken_name_is_a_conflict_and_changes_nothing(keyring: Keyring, tenant: int) -> None:
    before, epoch = keyring.tenants(), keyring.epoch
    with pytest.raises(Conflict, match="team-a"):
        keyring.add_tenant("team-a", open_keys=False)
    assert (keyring.tenants(), keyring.epoch) == (before, epoch)
    keyring.refresh()
    assert keyring.epoch == epoch


def test_a_removed_tenant_has_no_keys_and_its_number_is_not_given_again(keyring: Keyring, tenant: int) -> None:
    [(slot, _)] = keyring.reserve(tenant, 1)
    keyring.remove_tenant(tenant)
    with pytest.raises(KeyRefused, match="not known"):
        keyring.tenant("team-a")
    with pytest.raises(Corrupt, match="its tenant was removed"):
        keyring.key(tenant, slot)
    with pytest.raises(KeyRefused, match="was removed"):
        keyring.reserve(tenant, 1)
    assert keyring.add_tenant("team-a", open_keys=False) == tenant + 1


def test_after_a_rotation_the_old_master_key_reads_and_commits_nothing(opening: Opening, keyring: Keyring) -> None:
    with opening() as other:
        keyring.reseal(bytes([8]) * 32)
        assert keyring.master == bytes([8]) * 32
        for act in (other.refresh, lambda: other.add_tenant("team-b", open_keys=False)):
            with pytest.raises(KeyRefused, match="rotated meanwhile"):
                act()
    with pytest.raises(Corrupt, match="no root"), opening():
        pass
    keyring.refresh()


def test_alone_means_that_nobody_else_has_it_open(opening: Opening, keyring: Keyring) -> None:
    with opening(), pytest.raises(Fenced, match="is open"):
        keyring.own_alone()
    keyring.own_alone()
    with pytest.raises(Fenced, match="made anew"), opening():
        pass


def test_a_refused_opening_leaves_no_file_open(opening: Opening, keyring: Keyring) -> None:
    keyring.own_alone()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(Fenced), opening():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forked_child_commits_nothing(keyring: Keyring, tenant: int) -> None:
    child = os.fork()
    if not child:
        try:
            keyring.reserve(tenant, 1)
        except StorageFailed:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert keyring.slots(tenant) == []


def test_a_key_tree_that_is_there_is_left_as_it_is(tmp_path: Path, keyring: Keyring, tenant: int) -> None:
    keyring.reserve(tenant, 1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "keys").iterdir()}
    create_keyring(tmp_path / "keys", tmp_path / "keys" / "root", bytes(32), STORE_ID, Disk())
    assert {file.name: file.read_bytes() for file in (tmp_path / "keys").iterdir()} == before
