"""Access: makes a store, opens one, or makes its catalog anew, by arguments and environment."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config, default_store, default_tenant
from .disk import Disk
from .errors import BadInput
from .keys.unlock import Ask, Secrets
from .locks import locked
from .progress import Progress, ignore_progress
from .store import Store

if TYPE_CHECKING:
    from .maintenance.repair import Repaired


def rebuild_catalog(
    path: str | Path | None = None,
    *,
    key_file: str | Path | None = None,
    passphrase: bytes | None = None,
    ask: Ask = lambda: None,
    forget_lost: bool = False,
    progress: Progress = ignore_progress,
) -> "Repaired":
    """Make the catalog of the store at `path` anew from its segments. Nobody else may use the store meanwhile.

    Pins and times of use are not in segments, so they are lost. If this is killed, run it again. The store then has the
    old catalog or the new one. Between two renames it has none: the old one lies in `catalog.old`, the new one in
    `catalog.new`, and opening the store fails until the catalog is rebuilt.
    """
    from .maintenance.repair import rebuild

    root = Path(path) if path is not None else default_store()
    return rebuild(root, _held(key_file, passphrase), ask, Disk(), progress, forget_lost=forget_lost)


def _held(key_file: str | Path | None, passphrase: bytes | None) -> Secrets:
    """Return the caller's secrets: arguments before environment."""
    held = Secrets.from_environment()
    return replace(held, key_file=Path(key_file) if key_file is not None else held.key_file, passphrase=passphrase)


def create_store(
    path: str | Path | None = None,
    *,
    encrypted: bool = True,
    passphrase: bytes | None = None,
    key_file: str | Path | None = None,
    root_file: str | Path | None = None,
) -> Config:
    """Make a store at `path` (default: `$ARSTORE_STORE`) and return its settings, or those of the one that is there.

    Raises Conflict if a store of another kind is there, BadInput if the directory holds something else.
    """
    from .init import init_store
    from .outputs import lies_in_store

    root = Path(path) if path is not None else default_store()
    root_file = Path(root_file) if root_file is not None else None
    disk = Disk()
    if lies_in_store(root.resolve().parent):
        raise BadInput(str(root), "lies in a store; another one is kept outside of it")
    if not root.exists():
        disk.make_dirs(root)
    with locked(root):  # two at once would mix the keys of two stores
        return init_store(
            root, disk, _held(key_file, None), encrypted=encrypted, passphrase=passphrase, root_file=root_file
        )


def open_store(
    path: str | Path | None = None,
    *,
    tenant: str | None = None,
    key_file: str | Path | None = None,
    passphrase: bytes | None = None,
    read_only: bool = False,
    ask: Ask = lambda: None,
) -> Store:
    """Open the store at `path` (default: `$ARSTORE_STORE`) as `tenant` (default: `$ARSTORE_TENANT`, or `default`).

    Secrets come from the arguments, then the environment, then the store's config. With `read_only`, nothing is written
    to the store, and what has to write raises ReadOnly. So it is, too, if the files of the store may not be written.
    Raises NoStore, KeyRefused.
    """
    root = Path(path) if path is not None else default_store()
    held = _held(key_file, passphrase)
    return Store(root, tenant=tenant or default_tenant(), held=held, ask=ask, read_only=read_only)
