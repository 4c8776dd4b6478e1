"""Tiering: the tiers above the local store of one tenant, staged to, released, measured and planned for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .artifact import Artifact
from .disk import Disk
from .errors import BadInput
from .kv import Kv
from .names import Names
from .planfile import Plan
from .planning import plan_job
from .prefetch import Stage, open_host, stage, unstage, wanted_of
from .progress import Progress
from .tiers.host import HostTier, Resident
from .tiers.probe import Speeds, probe, read_speeds


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers of one tenant."""

    root: Path
    store_id: bytes
    tenant_id: bytes
    names: Names
    get: Callable[[str], Artifact]
    kv: Kv
    disk: Disk
    now: Callable[[], datetime]

    def host(self, budget_bytes: int | None = None) -> HostTier:
        """Return the host tier; without a budget it may hold half of its memory file system."""
        return open_host(self.store_id, self.tenant_id, budget_bytes, self.disk)

    def prefetch(
        self, names: Sequence[str], to: str, budget_bytes: int | None, ttl_s: float, *, wait: bool, progress: Progress
    ) -> Stage:  # fmt: skip
        """Stage artifacts up, each byte verified, and hold them; they stay `ttl_s` seconds after, for any process.

        Raises NoRoom before anything moves. Of several, `staging.failed` says which could not be staged.
        """
        if to != "host":
            raise BadInput(f"tier {to}", "can't be staged to, wanted host")
        wanted = [wanted_of(artifact, self.kv) for artifact in map(self.get, dict.fromkeys(names))]
        until_s = self.now().timestamp() + ttl_s if ttl_s else 0.0
        return stage(self.host(budget_bytes), wanted, until_s, wait=wait, progress=progress)

    def unstage(self, names: Sequence[str] = ()) -> tuple[list[Resident], list[Resident]]:
        """Wipe what is staged of these names, or all; return what was wiped, and what is in use and stays."""
        return unstage(self.host(), self.names, names)

    def speeds(self) -> Speeds:
        """Return what was measured of the tiers last; empty where nothing was."""
        return read_speeds(self.root)

    def probe(self) -> Speeds:
        """Measure the tiers, and keep the result for the planner."""
        return probe(self.root, self.host().directory, self.now().strftime("%Y-%m-%dT%H:%M:%SZ"), self.disk)

    def plan(self, job: Path, *, order: str = "given", to: str | None = None) -> Plan:
        """Return the staging plan of a JOB file; nothing moves. Tiers that were never measured are measured first."""
        speeds = self.speeds() or self.probe()
        return plan_job(job, self.get, self.kv, self.host(), speeds, order=order, to=to)
