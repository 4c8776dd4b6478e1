"""Rekey: further ways in, and a new master key, without rewriting anything that it protects.

Rotation: (1) the new ways in and the old master, sealed under the new one, join the stanzas; (2) the config points to
the new key file; (3) the root is sealed under the new master and the old root effaced; (4) the old ways in leave.
Killed after any step, the store opens with the key that the config names, and the next open does what is left.
"""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats.frames import KEY_BYTES
from .config import KEYS_DIR, Config, write_config
from .disk import Disk, locked
from .errors import BadInput, Conflict
from .keyring import Keyring
from .unlock import Secrets, Stanzas, check_passphrase, new_key_file


@dataclass(frozen=True, slots=True)
class RekeyParts:
    """The mechanisms that rekeying works with."""

    root: Path
    config: Config
    disk: Disk
    held: Secrets
    keyring: Keyring


def add_passphrase(parts: RekeyParts, passphrase: bytes) -> None:
    """Let a passphrase open the store as well, durably."""
    check_passphrase(passphrase)
    with locked(parts.root / KEYS_DIR):
        stanzas = _current(parts)
        added = stanzas.adding("passphrase", passphrase, parts.keyring.master, parts.config.store_id)
        added.write(parts.root / KEYS_DIR, parts.disk)


def _current(parts: RekeyParts) -> Stanzas:
    """Return the ways in; raise Conflict if the key that the store was opened with has been rotated since."""
    stanzas = Stanzas.read(parts.root / KEYS_DIR)
    if not stanzas.only_to(parts.keyring.master).ways:
        raise Conflict("key", "was rotated by somebody else meanwhile; try again")
    return stanzas


def rotate(parts: RekeyParts, key_file: Path | None, *, drop_others: bool) -> Path:
    """Give the store a new master key and a new key file, durably; return the key file. The old one opens nothing.

    Ways in besides the key file go on if their secrets are at hand; raise BadInput if one is not, unless `drop_others`.
    """
    with locked(parts.root / KEYS_DIR):
        return _rotate(parts, key_file, drop_others=drop_others)


def _rotate(parts: RekeyParts, key_file: Path | None, *, drop_others: bool) -> Path:
    old = parts.config.key_file
    if old is None:
        raise BadInput(str(parts.root), "opens with no key file; rotate the secret where it is kept")
    fresh_file = key_file.absolute() if key_file else _next_name(old)
    if fresh_file.exists():
        raise BadInput(str(fresh_file), "is there already; a new key takes a new file")
    if fresh_file.is_relative_to(parts.root.absolute()):
        raise BadInput(str(fresh_file), "a key file inside the store protects nothing; keep it elsewhere")
    directory, store_id = parts.root / KEYS_DIR, parts.config.store_id
    stanzas = _current(parts)
    others = {kind: parts.held.get(kind) for kind in stanzas.kinds() - {"key-file", "previous"}}
    for kind, secret in others.items():  # a wrong one must not take the place of the right one
        others[kind] = secret if secret is not None and stanzas.opened_by(kind, secret, store_id) else None
    missing = [kind for kind, secret in others.items() if secret is None]
    if missing and not drop_others:
        raise BadInput("key", f"the store also opens with: {', '.join(missing)}; give its secret, or --drop-others")
    master = secrets.token_bytes(KEY_BYTES)
    grown = stanzas.adding("key-file", new_key_file(fresh_file, parts.disk), master, store_id)
    for kind, secret in others.items():
        grown = grown if secret is None else grown.adding(kind, secret, master, store_id)
    grown.adding_previous(parts.keyring.master, master, store_id).write(directory, parts.disk)
    write_config(parts.root, replace(parts.config, key_file=fresh_file), parts.disk)
    _finish(parts, master)
    return fresh_file


def finish_rotation(parts: RekeyParts, master: bytes) -> None:
    """Do the last two steps of a rotation to `master` that was killed, durably."""
    with locked(parts.root / KEYS_DIR):
        if Stanzas.read(parts.root / KEYS_DIR).only_to(master).ways:
            _finish(parts, master)


def _finish(parts: RekeyParts, master: bytes) -> None:
    if parts.keyring.master != master:
        parts.keyring.reseal(master)
    directory = parts.root / KEYS_DIR
    Stanzas.read(directory).only_to(master).write(directory, parts.disk)


def _next_name(old: Path) -> Path:
    stem, _, number = old.stem.partition("-")
    count = int(number) + 1 if number.isdecimal() else 2
    while (fresh := old.with_name(f"{stem}-{count}{old.suffix}")).exists():
        count += 1
    return fresh
