"""Opened: the mechanisms of one store, opened for one tenant."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from .artifacts.names import Names
from .catalog import catalog as catalog_room
from .catalog import key_slots as slots_room
from .catalog.catalog import Catalog
from .catalog.garbage import Garbage
from .catalog.key_slots import SlotLedger
from .catalog.leases import TABLE as LEASES_TABLE
from .catalog.leases import Leases, current_process
from .catalog.tables import Tables
from .catalog.usage import Marks
from .config import CATALOG_DIR, KEYS_DIR, SEGMENTS_DIR, Config, read_config, root_path
from .disk import Disk
from .errors import Corrupt, KeyRefused
from .keys.keyring import Keyring
from .keys.rotate import RekeyParts, finish_rotation
from .keys.unlock import Ask, Secrets, Stanzas, open_masters
from .segments.records import TenantKeys
from .segments.recover import RecoverParts, recover_tails
from .segments.writer import LIFETIMES, SegmentReader, SegmentWriter

_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Opened:
    """Everything that verbs are handed their parts from."""

    root: Path
    config: Config
    disk: Disk
    now: Callable[[], datetime]
    held: Secrets
    keyring: Keyring
    keys: TenantKeys
    tables: Tables
    catalog: Catalog
    segments: SegmentReader
    names: Names
    ledger: SlotLedger
    leases: Leases
    garbage: Garbage
    marks: Marks
    closing: ExitStack

    @property
    def rekeying(self) -> RekeyParts:
        """What rekeying works with."""
        return RekeyParts(self.root, self.config, self.disk, self.held, self.keyring)

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self.root / SEGMENTS_DIR

    def open_writer(self, kind: str) -> SegmentWriter:
        """Return a writer for records of one lifetime."""
        return SegmentWriter(self.directory, self.config.store_id, LIFETIMES[kind], self.catalog, self.disk)

    def recover(self, *, dry_run: bool = False) -> int:
        """Take in what killed writers of any tenant left whole; return how many blobs that were, or would be."""

        def open_catalog(keys: TenantKeys) -> Catalog:
            return Catalog(self.tables, keys.number, keys.tenant.index_key)

        parts = RecoverParts(
            self.directory, self.config.store_id, self.disk, self.catalog,
            lambda: every_tenant(self.keyring, self.config), open_catalog,
        )  # fmt: skip
        return recover_tails(parts, dry_run=dry_run)


def every_tenant(keyring: Keyring, config: Config) -> dict[bytes, TenantKeys]:
    """Return the keys of all tenants by tenant id."""
    found = keyring.tenants().items()
    return {tenant.id: TenantKeys(number, tenant, keyring, config.encrypted) for number, tenant in found}


def open_keyring(root: Path, held: Secrets, ask: Ask, disk: Disk) -> tuple[Config, Secrets, Keyring]:
    """Open a store as far as its keys; raise NoStore if there is none, KeyRefused if the key does not open it."""
    for _ in range(_ATTEMPTS):
        ways = _ways(root) if (root / KEYS_DIR).exists() else None
        try:
            return _open_keyring(root, held, ask, disk)
        except (Corrupt, KeyRefused):
            if ways is None or _ways(root) == ways:
                raise  # else a rotation went by between stanzas and root
    raise KeyRefused("key", "kept being rotated", hint="try again")


def _ways(root: Path) -> tuple[Stanzas, Config]:
    return Stanzas.read(root / KEYS_DIR), read_config(root)


def _open_keyring(root: Path, held: Secrets, ask: Ask, disk: Disk) -> tuple[Config, Secrets, Keyring]:
    config = read_config(root)
    if held.key_file is None:
        held = replace(held, key_file=config.key_file)
    masters = open_masters(root / KEYS_DIR, held, config.store_id, ask, encrypted=config.encrypted)
    keyring = Keyring(root / KEYS_DIR, root_path(root, config), masters, config.store_id, disk)
    if len(masters) > 1 and _config_opens(root, config, masters[0]):  # a rotation was killed
        finish_rotation(RekeyParts(root, config, disk, held, keyring), masters[0])
    return config, held, keyring


def _config_opens(root: Path, config: Config, master: bytes) -> bool:
    """Say whether the key file that the config names opens a master key: else the old file must go on to do so."""
    try:
        return open_masters(root / KEYS_DIR, Secrets(config.key_file), config.store_id, lambda: None)[0] == master
    except KeyRefused:
        return False


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


def open_parts(root: Path, tenant: str, held: Secrets, ask: Ask, disk: Disk, now: Callable[[], datetime]) -> Opened:
    """Open a store; raise NoStore if there is none, KeyRefused if key or tenant do not open it."""
    config, held, keyring = open_keyring(root, held, ask, disk)
    with ExitStack() as stack:
        stack.callback(keyring.close)
        number, record = keyring.tenant(tenant)
        keys = TenantKeys(number, record, keyring, config.encrypted)
        # LMDB would make an empty one, in which new segments would take the numbers of those that are there.
        rows = root / CATALOG_DIR / "data.mdb"
        if not rows.exists() or not rows.stat().st_size:
            raise Corrupt(str(root / CATALOG_DIR), "is missing", hint="run 'arstore repair --rebuild-catalog'")
        tables = open_tables(root / CATALOG_DIR, keyring)
        stack.callback(tables.close)
        catalog = Catalog(tables, number, record.index_key)
        segments = SegmentReader(root / SEGMENTS_DIR, config.store_id)
        stack.callback(segments.close)
        ledger = SlotLedger(tables, root / KEYS_DIR / "loans", disk)
        stack.callback(ledger.close)
        return Opened(
            root, config, disk, now, held, keyring, keys, tables, catalog, segments, Names(catalog, keys, segments),
            ledger, Leases(tables, current_process()), Garbage(tables), Marks(tables, catalog.prefix),
            stack.pop_all(),
        )  # fmt: skip
