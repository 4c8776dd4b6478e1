"""Quota: a put that would exceed it is refused and leaves the store as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arstore.formats.keypage import PAGE_BYTES
from arstore.store.access import create_store, open_store
from arstore.store.errors import NoRoom
from tests.support.command import arstore
from tests.support.keyed import refused, root, segments, source, works

__all__ = ["root", "source"]  # fixtures


def test_a_full_quota_refuses_and_leaves_the_store_as_it_was(root: Path, source: Path, tmp_path: Path) -> None:
    works("init")
    works("tenant", "add", "small", "--quota", "100KiB")
    small = ("--tenant", "small")
    works(*small, "put", source, "m")

    def state() -> dict[str, Any]:
        stats = works(*small, "stats", "--json").json
        unsteady = ("seconds", "free_bytes", "disk_bytes")
        return {"ls": works(*small, "ls", "--json").json, **{k: v for k, v in stats.items() if k not in unsteady}}

    before, held = state(), sum(path.stat().st_size for path in segments(root))
    large = tmp_path / "large.bin"
    for length in (200_000, 100_000):  # more than the quota; and more than what is left of it
        large.write_bytes(np.random.default_rng(length).bytes(length))
        assert "quota" in refused(14, *small, "put", large, "large")
        assert state() == before
        assert sum(path.stat().st_size for path in segments(root)) <= held + PAGE_BYTES, "space was not given back"
    ran = arstore(*small, "put", large, "large", "--json")
    assert (ran.code, ran.json["error"]["kind"]) == (14, "no-room")
    refused(3, *small, "get", "large", tmp_path / "out")
    works(*small, "verify", "--deep")
    # What is there is still readable, what is stored already fits, and others are not concerned.
    works(*small, "get", "m", tmp_path / "out")
    assert works(*small, "put", source, "again", "--json").json["blobs_new"] == 0
    works("put", large, "large")
    works("verify", "--deep")


def test_versions_count_against_the_quota_too(root: Path, source: Path) -> None:
    """They bring no new blob, but each has a record."""
    quota_bytes = 64 << 10
    create_store()
    with open_store() as store:
        store.tenants.add("small", quota_bytes)
    with open_store(tenant="small") as store:
        store.put(source, name="m")
        with pytest.raises(NoRoom, match="quota"):
            [store.tag("m", f"m{number}") for number in range(40)]
        assert len(store.ls()) > 3
        assert store._parts.catalog.usage_bytes() <= quota_bytes
        assert store.verify().corrupt == ()


@pytest.mark.parametrize("quota", ["0", "-1", "many", "1e6", "10 parsecs"])
def test_a_quota_that_is_none(root: Path, quota: str) -> None:
    works("init")
    ran = arstore("tenant", "add", "t", "--quota", quota)
    assert ran.code == 2 or (quota == "0" and ran.code == 0)
