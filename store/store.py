"""Store: the face. One method a verb, and each is one call: the parts of the open store, handed to the verb.

A verb is imported when it is called, so that opening a store to list names loads none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import DEFAULT_TENANT
from .disk import Disk
from .keys.unlock import Ask, Secrets
from .parts import open_parts
from .progress import Progress, TierProgress, ignore_progress, ignore_tiers

if TYPE_CHECKING:
    import torch

    from ..formats.manifest import Manifest
    from .artifacts.artifact import Artifact
    from .artifacts.commit import PutResult
    from .artifacts.get import Written
    from .artifacts.names import StoredVersion
    from .artifacts.select import Selection
    from .catalog.leases import HeldLease
    from .keys.rotate import Rekeying
    from .kv.kv import Kv
    from .kv.prefix import Prefix
    from .maintenance.collect import Collected, Margins
    from .maintenance.erase import Receipt
    from .maintenance.repair import Repaired
    from .maintenance.retention import Retention
    from .maintenance.scrub import Scrubbed
    from .maintenance.shred import Removed
    from .maintenance.stats import Stats
    from .maintenance.tenants import Tenants
    from .maintenance.why_miss import Miss
    from .staging.prefetch import Prefetched
    from .staging.tenant_tiers import Tiers


class Store:
    """An opened store, seen as one tenant. Close it, or use it as a context manager. Threads may share it."""

    def __init__(
        self, root: Path, *, tenant: str = DEFAULT_TENANT, held: Secrets | None = None,
        ask: Ask = lambda: None, disk: Disk | None = None, read_only: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Open the store at `root`; raise NoStore if there is none, KeyRefused if key or tenant do not open it."""
        held = held or Secrets.from_environment()
        self._parts = open_parts(root, tenant, held, ask, disk or Disk(), now, read_only=read_only)
        with ExitStack() as undo:
            undo.callback(self.close)
            if self._parts.ledger.doomed():  # an erase was killed, and it is finished before anything else
                from .maintenance.shred import finish_shred

                finish_shred(self._parts)
            undo.pop_all()

    def close(self) -> None:
        self._parts.closing.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ---- artifacts

    def put(
        self, path: str | Path | None = None, *, name: str, tensors: Mapping[str, torch.Tensor] | None = None,
        kind: str | None = None, identity: Mapping[str, object] | None = None, codec: str = "auto", pin: bool = False,
        opaque: Sequence[str] = (), multi_writer: bool = False, lock_wait_s: float = 0.0,
        progress: Progress = ignore_progress,
    ) -> PutResult:  # fmt: skip
        """Store a file, a directory or tensors as the newest version of `name`; durable on return.

        `kind` is weights, intermediate or file. Without it, files with tensors are weights. Files that match a glob in
        `opaque` are stored as bytes and not parsed. A directory of weights gives its own identity; fields in
        `identity` replace what it says. One writer owns a name at a time; with `multi_writer` several add versions to
        it at once, each whole. Raises Fenced if another writer owns the name for longer than `lock_wait_s`, Conflict
        if the label is taken, NoRoom if disk or quota is full, BadInput for what can't be stored.
        """
        from .artifacts.put import PutOptions, put

        options = PutOptions(kind, identity, codec, pin, opaque, multi_writer, lock_wait_s)
        return put(self._parts.put, path, tensors, name, options, progress)

    def identify(
        self, path: str | Path | None = None, *, tensors: Mapping[str, torch.Tensor] | None = None,
        opaque: Sequence[str] = (), progress: Progress = ignore_progress,
    ) -> dict[str, str]:  # fmt: skip
        """Return the identity of a model, as `put` of its directory records it, without storing anything.

        For tensors, and for a directory without a config.json, the identity is the field `weights` alone.
        """
        from .artifacts.inputs import take_inputs
        from .artifacts.model_identity import identify_inputs

        inputs = take_inputs(path, tensors, opaque, look_inside=True)
        return dict(identify_inputs(inputs, self._parts.keys.tenant.digest_key, opaque, progress))

    def get(self, name: str) -> Artifact:
        """Return a stored version by ref or id; raise NotFound, or Corrupt if its record is bad."""
        from .artifacts.artifact import open_artifact

        return open_artifact(self._parts.read, self._parts.names, name, self._parts.now_s)

    def get_to(
        self, name: str, dest: str | Path, selection: Selection | None = None, progress: Progress = ignore_progress
    ) -> tuple[Artifact, Written]:
        """Write a version's files, or one file of the selected tensors, to `dest`, or into it if it ends in a slash."""
        artifact = self.get(name)
        if artifact.manifest.shape:
            from .kv.export import write_kv as write
        else:
            from .artifacts.get import write_artifact as write
        return artifact, write(artifact, dest, selection, self._parts.outputs, progress)

    def ls(self, glob: str | None = None, kind: str | None = None) -> list[StoredVersion]:
        return self._parts.names.listed(glob, kind)

    def show(self, name: str) -> tuple[StoredVersion, Manifest]:
        """Return a version and what it consists of."""
        version = self._parts.names.resolve(name)
        return version, self._parts.names.manifest(version)

    def rm(self, name: str, *, all_versions: bool = False, dry_run: bool = False) -> Removed:
        """Drop a version, or all versions of a name. Blobs that nothing else needs become garbage for `gc`."""
        from .maintenance.shred import remove_for_good

        return remove_for_good(self._parts, name, all_versions=all_versions, dry_run=dry_run)

    def pin(self, name: str) -> StoredVersion:
        """Keep a version from collection."""
        return self._parts.names.set_pinned(name, pinned=True)

    def unpin(self, name: str) -> StoredVersion:
        return self._parts.names.set_pinned(name, pinned=False)

    def tag(self, name: str, new: str) -> PutResult:
        """Give a version a further name or label (`name@label`). No blob is stored. Durable on return."""
        from .artifacts.put import tag

        return tag(self._parts.put, self._parts.names.resolve(name), new)

    def verify(
        self, names: Sequence[str] = (), *, deep: bool = False, bytes_per_second: int | None = None,
        duration_s: int | None = None, progress: Progress = ignore_progress,
    ) -> Scrubbed:  # fmt: skip
        """Read back the named versions, or all, and check every byte.

        Bad blobs are healed from staged copies, or else put into quarantine. `deep` hashes plaintexts as well. Blobs
        that were checked longest ago come first, so if time runs out, the next verify goes on where this one ended.
        """
        from .maintenance.scrub import Pace
        from .maintenance.verify import verify

        return verify(self._parts, self.tiers, names, Pace(deep, bytes_per_second, duration_s), progress)

    def stats(self) -> Stats:
        """Return this tenant's sizes."""
        from .maintenance.stats import gather_stats

        return gather_stats(self._parts)

    def gc(
        self, margins: Margins | None = None, retention: Retention | None = None, *, dry_run: bool = False,
        lock_wait_s: float = 0.0,
    ) -> Collected:  # fmt: skip
        """Collect what nothing needs, in the whole store; `retention` first drops versions of this tenant.

        Without `margins` they are CAREFUL, and without `retention` no version is dropped. Puts and gets may run beside
        it, and it may be killed at any point. Raises Fenced if another collection is running.
        """
        from .maintenance.collect import CAREFUL, collect
        from .maintenance.retention import KEEP_ALL

        margins, retention, now_s = margins or CAREFUL, retention or KEEP_ALL, self._parts.now_s
        return collect(self._parts, margins, retention, now_s, dry_run=dry_run, lock_wait_s=lock_wait_s)

    def erase(self, name: str, *, dry_run: bool = False) -> Receipt:
        """Destroy the keys of a version, or of all versions of a bare name, and of blobs that only they need.

        Durable on return. Blobs that other artifacts of the tenant need stay. Raises NotFound, BadInput if the store is
        not encrypted, and Corrupt if their own record and one of another version are bad: then nobody knows what only
        these need.
        """
        from .maintenance.erase import erase

        return erase(self._parts, self.tiers, name, dry_run=dry_run)

    def repair(self, *, forget_lost: bool = False, dry_run: bool = False) -> Repaired:
        """Take in whole records of killed writers, count anew what versions need, and list what is lost.

        With `forget_lost`, versions that can't be opened leave the catalog. Durable on return.
        """
        from .maintenance.repair import mend

        return mend(self._parts, forget_lost=forget_lost, dry_run=dry_run)

    def recover(self) -> int:
        """Take in whole blobs of killed writers; return how many these were. Every put does this first."""
        return self._parts.recover()

    def leases(self) -> list[HeldLease]:
        return self._parts.leases.held()

    def break_lease(self, lease_id: str, *, dry_run: bool = False) -> HeldLease:
        """Take a lease from its owner, who can publish nothing under it afterwards. Raises NotFound."""
        return self._parts.leases.break_(lease_id, dry_run=dry_run)

    # ---- prefix KV

    @property
    def kv(self) -> Kv:
        """Prefix KV: put the KV of a sequence, find the longest stored prefix, read it."""
        from .kv.kv import Kv

        p = self._parts
        return Kv(p.put, p.read, p.names, p.outputs)

    def longest_prefix(self, tokens: Any, identity: Mapping[str, object]) -> Prefix:
        """Return the longest stored prefix of a sequence of token ids under an identity; see `Kv.longest_prefix`."""
        return self.kv.longest_prefix(tokens, identity)

    # ---- tiers

    @property
    def tiers(self) -> Tiers:
        """The tiers above the local store: stage, unstage, measure, plan, run."""
        from .staging.arenas import Arenas
        from .staging.tenant_tiers import Tiers

        p = self._parts
        arenas = Arenas(p.root, p.config.store_id, p.keys.tenant, p.disk, p.now)
        return Tiers(arenas, p.names, self.get, self.kv)

    def prefetch(
        self, names: Sequence[str], *, to: str = "host", budget_bytes: int | None = None, ttl_s: float = 0.0,
        from_: str | None = None, wait: bool = False, progress: TierProgress = ignore_tiers,
    ) -> Prefetched:  # fmt: skip
        """Copy artifacts up into a tier, verify each byte, and hold them there. See `Tiers.prefetch`."""
        from .staging.prefetch import StagingOptions

        return self.tiers.prefetch(names, to, budget_bytes, StagingOptions(ttl_s, from_, wait, progress))

    def why_miss(self, identity: Mapping[str, object], kind: str = "kv") -> Miss:
        """Return the fields in which an identity differs from the nearest stored one; raise NotFound if none is."""
        from .maintenance.why_miss import explain_miss

        return explain_miss(self._parts.names, kind, identity)

    # ---- keys and tenants

    @property
    def keys(self) -> Rekeying:
        """The ways into the store: add a passphrase, rotate the master key."""
        return self._parts.rekeying

    @property
    def tenants(self) -> Tenants:
        """The tenants of the store: list, add, remove."""
        from .maintenance.tenants import Tenants

        return Tenants(self._parts, self.tiers)

    @property
    def tenant(self) -> str:
        """The tenant that this store was opened as."""
        return self._parts.keys.tenant.name
