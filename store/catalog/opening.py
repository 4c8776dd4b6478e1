"""Opening: the tables of a store's catalog, made empty or opened."""

import os
from pathlib import Path

from ..disk import Disk
from ..keys.keyring import Keyring
from .catalog import TABLES as CATALOG_TABLES
from .key_slots import TABLES as SLOT_TABLES
from .leases import TABLE as LEASES_TABLE
from .page_check import DATA_NAME
from .tables import Tables


def create_tables(directory: Path, keyring: Keyring, disk: Disk) -> Tables:
    """Make an empty catalog in a directory, durably, and return it opened. Whatever the directory held is removed."""
    disk.remove(directory)
    disk.make_dirs(directory)
    os.close(disk.open(directory / DATA_NAME, create=True))
    tables = open_tables(directory, keyring)
    try:
        disk.sync_dir(directory)
    except BaseException:  # if it stayed open, a second try would get this environment, whose files are removed
        tables.close()
        raise
    return tables


def open_tables(directory: Path, keyring: Keyring) -> Tables:
    """Open the catalog in a directory, for reading alone if the keyring is."""
    names = (*CATALOG_TABLES, *SLOT_TABLES, LEASES_TABLE)
    return Tables(directory, names, keyring.catalog_key, read_only=keyring.read_only)
