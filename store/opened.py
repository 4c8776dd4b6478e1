"""Opened: the mechanisms of one store, opened for one tenant."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from . import catalog as catalog_room
from . import slots as slots_room
from .catalog import Catalog
from .config import Config, read_config
from .disk import Disk
from .garbage import Garbage
from .init import CATALOG_DIR, KEYS_DIR, SEGMENTS_DIR, root_path
from .keyring import Keyring
from .lease import TABLE as LEASES_TABLE
from .lease import Leases, current_process
from .names import Names
from .records import TenantKeys
from .recover import RecoverParts, recover_tails
from .segments import LIFETIMES, SegmentReader, SegmentWriter
from .slots import SlotLedger
from .tables import Tables
from .unlock import Secrets, open_master


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
    closing: ExitStack

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self.root / SEGMENTS_DIR

    def open_writer(self, kind: str) -> SegmentWriter:
        """Return a writer for records of one lifetime."""
        return SegmentWriter(self.directory, self.config.store_id, LIFETIMES[kind], self.catalog, self.disk)

    def recover(self) -> int:
        """Take in what killed writers of any tenant left whole; return how many blobs that were."""

        def every_tenant() -> dict[bytes, TenantKeys]:
            encrypted = self.config.encrypted
            found = self.keyring.tenants().items()
            return {tenant.id: TenantKeys(number, tenant, self.keyring, encrypted) for number, tenant in found}

        def open_catalog(keys: TenantKeys) -> Catalog:
            return Catalog(self.tables, keys.number, keys.tenant.index_key)

        parts = RecoverParts(self.directory, self.config.store_id, self.disk, self.catalog, every_tenant, open_catalog)
        return recover_tails(parts)


def open_parts(
    root: Path, tenant: str, held: Secrets, ask: Callable[[], bytes | None], disk: Disk, now: Callable[[], datetime]
) -> Opened:
    """Open a store; raise NoStore if there is none, KeyRefused if key or tenant do not open it."""
    config = read_config(root)
    if held.key_file is None:
        held = replace(held, key_file=config.key_file)
    master = open_master(root / KEYS_DIR, held, config.store_id, ask, encrypted=config.encrypted)
    with ExitStack() as stack:
        keyring = Keyring(root / KEYS_DIR, root_path(root, config), master, config.store_id, disk)
        stack.callback(keyring.close)
        number, record = keyring.tenant(tenant)
        keys = TenantKeys(number, record, keyring, config.encrypted)
        names = (*catalog_room.TABLES, *slots_room.TABLES, LEASES_TABLE)
        tables = Tables(root / CATALOG_DIR, names, keyring.catalog_key)
        stack.callback(tables.close)
        catalog = Catalog(tables, number, record.index_key)
        segments = SegmentReader(root / SEGMENTS_DIR, config.store_id)
        stack.callback(segments.close)
        process = current_process()
        return Opened(
            root, config, disk, now, held, keyring, keys, tables, catalog, segments, Names(catalog, keys, segments),
            SlotLedger(tables, process), Leases(tables, process), Garbage(tables), stack.pop_all(),
        )  # fmt: skip
