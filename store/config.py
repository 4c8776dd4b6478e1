"""Config: the settings of a store, in the clear in `config.toml`. Init writes it last: with it, the store exists."""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .disk import Disk, file_name, name_text
from .errors import BadInput, NoStore, StorageFailed, reason
from .user_file import open_user_file

FORMAT = 1
CONFIG_NAME = "config.toml"
KEYS_DIR, SEGMENTS_DIR, CATALOG_DIR = "keys", "segments", "catalog"
DEFAULT_TENANT = "default"
_SIZE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one store. `key_file` says where to look if neither a flag nor the environment does."""

    store_id: bytes
    encrypted: bool
    key_file: Path | None = None
    root_file: Path | None = None

    def text(self) -> str:
        lines = [
            f"format = {FORMAT}",
            f'store_id = "{self.store_id.hex()}"',
            f"encrypted = {str(self.encrypted).lower()}",
        ]
        for name, path in (("key_file", self.key_file), ("root_file", self.root_file)):
            if path is not None:
                lines.append(f"{name} = {_quoted(name_text(path))}")
        return "\n".join(lines) + "\n"


def setting(name: str) -> str | None:
    """Return what the environment says of `store`, `tenant`, `key_file`, `passphrase_file` or `host_dir`.

    `$ARSTORE_STORE` and so on come first, then the TOML file that `$ARSTORE_CONFIG` names. None if neither has it.
    Raises BadInput if the file can't be read as TOML.
    """
    given = os.environ.get(f"ARSTORE_{name.upper()}")
    path = os.environ.get("ARSTORE_CONFIG")
    if given or not path:
        return given or None
    try:
        with open_user_file(path) as file:
            value = tomllib.loads(file.read(_SIZE_MAX).decode()).get(name)
    except (OSError, ValueError) as error:
        raise BadInput(f"ARSTORE_CONFIG {path}", f"can't be read as TOML ({error})") from None
    if value is not None and not isinstance(value, str):
        raise BadInput(f"ARSTORE_CONFIG {path}", f"{name} is not text")
    return file_name(value) if value else None


def default_store() -> Path:
    """Return the store that the environment names, or `$XDG_DATA_HOME/arstore`."""
    given = setting("store")
    return Path(given) if given else _xdg("XDG_DATA_HOME", ".local/share") / "arstore"


def default_tenant() -> str:
    """Return the tenant that the environment names, or `default`."""
    return setting("tenant") or DEFAULT_TENANT


def default_key_file(store_id: bytes) -> Path:
    """Return where `init` keeps a store's key file if none is given. It lies outside the store."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "arstore" / "keys" / f"{store_id.hex()[:16]}.key"


def root_path(root: Path, config: Config) -> Path:
    """Return where the root of a store's key tree lies."""
    return config.root_file or root / KEYS_DIR / "root"


def write_config(root: Path, config: Config, disk: Disk) -> None:
    """Make `root` a store, durably."""
    disk.replace_file(root / CONFIG_NAME, config.text().encode(), 0o644)


def read_config(root: Path) -> Config:
    """Return a store's settings; raise NoStore if there is none at `root`."""
    path = root / CONFIG_NAME
    try:
        with open_user_file(path) as file:
            values = tomllib.loads(file.read(_SIZE_MAX).decode())
    except (FileNotFoundError, NotADirectoryError):
        raise NoStore(
            str(root), "no store here", hint="make one with 'arstore init', or name one with --store"
        ) from None
    except OSError as error:
        raise StorageFailed(str(path), reason(error)) from None
    except ValueError as error:
        raise StorageFailed(str(path), f"not a valid config: {error}") from None
    try:
        if values["format"] != FORMAT:
            raise NoStore(str(root), f"store format {values['format']} is not known, wanted {FORMAT}")
        store_id = bytes.fromhex(values["store_id"])
        if len(store_id) != 16 or not isinstance(values["encrypted"], bool):
            raise ValueError("store_id or encrypted")
        paths = {n: Path(file_name(values[n])) if n in values else None for n in ("key_file", "root_file")}
        return Config(store_id, values["encrypted"], **paths)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageFailed(str(path), f"not a valid config: {error}") from None


def _xdg(variable: str, fallback: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else Path.home() / fallback


def _quoted(text: str) -> str:
    """Return a TOML basic string."""
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text)
    return f'"{escaped}"'
