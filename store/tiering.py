"""Tiering: the tiers above the local store of one tenant, staged to, released, measured and planned for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .artifact import Artifact
from .disk import Disk
from .heal import heal
from .kv import Kv
from .names import Names
from .prefetch import Stage, Wanted, host_directory, open_host, stage, unstage, wanted_of
from .prefetch_device import DeviceStage, stage_device
from .progress import Progress
from .put import PutParts
from .scrub import Scrubbed
from .tiers.device import parse_device
from .tiers.host import HostTier, Resident
from .tiers.probe import Speeds, probe, read_speeds

if TYPE_CHECKING:
    from .planfile import Plan


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
    ) -> Stage | DeviceStage:  # fmt: skip
        """Stage artifacts up to the host or a device, each byte verified, and hold them."""
        if to == "host":
            return self.prefetch_host(names, budget_bytes, ttl_s, wait=wait, progress=progress)
        return stage_device(self._wanted(names), parse_device(to), budget_bytes, progress)

    def prefetch_host(
        self, names: Sequence[str], budget_bytes: int | None, ttl_s: float, *, wait: bool, progress: Progress
    ) -> Stage:  # fmt: skip
        """Stage artifacts in the host tier and hold them; they stay `ttl_s` seconds after, for any process.

        Raises NoRoom before anything moves. Of several, `staging.failed` says which could not be staged.
        """
        until_s = self.now().timestamp() + ttl_s if ttl_s else 0.0
        return stage(self.host(budget_bytes), self._wanted(names), until_s, wait=wait, progress=progress)

    def _wanted(self, names: Sequence[str]) -> list[Wanted]:
        found = {(one.summary.name, one.summary.version): one for one in map(self.get, dict.fromkeys(names))}
        return [wanted_of(artifact, self.kv) for artifact in found.values()]

    def unstage(self, names: Sequence[str] = ()) -> tuple[list[Resident], list[Resident]]:
        """Wipe what is staged of these names, or all; return what was wiped, and what is in use and stays."""
        return unstage(self.host(), self.names, names)

    def heal(self, scrubbed: Scrubbed, parts: PutParts) -> Scrubbed:
        """Store bad blobs anew from what is staged; see `heal`."""
        return (
            heal(parts, self.host(), scrubbed) if host_directory(self.store_id, self.tenant_id).is_dir() else scrubbed
        )

    def sweep(self) -> None:
        """Wipe staged copies that killed stagers left, or that are over time and nobody uses."""
        if host_directory(self.store_id, self.tenant_id).is_dir():
            self.host().sweep()

    def speeds(self) -> Speeds:
        """Return what was measured of the tiers last; empty where nothing was."""
        return read_speeds(self.root)

    def probe(self) -> Speeds:
        """Measure the tiers, and keep the result for the planner."""
        return probe(self.root, self.host().directory, self.now().strftime("%Y-%m-%dT%H:%M:%SZ"), self.disk)

    def plan(self, job: Path, *, order: str = "given", to: str | None = None) -> "Plan":
        """Return the staging plan of a JOB file; nothing moves. Tiers that were never measured are measured first."""
        from .planning import plan_job  # loaded where it is used, so that other commands start faster

        speeds = self.speeds() or self.probe()
        return plan_job(job, self.get, self.kv, self.host(), speeds, order=order, to=to)
