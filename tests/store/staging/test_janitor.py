"""The janitor wipes what its own command staged, and leaves what another process stages."""

import subprocess
import sys
from pathlib import Path

from arstore.store.disk import Disk
from arstore.store.tiers.filling import filling, partial_path
from tests.support.command import PATIENCE_S
from tests.support.staging import KEY, OTHER


def test_the_janitor_wipes_half_staged_objects_and_leaves_those_of_another_stager(tmp_path: Path) -> None:
    directory = tmp_path / "tenant"
    directory.mkdir()
    for key in (KEY, OTHER):
        partial_path(directory, key).write_bytes(b"secret")
    with partial_path(directory, KEY).open("rb") as file, filling(directory, OTHER, Disk(), wait=False):
        command = [sys.executable, "-m", "arstore.store.staging.janitor", str(directory / "session-1.json")]
        subprocess.run(command, input=f"{KEY}\n{OTHER}\n", text=True, check=True, timeout=PATIENCE_S)
        assert file.read() == bytes(6)
        assert [path.name for path in directory.glob("*.partial")] == [partial_path(directory, OTHER).name]
