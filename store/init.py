"""Init: a store is made. The config is written last, so a store that was half made is made again from the beginning.

A root file that is kept outside is made beside its place. It is moved there after the config was written, by this init
or a later one. So a file in its place is never taken for the rest of a killed init, and never overwritten.
"""

import secrets
from dataclasses import replace
from pathlib import Path

from ..formats.frames import KEY_BYTES
from .catalog.opening import create_tables
from .config import (
    CATALOG_DIR,
    CONFIG_NAME,
    DEFAULT_TENANT,
    KEYS_DIR,
    SEGMENTS_DIR,
    Config,
    default_key_file,
    read_config,
    root_path,
    write_config,
)
from .disk import Disk
from .errors import BadInput, Conflict
from .keys.keyring import Keyring, create_keyring
from .keys.unlock import Secrets, Stanzas, check_passphrase, new_key_file
from .outputs import check_key_place
from .reserve import RESERVE_NAME, set_aside


def init_store(
    root: Path,
    disk: Disk,
    held: Secrets,
    *,
    encrypted: bool = True,
    passphrase: bytes | None = None,
    root_file: Path | None = None,
) -> Config:
    """Make a store at `root`, durably, and return its settings. An existing store of the same kind is left as it is.

    The store opens with a key file (made if it does not exist), unless a passphrase or a key command is given.
    Raises Conflict if a store of another kind is there, BadInput if the directory holds something else.
    """
    if (root / CONFIG_NAME).exists():
        config = read_config(root)
        _check_same(root, config, held, passphrase, encrypted=encrypted, root_file=root_file)
        disk.sync_dir(root)  # the init that wrote it may have been killed before its sync
        _place_root(config, disk)
        return config
    _check_empty(root, root_file)
    keys = root / KEYS_DIR
    for leftover in (keys, _unplaced(root_file)) if root_file else (keys,):
        disk.remove(leftover)
    for directory in (root, keys, root / SEGMENTS_DIR):
        disk.make_dirs(directory)
        disk.sync_dir(directory.parent)
    config = Config(secrets.token_bytes(16), encrypted, None, root_file.absolute() if root_file else None)
    master = secrets.token_bytes(KEY_BYTES)
    ways, config = _first_way(root, config, held, passphrase, master, disk)
    ways.write(keys, disk)
    made = _unplaced(config.root_file) if config.root_file else root_path(root, config)
    create_keyring(keys, made, master, config.store_id, disk)
    keyring = Keyring(keys, made, [master], config.store_id, disk)
    try:
        keyring.add_tenant(DEFAULT_TENANT, open_keys=not encrypted)
        create_tables(root / CATALOG_DIR, keyring, disk).close()
    finally:
        keyring.close()
    set_aside(root, disk)
    write_config(root, config, disk)
    _place_root(config, disk)
    return config


def _first_way(
    root: Path, config: Config, held: Secrets, passphrase: bytes | None, master: bytes, disk: Disk
) -> tuple[Stanzas, Config]:
    """Return the way that opens a new store, and its settings, which name the key file if there is one."""
    if not config.encrypted:
        return Stanzas().adding("open", b"", master, config.store_id), config
    if passphrase is not None:
        return Stanzas().adding("passphrase", check_passphrase(passphrase), master, config.store_id), config
    if held.key_file is None and (command := held.get("command")):
        return Stanzas().adding("command", command, master, config.store_id), config
    key_file = (held.key_file or default_key_file(config.store_id)).absolute()
    check_key_place(key_file, root)
    ways = Stanzas().adding("key-file", new_key_file(key_file, disk), master, config.store_id)
    return ways, replace(config, key_file=key_file)


def _check_same(
    root: Path, config: Config, held: Secrets, passphrase: bytes | None, *, encrypted: bool, root_file: Path | None
) -> None:
    """Raise Conflict if the store here was made with other settings than those given. Settings not given may differ."""
    if config.encrypted != encrypted or (root_file and config.root_file != root_file.absolute()):
        raise Conflict(str(root), "a store made with other settings is here already")
    ways = Stanzas.read(root / KEYS_DIR)
    opens = str(config.key_file) if config.key_file else " or ".join(f"a {kind}" for kind in sorted(ways.kinds()))
    if passphrase is not None:
        same = config.key_file is None and ways.opened_by("passphrase", passphrase, config.store_id)
        opens = "another passphrase" if opens == "a passphrase" else opens
    elif held.key_file:
        same = config.key_file == held.key_file.absolute()
    else:
        same = not held.command or (config.key_file is None and "command" in ways.kinds())
    if encrypted and not same:
        hint = "'arstore key' changes what a store opens with; --store makes another one elsewhere"
        raise Conflict(str(root), f"a store that opens with {opens} is here already", hint=hint)


def _unplaced(root_file: Path) -> Path:
    return root_file.absolute().with_name(f".{root_file.name}.arstore-new")


def _place_root(config: Config, disk: Disk) -> None:
    """Move a root file that is kept outside to its place, durably, unless it is there already."""
    if config.root_file is None:
        return
    made = _unplaced(config.root_file)
    if made.exists() and not config.root_file.exists():
        disk.rename(made, config.root_file)
    if config.root_file.exists():
        disk.sync_dir(config.root_file.parent)


def _check_empty(root: Path, root_file: Path | None) -> None:
    if root_file and root_file.exists():
        raise BadInput(str(root_file), "is there already; the root of another store is never overwritten")
    if root_file:
        check_key_place(root_file, root)
    if root.exists() and not root.is_dir():
        raise BadInput(str(root), "is not a directory")
    ours = {KEYS_DIR, SEGMENTS_DIR, CATALOG_DIR, RESERVE_NAME}
    if root.exists() and any(path.name not in ours and not path.name.startswith(".config") for path in root.iterdir()):
        raise BadInput(str(root), "the directory is not empty and holds no store")
    segments = root / SEGMENTS_DIR
    if segments.exists() and any(segments.iterdir()):
        raise BadInput(str(root), f"holds a store whose {CONFIG_NAME} is missing")
