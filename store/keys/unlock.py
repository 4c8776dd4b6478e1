"""Unlock: from what a person holds to the store's master key.

`keys/stanzas.json` holds the master key once for each way in: key file, passphrase, command. Each copy is sealed under
a key derived from the secret of that way and a random salt. The secret itself is never stored. The command comes only
from the environment: text inside a store is data, and data is never run.
"""

import contextlib
import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.digest import derive
from ...formats.errors import FormatError
from ...formats.frames import KEY_BYTES, seal, unseal
from ..config import setting
from ..disk import Disk
from ..errors import BadInput, Corrupt, KeyRefused, StoreError, reason
from ..user_file import open_user_file

STANZAS_NAME = "stanzas.json"
_FORMAT = 1
_SECRET_MAX_BYTES = 1 << 20
_STANZAS_MAX = 64
# RFC 9106's second recommendation: 64 MiB, 3 passes, 4 lanes; 0.12 s on a 2-core machine.
_ARGON2 = {"memory_kib": 64 << 10, "iterations": 3, "lanes": 4}
# KiB times passes: of one stanza, some seconds; of all, what as many stanzas cost as a file may have of ours.
_WORK_MAX = 4 << 20
_WORK_OF_ALL_MAX = _STANZAS_MAX * _ARGON2["memory_kib"] * _ARGON2["iterations"]
_MALFORMED = (FormatError, KeyError, ValueError, TypeError, OverflowError)  # what a damaged stanza raises

# Asks a person for a passphrase. Returns None if nobody is there to answer.
Ask = Callable[[], bytes | None]


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where the caller's secrets are. None means that none was given."""

    key_file: Path | None = None
    passphrase_file: Path | None = None
    command: str | None = None
    passphrase: bytes | None = None

    @classmethod
    def from_environment(cls) -> "Secrets":
        key_file, passphrase_file = setting("key_file"), setting("passphrase_file")
        return cls(
            Path(key_file) if key_file else None,
            Path(passphrase_file) if passphrase_file else None,
            os.environ.get("ARSTORE_KEY_COMMAND") or None,
        )

    def get(self, kind: str) -> bytes | None:
        """Return the secret of one kind, None if the caller gave none; raise KeyRefused if it can't be read."""
        if kind == "key-file":
            return _read(self.key_file) if self.key_file else None
        if kind == "passphrase":
            return self.passphrase or (_read(self.passphrase_file) if self.passphrase_file else None)
        return _run(self.command) if kind == "command" and self.command else None


def fresh_secret() -> bytes:
    """Return 32 random bytes in hex, as a key file holds them."""
    return os.urandom(KEY_BYTES).hex().encode()


def new_key_file(path: Path, disk: Disk, secret: bytes | None = None) -> bytes:
    """Make a key file, mode 0600, durably, and return its secret: the given one or a fresh one.

    A file that exists stays as it is, and its secret is returned.
    """
    if path.exists():
        with contextlib.suppress(StoreError):  # an init that was killed may have made it without making it durable
            disk.sync_dir(path.parent)
        return _read(path)
    secret = secret or fresh_secret()
    disk.make_dirs(path.parent)
    disk.sync_dir(path.parent.parent)
    disk.replace_file(path, secret + b"\n", 0o600)
    return secret


@dataclass(frozen=True, slots=True)
class Stanzas:
    """The ways in to the master key, oldest first.

    The kind `previous` is the master key from before a rotation, sealed under the new one.
    """

    ways: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, directory: Path) -> "Stanzas":
        return cls(tuple(_read_stanzas(directory)))

    def write(self, directory: Path, disk: Disk) -> None:
        """Make these the ways into the store, durably, in one step; raise BadInput if they are too many."""
        if len(self.ways) > _STANZAS_MAX:
            hint = "'arstore key rotate --drop-others' drops those whose secret is not at hand"
            raise BadInput("key", f"the store may have {_STANZAS_MAX} ways in, not {len(self.ways)}", hint=hint)
        content = json.dumps({"format": _FORMAT, "stanzas": list(self.ways)}, indent=1)
        disk.replace_file(directory / STANZAS_NAME, content.encode())

    def kinds(self) -> set[str]:
        return {way["kind"] for way in self.ways}

    def opened_by(self, kind: str, secret: bytes, store_id: bytes) -> bool:
        """Say whether a secret opens a way in of this kind."""
        return any(way["kind"] == kind and _unsealed(way, secret, store_id) for way in self.ways)

    def adding(self, kind: str, secret: bytes, master: bytes, store_id: bytes) -> "Stanzas":
        """Return these ways in and one more, to `master`. The kind `open` needs no secret."""
        way: dict[str, Any] = {"kind": kind, "opens": _name(master), "salt": os.urandom(16).hex()}
        if kind == "passphrase":
            way |= _ARGON2
        if kind == "open":
            way["master"] = master.hex()
        else:
            way["sealed"] = seal(_stanza_key(way, secret), _context(store_id), master, os.urandom(12)).hex()
        return Stanzas((*self.ways, way))

    def adding_previous(self, old: bytes, master: bytes, store_id: bytes) -> "Stanzas":
        """Return these ways in, and `old` for whoever has `master`. It is needed until the root is sealed anew."""
        return self.adding("previous", master, old, store_id)

    def only_to(self, master: bytes) -> "Stanzas":
        """Return those ways that open one master key."""
        wanted = _name(master)
        return Stanzas(tuple(way for way in self.ways if way.get("opens") == wanted and way["kind"] != "previous"))


def open_masters(directory: Path, held: Secrets, store_id: bytes, ask: Ask, *, encrypted: bool = True) -> list[bytes]:
    """Return the master key and, while a rotation is under way, the one before it.

    Raises KeyRefused if no secret that is held opens the store. `ask` is called last, for a passphrase. With
    `encrypted` no stanza of kind `open` is tried, and without it no other kind. So a changed `encrypted` in the config
    makes the open fail, and no new record is written in the clear.
    """
    ways = Stanzas.read(directory).ways
    missing: KeyRefused | None = None
    tried = 0
    for kind in ("key-file", "command", "passphrase") if encrypted else ("open",):
        if not any(way["kind"] == kind for way in ways):
            continue
        try:
            secret = b"" if kind == "open" else held.get(kind) or (ask() if kind == "passphrase" else None)
        except KeyRefused as refused:
            missing = refused
            continue
        for way in reversed(ways) if secret is not None else ():  # newest first: that is the master key to seal with
            if way["kind"] == kind and (master := _unsealed(way, secret or b"", store_id)):
                before = (_unsealed(old, master, store_id) for old in ways if old["kind"] == "previous")
                return [master, *filter(None, before)]
            tried += way["kind"] == kind
    if missing and not tried:
        raise missing
    kinds = ", ".join(sorted({way["kind"] for way in ways} - {"previous"}))
    hint = f"this store opens with: {kinds}; set ARSTORE_KEY_FILE, ARSTORE_PASSPHRASE_FILE or ARSTORE_KEY_COMMAND"
    raise KeyRefused("key", "the key given does not open this store" if tried else "no key was given", hint=hint)


def _name(master: bytes) -> str:
    """Return the name of a master key. It tells nothing about the key."""
    return derive(master, "master key name", 8).hex()


def _unsealed(way: dict[str, Any], secret: bytes, store_id: bytes) -> bytes | None:
    try:
        if way["kind"] == "open":
            return bytes.fromhex(way["master"])
        return unseal(_stanza_key(way, secret), _context(store_id), bytes.fromhex(way["sealed"]))
    except _MALFORMED:
        return None


def _stanza_key(stanza: dict[str, Any], secret: bytes) -> bytes:
    salt = bytes.fromhex(stanza["salt"])
    if stanza["kind"] != "passphrase":
        return derive(salt + secret, "stanza key")
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    memory, iterations, lanes = _parameters(stanza)
    kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=iterations, lanes=lanes, memory_cost=memory)
    return kdf.derive(secret)


def _parameters(stanza: dict[str, Any]) -> tuple[int, int, int]:
    """Return the parameters of Argon2id that a passphrase stanza states; raise FormatError if they are out of range."""
    memory, iterations, lanes = (int(stanza[name]) for name in _ARGON2)
    # These come from disk: whoever changes them must not make opening cost all memory, or hours.
    in_range = 8 * lanes <= memory <= 4 << 20 and 1 <= iterations <= 100 and 1 <= lanes <= 64
    if not in_range or memory * iterations > _WORK_MAX:
        raise FormatError("passphrase parameters exceed the limits")
    return memory, iterations, lanes


def _work(stanza: dict[str, Any]) -> int:
    """Return what it costs to try a stanza: KiB times passes; 0 for one that is skipped, or needs no passphrase."""
    with contextlib.suppress(*_MALFORMED):
        memory, iterations, _ = _parameters(stanza) if stanza["kind"] == "passphrase" else (0, 0, 0)
        return memory * iterations
    return 0


def _read_stanzas(directory: Path) -> list[dict[str, Any]]:
    path = directory / STANZAS_NAME
    try:
        with open_user_file(path) as file:
            content = json.loads(file.read(_SECRET_MAX_BYTES))
        stanzas = content["stanzas"]
        known = content["format"] == _FORMAT and all(isinstance(stanza["kind"], str) for stanza in stanzas)
        if not known or not 0 < len(stanzas) <= _STANZAS_MAX:
            raise ValueError("stanzas")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(str(path), f"the key stanzas can't be read ({type(error).__name__})") from None
    if sum(map(_work, stanzas)) > _WORK_OF_ALL_MAX:
        why = "its passphrase stanzas together would take too much time to try"
        raise Corrupt(str(path), why, hint="put it back from a backup of the store")
    return list(stanzas)


def _read(path: Path) -> bytes:
    try:
        with open_user_file(path) as file:
            content = file.read(_SECRET_MAX_BYTES + 1)
    except OSError as error:
        raise KeyRefused(str(path), reason(error)) from None
    if len(content) > _SECRET_MAX_BYTES:
        raise KeyRefused(str(path), f"larger than {_SECRET_MAX_BYTES} bytes: not a key or passphrase file")
    secret = content.rstrip(b"\r\n")
    if not secret:
        raise KeyRefused(str(path), "the file is empty")
    return secret


def _run(command: str) -> bytes:
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, timeout=60, check=False)
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:  # IndexError: no word in it
        raise KeyRefused("ARSTORE_KEY_COMMAND", f"could not be run ({error})") from None
    secret = done.stdout.rstrip(b"\r\n")
    if done.returncode or not secret:
        raise KeyRefused("ARSTORE_KEY_COMMAND", f"ended with exit code {done.returncode} and {len(secret)} bytes")
    return secret


def _context(store_id: bytes) -> str:
    return f"master key {store_id.hex()}"


def check_passphrase(passphrase: bytes) -> bytes:
    """Return the passphrase; raise BadInput if it is too short to protect anything."""
    if len(passphrase) < 8:
        raise BadInput("passphrase", "shorter than 8 characters")
    return passphrase
