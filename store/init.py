"""Init: make a store. The config is written last, so that a store that was half made is simply made again."""

import secrets
from dataclasses import replace
from pathlib import Path

from ..formats.frames import KEY_BYTES
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
from .keyring import Keyring, create_keyring
from .opened import create_tables
from .unlock import Secrets, Stanzas, check_passphrase, new_key_file


def init_store(
    root: Path, disk: Disk, held: Secrets, *, encrypted: bool = True, passphrase: bytes | None = None,
    root_file: Path | None = None,
) -> Config:  # fmt: skip
    """Make a store at `root`, durably, and return its settings; an existing one of the same kind is left as it is.

    Opens with a key file (made if it does not exist) unless a passphrase or a key command is given.
    Raises Conflict if a store of another kind is there, BadInput if the directory holds something else.
    """
    if (root / CONFIG_NAME).exists():
        config = read_config(root)
        if config.encrypted != encrypted or (root_file and config.root_file != root_file.absolute()):
            raise Conflict(str(root), "a store made with other settings is here already")
        if held.key_file and config.key_file and held.key_file.absolute() != config.key_file:
            raise Conflict(str(root), f"a store that opens with {config.key_file} is here already")
        disk.sync_dir(root)  # the init that wrote it may have been killed before it came to that
        return config
    _check_empty(root)
    keys = root / KEYS_DIR
    if root_file and root_file.exists():
        raise BadInput(str(root_file), "is there already; the root of another store is never overwritten")
    disk.remove(keys)  # of an init that was cut short
    for directory in (root, keys, root / SEGMENTS_DIR):
        disk.make_dirs(directory)
        disk.sync_dir(directory.parent)
    config = Config(secrets.token_bytes(16), encrypted, None, root_file.absolute() if root_file else None)
    master = secrets.token_bytes(KEY_BYTES)
    if not encrypted:
        ways = Stanzas().adding("open", b"", master, config.store_id)
    elif passphrase is not None:
        ways = Stanzas().adding("passphrase", check_passphrase(passphrase), master, config.store_id)
    elif held.key_file is None and (command := held.get("command")):
        ways = Stanzas().adding("command", command, master, config.store_id)
    else:
        key_file = (held.key_file or default_key_file(config.store_id)).absolute()
        if key_file.is_relative_to(root.absolute()):
            raise BadInput(str(key_file), "a key file inside the store protects nothing; keep it elsewhere")
        ways = Stanzas().adding("key-file", new_key_file(key_file, disk), master, config.store_id)
        config = replace(config, key_file=key_file)
    ways.write(keys, disk)
    create_keyring(keys, root_path(root, config), master, config.store_id, disk)
    keyring = Keyring(keys, root_path(root, config), [master], config.store_id, disk)
    try:
        keyring.add_tenant(DEFAULT_TENANT, open_keys=not encrypted)
        create_tables(root / CATALOG_DIR, keyring, disk).close()
    finally:
        keyring.close()
    write_config(root, config, disk)
    return config


def _check_empty(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise BadInput(str(root), "is not a directory")
    ours = {KEYS_DIR, SEGMENTS_DIR, CATALOG_DIR}
    if root.exists() and any(path.name not in ours and not path.name.startswith(".config") for path in root.iterdir()):
        raise BadInput(str(root), "the directory is not empty and holds no store")
    segments = root / SEGMENTS_DIR
    if segments.exists() and any(segments.iterdir()):
        raise BadInput(str(root), f"holds a store whose {CONFIG_NAME} is missing")
