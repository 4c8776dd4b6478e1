"""Archivers: restic and borg as their manuals say to use them, encrypted, on a repository of their own."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .processes import Failed, Ran, run, tree_bytes

_PASSWORD = "a password for the benchmark"
_INSTALL = "not installed: apt-get install restic borgbackup"


@dataclass(frozen=True, slots=True)
class Archiver:
    """One tool on one repository; every command runs in the environment that `env` makes."""

    name: str
    repository: Path
    source: Path
    env: Mapping[str, str]
    init: tuple[str, ...]
    backup: tuple[str, ...]
    unlock: tuple[str, ...]
    reused: Callable[[str], int]  # bytes that were in the repository already, from what `backup` printed

    def make(self) -> None:
        """Make the repository, empty and encrypted; raise Failed if the tool is not here."""
        if not shutil.which(self.name):
            raise Failed(_INSTALL)
        run(self.init, self.env)

    def run(self) -> Ran:
        return run(self.backup, self.env)

    def size(self) -> int:
        return tree_bytes(self.repository)

    def break_lock(self) -> bool:
        """Remove what a killed backup left locked; return whether that was needed to go on."""
        locks = [*self.repository.glob("locks/*"), *self.repository.glob("lock.*")]
        if locks:
            run(self.unlock, self.env)
        return bool(locks)


def restic(folder: Path, source: Path, env: Mapping[str, str]) -> Archiver:
    repository = folder / "restic"
    command = ("restic", "--repo", str(repository), "--json")

    def reused(said: str) -> int:
        summary = json.loads(said.strip().splitlines()[-1])
        return int(summary["total_bytes_processed"]) - int(summary["data_added"])

    return Archiver(
        "restic",
        repository,
        source,
        {**env, "RESTIC_PASSWORD": _PASSWORD},
        (*command, "init"),
        (*command, "backup", str(source)),
        (*command, "unlock", "--remove-all"),
        reused,
    )


def borg(folder: Path, source: Path, env: Mapping[str, str]) -> Archiver:
    repository = folder / "borg"

    def reused(said: str) -> int:
        stats = json.loads(said)["archive"]["stats"]
        return int(stats["compressed_size"]) - int(stats["deduplicated_size"])

    return Archiver(
        "borg",
        repository,
        source,
        {**env, "BORG_PASSPHRASE": _PASSWORD, "BORG_BASE_DIR": str(folder)},
        ("borg", "init", "--encryption=repokey-blake2", str(repository)),
        ("borg", "create", "--json", f"{repository}::bench-{{now:%H%M%S}}-{os.getpid()}", str(source)),
        ("borg", "break-lock", str(repository)),
        reused,
    )


ARCHIVERS = (restic, borg)
