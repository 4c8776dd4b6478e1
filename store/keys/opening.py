"""Opening: the config and the keyring of a store, from its directory and the secrets that a person holds."""

from dataclasses import replace
from pathlib import Path

from ..config import KEYS_DIR, Config, read_config, root_path
from ..disk import Disk
from ..errors import Corrupt, KeyRefused
from .keyring import Keyring
from .unlock import Ask, Secrets, Stanzas, open_masters

_ATTEMPTS = 100


def open_keyring(
    root: Path, held: Secrets, ask: Ask, disk: Disk, *, read_only: bool = False
) -> tuple[Config, Secrets, Keyring]:
    """Open a store as far as its keys; raise NoStore if there is none, KeyRefused if the key does not open it."""
    for _ in range(_ATTEMPTS):
        ways = _ways(root) if (root / KEYS_DIR).exists() else None
        try:
            return _open_keyring(root, held, ask, disk, read_only=read_only)
        except (Corrupt, KeyRefused):
            if ways is None or _ways(root) == ways:
                raise  # ways that changed mean that a rotation ran between reading stanzas and root
    raise KeyRefused("key", "kept being rotated", hint="try again")


def _ways(root: Path) -> tuple[Stanzas, Config]:
    return Stanzas.read(root / KEYS_DIR), read_config(root)


def _open_keyring(
    root: Path, held: Secrets, ask: Ask, disk: Disk, *, read_only: bool
) -> tuple[Config, Secrets, Keyring]:
    config = read_config(root)
    if held.key_file is None:
        held = replace(held, key_file=config.key_file)
    masters = open_masters(root / KEYS_DIR, held, config.store_id, ask, encrypted=config.encrypted)
    keyring = Keyring(root / KEYS_DIR, root_path(root, config), masters, config.store_id, disk)
    keyring.read_only |= read_only
    killed = len(masters) > 1 and not keyring.read_only  # with two master keys, a rotation was killed
    if killed and _config_opens(root, config, masters[0]):
        from .rotate import Rekeying, finish_rotation

        finish_rotation(Rekeying(root, config, disk, held, keyring), masters[0])
    return config, held, keyring


def _config_opens(root: Path, config: Config, master: bytes) -> bool:
    """Say whether the key file that the config names opens this master key.

    If not, the rotation was killed before the config named the new file, and the old key file must go on to open it.
    """
    try:
        return open_masters(root / KEYS_DIR, Secrets(config.key_file), config.store_id, lambda: None)[0] == master
    except KeyRefused:
        return False
