"""Access: make a store, open one, or make its catalog anew, with what arguments and environment say."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Config, default_store, default_tenant
from .disk import Disk, locked
from .keys.unlock import Ask, Secrets
from .progress import Progress, ignore_progress
from .store import Store

if TYPE_CHECKING:
    from .maintenance.repair import Repaired


def rebuild_catalog(
    path: str | Path | None = None, *, key_file: str | Path | None = None, passphrase: bytes | None = None,
    ask: Ask = lambda: None, forget_lost: bool = False, progress: Progress = ignore_progress,
) -> "Repaired":  # fmt: skip
    """Make the catalog of the store at `path` anew from its segments; nobody else may use the store meanwhile.

    Killed in the middle, the old catalog is still there. Pins and times of use are not in segments and are lost.
    """
    from .maintenance.repair import rebuild

    root = Path(path) if path is not None else default_store()
    return rebuild(root, _held(key_file, passphrase), ask, Disk(), progress, forget_lost=forget_lost)


def _held(key_file: str | Path | None, passphrase: bytes | None) -> Secrets:
    """Return the caller's secrets: arguments before environment."""
    held = Secrets.from_environment()
    return replace(held, key_file=Path(key_file) if key_file is not None else held.key_file, passphrase=passphrase)


def create_store(
    path: str | Path | None = None, *, encrypted: bool = True, passphrase: bytes | None = None,
    key_file: str | Path | None = None, root_file: str | Path | None = None,
) -> Config:  # fmt: skip
    """Make a store at `path` (default: `$ARSTORE_STORE`) and return its settings, or those of the one that is there.

    Raises Conflict if a store of another kind is there, BadInput if the directory holds something else.
    """
    from .init import init_store

    root = Path(path) if path is not None else default_store()
    root_file = Path(root_file) if root_file is not None else None
    disk = Disk()
    if not root.exists():
        disk.make_dirs(root)
    with locked(root):  # two at once would make one store with the keys of another
        return init_store(
            root, disk, _held(key_file, None), encrypted=encrypted, passphrase=passphrase, root_file=root_file
        )


def open_store(
    path: str | Path | None = None, *, tenant: str | None = None, key_file: str | Path | None = None,
    passphrase: bytes | None = None, ask: Ask = lambda: None,
) -> Store:  # fmt: skip
    """Open the store at `path` (default: `$ARSTORE_STORE`) as `tenant` (default: `$ARSTORE_TENANT`, or `default`).

    Secrets come from the arguments, then the environment, then the store's config. Raises NoStore, KeyRefused.
    """
    root = Path(path) if path is not None else default_store()
    return Store(root, tenant=tenant or default_tenant(), held=_held(key_file, passphrase), ask=ask)
