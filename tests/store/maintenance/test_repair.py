"""Repair: a catalog that is bad is refused, and rebuilt from the segments alone."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore import Store
from arstore.store.catalog.tables import Rows
from tests.support.command import cli
from tests.support.rebuilt import (
    TENANTS,
    empty,
    everything,
    fill,
    filled,
    garbage,
    goes_on,
    remove_directory,
    remove_file,
    root,
)

__all__ = ["filled", "root"]  # fixtures


def cut(root: Path) -> None:
    os.truncate(root / "catalog" / "data.mdb", 4096 * 3)


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


def test_a_catalog_file_that_is_short_and_whole_is_opened(tmp_path: Path, root: Path) -> None:
    """LMDB never writes pages that a transaction took and gave back: its file may end before its last page."""
    before = everything(tmp_path)
    with Store(root) as store:
        rng = random.Random(7)
        environment = store._parts.tables._environment.lmdb

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
