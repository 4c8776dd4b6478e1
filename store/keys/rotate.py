"""Rotate: further ways in, and a new master key. Nothing that the master key protects is rewritten.

Steps of a rotation:
1. The new ways in join the stanzas, and so does the old master key, sealed under the new one.
2. The new key file is written. If the rotation stops here, the stanzas tell this file from one of somebody else.
3. The config names the new key file.
4. The root is sealed under the new master key, and the old root is overwritten.
5. The old ways in leave the stanzas.
Invariant: after any step the store opens with the key file that the config names. A rotation that was killed after
step 3 or 4 is finished by the next open. One that was killed before must be run again.
"""

import contextlib
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from ...formats.frames import KEY_BYTES
from ..config import CONFIG_NAME, KEYS_DIR, Config, write_config
from ..disk import Disk
from ..errors import BadInput, Conflict, KeyRefused
from ..locks import locked
from ..outputs import check_key_place
from .keyring import Keyring
from .unlock import STANZAS_NAME, Secrets, Stanzas, check_passphrase, fresh_secret, new_key_file


@dataclass(frozen=True, slots=True)
class Rekeying:
    """Changes the ways into one open store."""

    root: Path
    config: Config
    disk: Disk
    held: Secrets
    keyring: Keyring

    def add_passphrase(self, passphrase: bytes) -> None:
        """Let a passphrase open the store as well, durably; raise BadInput if it is too short."""
        check_passphrase(passphrase)
        self.keyring.check_writable()
        with locked(self.root / KEYS_DIR):
            stanzas = _current(self)
            added = stanzas.adding("passphrase", passphrase, self.keyring.master, self.config.store_id)
            added.write(self.root / KEYS_DIR, self.disk)

    def rotate(self, key_file: Path | None = None, *, drop_others: bool = False, dry_run: bool = False) -> "Rotated":
        """Give the store a new master key and a new key file, durably. The old key file opens nothing then.

        Other ways in go on to work if the caller holds their secrets. If one is missing, BadInput is raised; with
        `drop_others` that way in is dropped.
        """
        self.keyring.check_writable()
        with locked(self.root / KEYS_DIR):
            sweep_unfinished(self.root, self.disk)
            return _rotate(self, key_file, drop_others=drop_others, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation did: the new key file, and the other ways in that open the store no more."""

    key_file: Path
    dropped: tuple[str, ...]


def sweep_unfinished(root: Path, disk: Disk) -> None:
    """Remove new configs and stanzas that killed processes left. Call it with the lock of the keys' directory held.

    Whoever writes one of them holds that lock.
    """
    for directory, name in ((root, CONFIG_NAME), (root / KEYS_DIR, STANZAS_NAME)):
        for left in directory.glob(f".{name}.*"):
            disk.remove(left)


def _current(parts: Rekeying) -> Stanzas:
    """Return the ways in; raise Conflict if the key that the store was opened with has been rotated since."""
    stanzas = Stanzas.read(parts.root / KEYS_DIR)
    if not stanzas.only_to(parts.keyring.master).ways:
        raise Conflict("key", "was rotated by somebody else meanwhile; try again")
    parts.keyring.refresh()  # raises KeyRefused if another rotation has sealed the root under a new master key
    return stanzas


def _rotate(parts: Rekeying, key_file: Path | None, *, drop_others: bool, dry_run: bool) -> Rotated:
    old = parts.config.key_file
    if old is None:
        raise BadInput(str(parts.root), "opens with no key file; rotate the secret where it is kept")
    fresh_file = key_file.absolute() if key_file else _next_name(old)
    check_key_place(fresh_file, parts.root)
    directory, store_id = parts.root / KEYS_DIR, parts.config.store_id
    stanzas = _current(parts)
    secret_of_file = _secret_for(fresh_file, parts, stanzas)
    others = {kind: parts.held.get(kind) for kind in stanzas.kinds() - {"key-file", "previous"}}
    for kind, secret in others.items():  # a wrong secret must not replace the right one
        others[kind] = secret if secret is not None and stanzas.opened_by(kind, secret, store_id) else None
    missing = [kind for kind, secret in others.items() if secret is None]
    if missing and not drop_others:
        raise BadInput("key", f"the store also opens with: {', '.join(missing)}; give its secret, or --drop-others")
    rotated = Rotated(fresh_file, tuple(missing))
    if dry_run:
        return rotated
    master = secrets.token_bytes(KEY_BYTES)
    grown = stanzas.adding("key-file", secret_of_file, master, store_id)
    for kind, secret in others.items():
        grown = grown if secret is None else grown.adding(kind, secret, master, store_id)
    grown.adding_previous(parts.keyring.master, master, store_id).write(directory, parts.disk)
    new_key_file(fresh_file, parts.disk, secret_of_file)
    write_config(parts.root, replace(parts.config, key_file=fresh_file), parts.disk)
    _finish(parts, master)
    return rotated


def _secret_for(key_file: Path, parts: Rekeying, stanzas: Stanzas) -> bytes:
    """Return the secret for the new key file: a fresh one, or what the file holds if a killed rotation made it."""
    if not key_file.exists():
        return fresh_secret()
    if key_file == parts.config.key_file:
        raise BadInput(str(key_file), "is this store's key file already; a new key takes a new file")
    current = stanzas.only_to(parts.keyring.master).ways
    unfinished = Stanzas(tuple(way for way in stanzas.ways if way not in current))
    with contextlib.suppress(KeyRefused):  # it is raised if this is no key file at all
        secret = Secrets(key_file).get("key-file")
        if secret and unfinished.opened_by("key-file", secret, parts.config.store_id):
            return secret
    raise BadInput(str(key_file), "is there already; a new key takes a new file")


def finish_rotation(parts: Rekeying, master: bytes) -> None:
    """Do the last two steps of a killed rotation to `master`, durably. Nothing happens if no way in opens `master`."""
    with locked(parts.root / KEYS_DIR):
        if Stanzas.read(parts.root / KEYS_DIR).only_to(master).ways:
            _finish(parts, master)


def _finish(parts: Rekeying, master: bytes) -> None:
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
