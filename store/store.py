"""Store: opens the parts and hands each verb what it needs. No logic of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..formats.digest import derive
from ..formats.errors import FormatError
from ..formats.identity import Identity, make_identity
from ..formats.keypage import Tenant
from ..formats.manifest import KINDS, Manifest
from .artifact import Artifact, ReadParts
from .catalog import Catalog
from .config import DEFAULT_TENANT, Config, default_store, default_tenant, read_config
from .disk import Disk, locked
from .errors import BadInput
from .get import Written, write_files, write_selected
from .init import CATALOG_DIR, KEYS_DIR, SEGMENTS_DIR, init_store, root_path
from .inputs import inputs_from_path, inputs_from_tensors
from .keyring import Keyring
from .names import Found, Names, parse_new_ref
from .progress import Progress
from .put import PutParts, Stored, Wish, commit_manifest, put_inputs
from .records import TenantKeys
from .recover import RecoverParts, recover_tails
from .scrub import Scrubbed, scrub
from .segments import LIFETIMES, SegmentReader, SegmentWriter
from .select import Selection
from .stats import Stats, gather_stats
from .unlock import Secrets, open_master

if TYPE_CHECKING:
    import torch

CODECS = ("auto", "stored", "zstd", "plane")


def _silent(advance_bytes: int, total_bytes: int) -> None:
    pass


class Store:
    """An opened store, seen as one tenant. Close it, or use it as a context manager. Threads may share it."""

    def __init__(
        self, root: Path, *, tenant: str = DEFAULT_TENANT, held: Secrets | None = None,
        ask: Callable[[], bytes | None] = lambda: None, disk: Disk | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        """Open the store at `root`; raise NoStore if there is none, KeyRefused if key or tenant do not open it."""
        self.root, self.config, self._now = root, read_config(root), now
        self._disk = disk or Disk()
        held = held or Secrets.from_environment()
        if held.key_file is None:
            held = replace(held, key_file=self.config.key_file)
        master = open_master(root / KEYS_DIR, held, self.config.store_id, ask, encrypted=self.config.encrypted)
        self._check_key = derive(master, "catalog rows")
        path = root_path(root, self.config)
        self._keyring = Keyring(root / KEYS_DIR, path, master, self.config.store_id, self._disk)
        try:
            number, record = self._keyring.tenant(tenant)
            self._keys = TenantKeys(number, record, self._keyring, self.config.encrypted)
            self._catalog = self._open_catalog(self._keys)
        except BaseException:
            self._keyring.close()
            raise
        self._segments = SegmentReader(root / SEGMENTS_DIR, self.config.store_id)
        self._names = Names(self._catalog, self._keys, self._segments)
        self._read = ReadParts(self._catalog, self._keys, self._segments)

    def close(self) -> None:
        self._segments.close()
        self._catalog.close()
        self._keyring.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- artifacts

    def put(
        self, path: str | Path | None = None, *, name: str, tensors: "Mapping[str, torch.Tensor] | None" = None,
        kind: str | None = None, identity: Mapping[str, object] | None = None, codec: str = "auto", pin: bool = False,
        opaque: Sequence[str] = (), progress: Progress = _silent,
    ) -> Stored:  # fmt: skip
        """Store a file, a directory or tensors as the newest version of `name`; durable on return.

        `kind` is weights, intermediate or file; left out it is weights where tensors are found. Files that match a
        glob in `opaque` are stored as bytes, unread. Raises BadInput, NotFound, Conflict, NoRoom, StorageFailed.
        """
        if (path is None) == (tensors is None):
            raise BadInput("put", "wanted a path or tensors, one of them")
        if kind not in (None, *KINDS) or kind == "kv":
            raise BadInput(f"kind {kind[:80]!r}", "is not known, wanted weights, intermediate or file")
        if codec not in CODECS:
            raise BadInput(f"codec {codec[:80]!r}", f"is not known, wanted one of {', '.join(CODECS)}")
        ref, fields = parse_new_ref(name), _identity(identity or {})
        if tensors is not None:
            inputs = inputs_from_tensors(tensors)
        else:
            inputs = inputs_from_path(Path(path or ""), opaque, look_inside=kind != "file")
        kind = kind or ("weights" if any(file.spans for file in inputs.files) else "file")
        self.recover()
        return put_inputs(self._put_parts(), inputs, Wish(ref, kind, fields, codec, pin), progress)

    def get(self, name: str) -> Artifact:
        """Return a stored version by ref or id; raise NotFound, or Corrupt if its record is bad."""
        found = self._names.resolve(name)
        return Artifact(self._read, found, self._names.manifest(found))

    def get_to(
        self, name: str, dest: str | Path, selection: Selection | None = None, progress: Progress = _silent
    ) -> tuple[Artifact, Written]:
        """Write a version's files, or one file of the selected tensors, to `dest`."""
        artifact, dest = self.get(name), Path(dest).absolute()
        if selection:
            return artifact, write_selected(artifact, dest, selection, self._disk, progress)
        return artifact, write_files(artifact, dest, self._disk, progress)

    def ls(self, glob: str | None = None, kind: str | None = None) -> list[Found]:
        """Return the versions whose names match a glob, by name and version."""
        return self._names.listed(glob, kind)

    def show(self, name: str) -> tuple[Found, Manifest]:
        """Return a version and what it consists of."""
        found = self._names.resolve(name)
        return found, self._names.manifest(found)

    def rm(self, name: str, *, all_versions: bool = False, dry_run: bool = False) -> list[Found]:
        """Drop a version, or all of a name; what nothing else needs becomes garbage, collected later."""
        return self._names.remove(name, all_versions=all_versions, dry_run=dry_run)

    def pin(self, name: str) -> Found:
        """Keep a version from collection."""
        return self._names.set_pinned(name, pinned=True)

    def unpin(self, name: str) -> Found:
        """Let a version be collected again once nothing names it."""
        return self._names.set_pinned(name, pinned=False)

    def tag(self, name: str, new: str) -> Stored:
        """Give a version a further name (or label: `name@label`), durably, without storing a blob."""
        found, manifest = self.show(name)
        wish = Wish(parse_new_ref(new), found.summary.kind, manifest.identity)
        return commit_manifest(self._put_parts(), manifest, wish)

    def verify(self, names: Sequence[str] = (), *, deep: bool = False, progress: Progress = _silent) -> Scrubbed:
        """Read back the named versions, or all, and check every byte; bad blobs are quarantined."""
        versions = [self._names.resolve(name) for name in names] if names else list(self._names.all())
        return scrub(self._read, self._names, versions, deep=deep, progress=progress)

    def stats(self) -> Stats:
        """Return this tenant's sizes."""
        return gather_stats(self.root, self._catalog, self._names, self._keys.tenant.quota_bytes)

    def recover(self) -> int:
        """Take in what killed writers left whole; return how many blobs that were. Every put does this first."""
        open_keys = lambda: {  # noqa: E731
            tenant.id: TenantKeys(number, tenant, self._keyring, self.config.encrypted)
            for number, tenant in self._keyring.tenants().items()
        }
        return recover_tails(
            RecoverParts(
                self.root / SEGMENTS_DIR,
                self.config.store_id,
                self._disk,
                self._catalog,
                open_keys,
                self._open_catalog,
            )
        )

    # ---- tenants

    @property
    def tenant(self) -> str:
        """The tenant that this store was opened as."""
        return self._keys.tenant.name

    def tenants(self) -> list[Tenant]:
        """Return every tenant of the store."""
        return list(self._keyring.tenants().values())

    def add_tenant(self, name: str, quota_bytes: int = 0) -> None:
        """Make a tenant with keys of its own; raise Conflict if the name is taken."""
        self._keyring.add_tenant(name, open_keys=not self.config.encrypted, quota_bytes=quota_bytes)

    def _open_catalog(self, keys: TenantKeys) -> Catalog:
        return Catalog(self.root / CATALOG_DIR, keys.number, keys.tenant.index_key, self._check_key)

    def _put_parts(self) -> PutParts:
        def open_writer(kind: str) -> SegmentWriter:
            directory = self.root / SEGMENTS_DIR
            return SegmentWriter(directory, self.config.store_id, LIFETIMES[kind], self._catalog, self._disk)

        return PutParts(self._catalog, self._keys, self._names, self._segments, open_writer, self._now)


def _identity(fields: Mapping[str, object]) -> Identity:
    try:
        return make_identity(fields)
    except FormatError as error:
        raise BadInput("identity", str(error)) from None


def create_store(
    path: str | Path | None = None, *, encrypted: bool = True, passphrase: bytes | None = None,
    key_file: str | Path | None = None, root_file: str | Path | None = None,
) -> Config:  # fmt: skip
    """Make a store at `path` (default: `$ARSTORE_STORE`) and return its settings, or those of the one that is there.

    Raises Conflict if a store of another kind is there, BadInput if the directory holds something else.
    """
    held = Secrets.from_environment()
    if key_file is not None:
        held = replace(held, key_file=Path(key_file))
    root = Path(path) if path is not None else default_store()
    root_file = Path(root_file) if root_file is not None else None
    disk = Disk()
    if not root.exists():
        disk.make_dirs(root)
    with locked(root):  # two at once would make one store with the keys of another
        return init_store(root, disk, held, encrypted=encrypted, passphrase=passphrase, root_file=root_file)


def open_store(
    path: str | Path | None = None, *, tenant: str | None = None, key_file: str | Path | None = None,
    passphrase: bytes | None = None, ask: Callable[[], bytes | None] = lambda: None,
) -> Store:  # fmt: skip
    """Open the store at `path` (default: `$ARSTORE_STORE`) as `tenant` (default: `$ARSTORE_TENANT`, or `default`).

    Secrets come from the arguments, then the environment, then the store's config. Raises NoStore, KeyRefused.
    """
    held = Secrets.from_environment()
    if key_file is not None:
        held = replace(held, key_file=Path(key_file))
    if passphrase is not None:
        held = replace(held, passphrase=passphrase)
    root = Path(path) if path is not None else default_store()
    return Store(root, tenant=tenant or default_tenant(), held=held, ask=ask)
