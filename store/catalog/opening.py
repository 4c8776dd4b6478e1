"""Opening: the tables of a store's catalog, made empty or opened."""

from pathlib import Path

from ..disk import Disk
from ..keys.keyring import Keyring
from . import catalog as catalog_room
from . import key_slots as slots_room
from .leases import TABLE as LEASES_TABLE
from .tables import Tables


def create_tables(directory: Path, keyring: Keyring, disk: Disk) -> Tables:
    """Make an empty catalog in a directory, durably, whatever was there; return it opened."""
    disk.remove(directory)
    disk.make_dirs(directory)
    tables = open_tables(directory, keyring)
    try:
        disk.sync_dir(directory)
    except BaseException:  # or this process would go on with the files of this one when it tries again
        tables.close()
        raise
    return tables


def open_tables(directory: Path, keyring: Keyring) -> Tables:
    """Open the catalog in a directory."""
    return Tables(directory, (*catalog_room.TABLES, *slots_room.TABLES, LEASES_TABLE), keyring.catalog_key)
