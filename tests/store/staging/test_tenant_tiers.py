"""The tiers of two tenants are apart, and who removes a tenant wipes what it had staged."""

import gc
import time
from pathlib import Path

import pytest

from arstore import NotFound, Store, open_store
from arstore.store.keys.keyring import Keyring
from tests.support.command import cli
from tests.support.staging import copy_of, extents, in_host, store, weights

__all__ = ["store"]  # fixtures


def test_copies_of_two_tenants_are_apart_and_removing_a_tenant_wipes_its_own(store: Store, host: Path) -> None:
    assert cli("tenant", "add", "other").code == 0
    store.put(tensors=weights(), name="m")
    assert cli("prefetch", "m").code == 0
    with open_store(tenant="other") as other:
        with pytest.raises(NotFound):
            other.prefetch(["m"])
        other.put(tensors=weights(), name="m")
        with in_host(other, ["m"]) as staged:
            assert staged.staging.staged[0].fresh  # the same bytes under the same name, and nothing shared
            assert len({path.parent for path in extents(host)}) == len({path.stem for path in extents(host)}) == 2
            assert cli("tenant", "rm", "other", "--erase").code == 11
            assert other.tiers.unstage(["m"]).in_use
        assert in_host(other, ["m"], ttl_s=60).staging.staged
    assert [one.name for one in store.tiers.arenas.host().residents()] == ["m@1"]
    gc.collect()
    assert cli("tenant", "rm", "other", "--erase").code == 0
    assert [path.stem for path in extents(host)] == [store.get("m").summary.id]


def test_removing_a_tenant_names_the_copies_staged_meanwhile(
    store: Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("tenant", "add", "other").code == 0
    with open_store(tenant="other") as other:
        other.put(tensors=weights(), name="m")
        (key, copy), arena, held = copy_of(other, "m"), other.tiers.arenas.host(), list[object]()
    real = Keyring.remove_tenant

    def remove(keyring: Keyring, number: int) -> None:
        held.append(arena.fill(key, copy, time.time() + 100))
        real(keyring, number)

    monkeypatch.setattr(Keyring, "remove_tenant", remove)
    ran = cli("--json", "tenant", "rm", "other", "--erase")
    assert ran.json["still_staged"] == ["m@1"]
    assert "not wiped" in ran.err
    assert extents(host) == []
