"""Store: opens the parts and hands each verb what it needs. No logic of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.keypage import Tenant
from ..formats.manifest import KINDS, Manifest
from .artifacts.artifact import Artifact
from .artifacts.get import Written, write_files, write_selected
from .artifacts.inputs import take_inputs
from .artifacts.model_identity import config_fields, identify_inputs
from .artifacts.names import Found
from .artifacts.put import PutParts, Stored, Wish, commit_manifest, put_inputs
from .artifacts.refs import parse_new_ref
from .artifacts.select import Selection
from .catalog.leases import Held
from .config import DEFAULT_TENANT
from .disk import Disk
from .errors import BadInput
from .keys.rotate import Rotated, add_passphrase, rotate
from .keys.unlock import Ask, Secrets
from .kv.identity import take_identity
from .kv.key_bounds import bounds_name
from .kv.kv import Kv
from .kv.prefix import Prefix
from .maintenance.collect import CAREFUL, Collected, CollectParts, Margins, collect
from .maintenance.erase import EraseParts, Receipt, erase, foretell, shred
from .maintenance.repair import Repaired, mend
from .maintenance.retention import KEEP_ALL, Retention
from .maintenance.scrub import Pace, Scrubbed, scrub
from .maintenance.stats import Holding, Stats, gather_stats
from .maintenance.tenants import remove_tenant
from .maintenance.why_miss import Miss, explain_miss
from .parts import open_parts
from .progress import Progress, TierProgress, ignore_tiers
from .segments.blobs import ReadParts
from .staging.prefetch import How, Stage
from .staging.tenant_tiers import Tiers

if TYPE_CHECKING:
    import torch

silent: Progress = lambda advance_bytes, total_bytes: None  # noqa: E731


class Store:
    """An opened store, seen as one tenant. Close it, or use it as a context manager. Threads may share it."""

    def __init__(
        self, root: Path, *, tenant: str = DEFAULT_TENANT, held: Secrets | None = None,
        ask: Ask = lambda: None, disk: Disk | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Open the store at `root`; raise NoStore if there is none, KeyRefused if key or tenant do not open it."""
        self._parts = open_parts(root, tenant, held or Secrets.from_environment(), ask, disk or Disk(), now)
        self._read = ReadParts(self._parts.catalog, self._parts.keys, self._parts.segments)
        with ExitStack() as undo:
            undo.callback(self.close)
            if self._parts.ledger.doomed():  # an erase was killed: what it promised is done before anything else
                shred(self._parts.directory, self._parts.keyring, self._parts.ledger)
            undo.pop_all()

    def close(self) -> None:
        self._parts.closing.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    # ---- artifacts

    def put(
        self, path: str | Path | None = None, *, name: str, tensors: "Mapping[str, torch.Tensor] | None" = None,
        kind: str | None = None, identity: Mapping[str, object] | None = None, codec: str = "auto", pin: bool = False,
        opaque: Sequence[str] = (), multi_writer: bool = False, lock_wait_s: float = 0.0, progress: Progress = silent,
    ) -> Stored:  # fmt: skip
        """Store a file, a directory or tensors as the newest version of `name`; durable on return.

        `kind` is weights, intermediate or file; left out it is weights where tensors are found. Files that match a
        glob in `opaque` are stored as bytes, unread. A directory of weights gives its own identity, as far as
        `identity` does not say otherwise. One writer at a time owns a name; with `multi_writer` several add
        versions to it at once, each whole. Raises Fenced if another owns it for longer than `lock_wait_s`, and more.
        """
        if kind not in (None, *KINDS) or kind == "kv":
            raise BadInput(f"kind {kind[:80]!r}", "is not known, wanted weights, intermediate or file")
        ref, fields = parse_new_ref(name), take_identity(identity or {})
        inputs = take_inputs(path, tensors, opaque, look_inside=kind != "file")
        kind = kind or ("weights" if any(file.spans for file in inputs.files) else "file")
        if kind == "weights":
            fields = take_identity({**config_fields(inputs, opaque), **dict(fields)})
        self._parts.recover()
        wish = Wish(ref, kind, fields, codec, pin, multi_writer, lock_wait_s)
        return put_inputs(self._put_parts(), inputs, wish, progress)

    def identify(
        self, path: str | Path | None = None, *, tensors: "Mapping[str, torch.Tensor] | None" = None,
        opaque: Sequence[str] = (), progress: Progress = silent,
    ) -> dict[str, str]:  # fmt: skip
        """Return the identity of a model, as `put` of its directory records it, without storing anything.

        Of tensors, and of a directory without a config.json, that is the field `weights` alone.
        """
        inputs = take_inputs(path, tensors, opaque, look_inside=True)
        return dict(identify_inputs(inputs, self._parts.keys.tenant.digest_key, opaque, progress))

    def get(self, name: str) -> Artifact:
        """Return a stored version by ref or id; raise NotFound, or Corrupt if its record is bad."""
        found = self._parts.names.resolve(name)
        self._parts.names.note_use(found, self._now_s())
        return Artifact(self._read, found, self._parts.names.manifest(found))

    def get_to(
        self, name: str, dest: str | Path, selection: Selection | None = None, progress: Progress = silent
    ) -> tuple[Artifact, Written]:
        """Write a version's files, or one file of the selected tensors, to `dest`; into it where it ends in a slash."""
        artifact, into = self.get(name), str(dest).endswith("/")
        dest = Path(dest).absolute()
        if into:
            self._parts.disk.make_dirs(dest, 0o777)
        if artifact.manifest.shape:
            return artifact, self.kv.write_named(artifact.summary, dest, selection, progress)
        if selection:
            return artifact, write_selected(artifact, dest, selection, self._parts.disk, progress)
        return artifact, write_files(artifact, dest, self._parts.disk, progress)

    def ls(self, glob: str | None = None, kind: str | None = None) -> list[Found]:
        return self._parts.names.listed(glob, kind)

    def show(self, name: str) -> tuple[Found, Manifest]:
        """Return a version and what it consists of."""
        found = self._parts.names.resolve(name)
        return found, self._parts.names.manifest(found)

    def rm(self, name: str, *, all_versions: bool = False, dry_run: bool = False) -> list[Found]:
        """Drop a version, or all of a name; what nothing else needs becomes garbage, collected later."""
        removed = self._parts.names.remove(name, all_versions=all_versions, dry_run=dry_run)
        if not dry_run:
            # Or a rebuilt catalog would have the names again.
            shred(self._parts.directory, self._parts.keyring, self._parts.ledger)
        return removed

    def pin(self, name: str) -> Found:
        """Keep a version from collection."""
        return self._parts.names.set_pinned(name, pinned=True)

    def unpin(self, name: str) -> Found:
        return self._parts.names.set_pinned(name, pinned=False)

    def tag(self, name: str, new: str) -> Stored:
        """Give a version a further name (or label: `name@label`), durably, without storing a blob."""
        found, manifest = self.show(name)
        wish = Wish(parse_new_ref(new), found.summary.kind, manifest.identity)
        return commit_manifest(self._put_parts(), manifest, wish)

    def verify(
        self, names: Sequence[str] = (), *, deep: bool = False, bytes_per_second: int | None = None,
        duration_s: int | None = None, progress: Progress = silent,
    ) -> Scrubbed:  # fmt: skip
        """Read back the named versions, or all, and check every byte; bad blobs are quarantined, or healed from copies
        that are staged. `deep` hashes plaintexts as well. What was checked longest ago comes first, so that a verify
        which time cuts short is gone on with by the next.
        """
        versions = [self._parts.names.resolve(name) for name in names] if names else None
        pace = Pace(deep, bytes_per_second, duration_s)
        found = scrub(self._read, self._parts.names, versions, pace, self._now_s(), progress)
        return self.tiers.heal(found, self._put_parts()) if found.corrupt else found

    def stats(self) -> Stats:
        """Return this tenant's sizes."""
        p = self._parts
        return gather_stats(p.root, p.catalog, p.names, p.keys.tenant.quota_bytes)

    def gc(
        self, margins: Margins = CAREFUL, retention: Retention = KEEP_ALL, *, dry_run: bool = False,
        lock_wait_s: float = 0.0,
    ) -> Collected:  # fmt: skip
        """Collect what nothing needs, in the whole store; `retention` first drops versions of this tenant.

        Safe beside puts and gets, and to be killed at any point. Raises Fenced if another collection is running.
        """
        p = self._parts
        parts = CollectParts(p.directory, p.disk, p.garbage, p.ledger, p.keyring, p.leases, p.names, p.recover)
        return collect(parts, margins, retention, self._now_s(), dry_run=dry_run, lock_wait_s=lock_wait_s)

    def erase(self, name: str, *, dry_run: bool = False) -> Receipt:
        """Erase a version, or every version of a name given without one, by destroying their keys; durable on return.

        Blobs that other artifacts of the tenant need stay. Raises NotFound, BadInput if the store is not encrypted,
        Corrupt if a record of these and one of other versions are bad, so that nobody can say what only these need.
        """
        p = self._parts
        if not p.config.encrypted:
            raise BadInput(str(p.root), "the store is not encrypted, so there are no keys to destroy")
        doomed = p.names.addressed(name, all_versions=True)
        if "@" not in name and any(found.summary.kind == "kv" for found in doomed):
            doomed += p.names.versions(bounds_name(name))  # minimum and maximum of the very keys
        parts = EraseParts(
            p.directory, p.names, p.catalog, p.keyring, p.ledger, p.garbage, p.marks, p.recover,
            partial(self.tiers.forget, p.keys.tenant),
            p.config.root_file is not None,
        )  # fmt: skip
        return foretell(parts, doomed) if dry_run else erase(parts, doomed)

    def repair(self, *, forget_lost: bool = False, dry_run: bool = False) -> Repaired:
        """Take in what killed writers left, count anew what versions need, and list what can't be had back.

        With `forget_lost` versions that can't be opened leave the catalog. Durable on return.
        """
        p = self._parts
        return mend(p.names, p.catalog, p.recover(dry_run=dry_run), forget_lost=forget_lost, dry_run=dry_run)

    def recover(self) -> int:
        """Take in what killed writers left whole; return how many blobs that were. Every put does this first."""
        return self._parts.recover()

    def leases(self) -> list[Held]:
        return self._parts.leases.held()

    def break_lease(self, lease_id: str, *, dry_run: bool = False) -> Held:
        """Take a lease from its owner, who can publish nothing under it any more; raise NotFound if there is none."""
        return self._parts.leases.break_(lease_id, dry_run=dry_run)

    # ---- prefix KV

    @property
    def kv(self) -> Kv:
        """The KV of sequences: put, find and read prefixes."""
        p = self._parts
        return Kv(self._put_parts(), self._read, p.names, p.disk, p.recover)

    def longest_prefix(self, tokens: Any, identity: Mapping[str, object]) -> Prefix:
        """Return the longest stored prefix of a sequence of token ids under an identity; see `Kv.longest_prefix`."""
        return self.kv.longest_prefix(tokens, identity)

    # ---- tiers

    @property
    def tiers(self) -> Tiers:
        """The tiers above the local store: staged to, released, measured, planned for."""
        p = self._parts
        return Tiers(p.root, p.config.store_id, p.keys.tenant, p.names, self.get, self.kv, p.disk, p.now)

    def prefetch(
        self, names: Sequence[str], *, to: str = "host", budget_bytes: int | None = None, ttl_s: float = 0.0,
        from_: str | None = None, wait: bool = False, progress: TierProgress = ignore_tiers,
    ) -> Stage:  # fmt: skip
        """Stage artifacts up, each byte verified, and hold them; see `Tiers.prefetch`."""
        return self.tiers.prefetch(names, to, budget_bytes, How(ttl_s, from_, wait, progress))

    def why_miss(self, identity: Mapping[str, object], kind: str = "kv") -> Miss:
        """Return the fields that tell an identity from the nearest stored one; raise NotFound if none is stored."""
        return explain_miss(self._parts.names, kind, identity)

    # ---- keys and tenants

    def add_passphrase(self, passphrase: bytes) -> None:
        """Let a passphrase open the store as well, durably; raise BadInput if it is too short."""
        add_passphrase(self._parts.rekeying, passphrase)

    def rotate_key(self, key_file: Path | None = None, *, drop_others: bool = False, dry_run: bool = False) -> Rotated:
        """Give the store a new master key and key file, durably. The old one opens nothing then.

        Raises BadInput if a passphrase or command opens the store too and is not given, unless `drop_others`.
        """
        return rotate(self._parts.rekeying, key_file, drop_others=drop_others, dry_run=dry_run)

    @property
    def tenant(self) -> str:
        """The tenant that this store was opened as."""
        return self._parts.keys.tenant.name

    def tenants(self) -> list[Tenant]:
        return list(self._parts.keyring.tenants().values())

    def add_tenant(self, name: str, quota_bytes: int = 0) -> None:
        """Make a tenant with keys of its own; raise Conflict if the name is taken."""
        self._parts.keyring.add_tenant(name, open_keys=not self._parts.config.encrypted, quota_bytes=quota_bytes)

    def remove_tenant(self, name: str, *, erase: bool = False, dry_run: bool = False) -> Holding:
        """Remove a tenant; with `erase` its artifacts too, by destroying every key of it at once. Durable on return.

        Raises Conflict if it has artifacts and `erase` is not given, BadInput for the tenant the store is opened as.
        """
        p = self._parts
        forget = partial(self.tiers.forget, keys=None)
        return remove_tenant(p.tables, p.garbage, p.keyring, p.keys.number, name, forget, erase=erase, dry_run=dry_run)

    def _now_s(self) -> int:
        return int(self._parts.now().timestamp())

    def _put_parts(self) -> PutParts:
        p = self._parts
        return PutParts(p.catalog, p.keys, p.names, p.segments, p.ledger, p.leases, p.open_writer, p.now)
