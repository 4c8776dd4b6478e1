"""Parts: the mechanisms of one open store, seen as one tenant. They are made once at opening and handed to verbs.

Parts does no work of its own. A verb takes from it what it needs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .artifacts.names import Names
from .catalog.catalog import Catalog
from .catalog.garbage import Garbage
from .catalog.key_slots import SlotLedger
from .catalog.leases import Leases, current_process
from .catalog.opening import open_tables
from .catalog.tables import Tables
from .catalog.usage import Marks
from .config import CATALOG_DIR, KEYS_DIR, SEGMENTS_DIR, Config
from .disk import Disk
from .errors import Corrupt
from .keys.keyring import Keyring
from .keys.opening import open_keyring
from .keys.tenant_keys import TenantKeys, every_tenant
from .keys.unlock import Ask, Secrets
from .segments.reader import SegmentReader

if TYPE_CHECKING:
    from .artifacts.commit import PutParts
    from .keys.rotate import Rekeying
    from .outputs import Outputs
    from .segments.blobs import ReadParts
    from .segments.writer import SegmentWriter


@dataclass(frozen=True, slots=True)
class Parts:
    """The mechanisms of one open store."""

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
    def read(self) -> "ReadParts":
        """The mechanisms that reading blobs needs."""
        from .segments.blobs import ReadParts

        return ReadParts(self.catalog, self.keys, self.segments)

    @property
    def put(self) -> "PutParts":
        """The mechanisms that a put needs."""
        from .artifacts.commit import PutParts

        return PutParts(
            catalog=self.catalog,
            keys=self.keys,
            names=self.names,
            segments=self.segments,
            ledger=self.ledger,
            leases=self.leases,
            open_writer=self.open_writer,
            now=self.now,
            recover=self.recover,
        )

    @property
    def outputs(self) -> "Outputs":
        """Where what a user asks for may be written."""
        from .outputs import Outputs

        return Outputs(self.root, self.config, self.disk)

    @property
    def rekeying(self) -> "Rekeying":
        """The ways into the store: a secret is added, or the master key is rotated."""
        from .keys.rotate import Rekeying

        return Rekeying(self.root, self.config, self.disk, self.held, self.keyring)

    @property
    def now_s(self) -> int:
        """Seconds since 1970, by the clock that the store was opened with."""
        return int(self.now().timestamp())

    @property
    def directory(self) -> Path:
        """The directory of the segments."""
        return self.root / SEGMENTS_DIR

    def spending_reserve(self) -> AbstractContextManager[None]:
        """Let a body that frees space use what is set aside for it, unless the store is read-only."""
        from .reserve import spent_reserve

        return nullcontext() if self.keyring.read_only else spent_reserve(self.root, self.disk)

    def open_writer(self, kind: str) -> "SegmentWriter":
        """Return a writer for records of one lifetime."""
        from .segments.writer import LIFETIMES, SegmentWriter

        return SegmentWriter(self.directory, self.config.store_id, LIFETIMES[kind], self.catalog, self.disk)

    def recover(self, *, dry_run: bool = False) -> int:
        """Add to the catalog what killed writers of any tenant left whole; return how many blobs it adds (or would)."""
        from .segments.recover import RecoverParts, recover_tails

        def open_catalog(keys: TenantKeys) -> Catalog:
            return Catalog(self.tables, keys.number, keys.tenant.index_key)

        def tenants() -> dict[bytes, TenantKeys]:
            return every_tenant(self.keyring, self.config)

        parts = RecoverParts(self.directory, self.config.store_id, self.disk, self.catalog, tenants, open_catalog)
        return recover_tails(parts, dry_run=dry_run)


def open_parts(
    root: Path,
    tenant: str,
    held: Secrets,
    ask: Ask,
    disk: Disk,
    now: Callable[[], datetime],
    *,
    read_only: bool = False,
) -> Parts:
    """Open a store; raise NoStore if there is none, KeyRefused if key or tenant do not open it."""
    config, held, keyring = open_keyring(root, held, ask, disk, read_only=read_only)
    with ExitStack() as stack:
        stack.callback(keyring.close)
        number, record = keyring.tenant(tenant)
        keys = TenantKeys(number, record, keyring, config.encrypted)
        # LMDB would make an empty catalog, and new segments would get the numbers of existing ones.
        rows = root / CATALOG_DIR / "data.mdb"
        if not rows.exists() or not rows.stat().st_size:
            raise Corrupt(str(root / CATALOG_DIR), "is missing", hint="run 'arstore repair --rebuild-catalog'")
        tables = open_tables(root / CATALOG_DIR, keyring)
        stack.callback(tables.close)
        keyring.read_only = tables.read_only
        catalog = Catalog(tables, number, record.index_key)
        segments = SegmentReader(root / SEGMENTS_DIR, config.store_id)
        stack.callback(segments.close)
        ledger = SlotLedger(tables, root / KEYS_DIR / "loans", disk)
        stack.callback(ledger.close)
        return Parts(
            root=root,
            config=config,
            disk=disk,
            now=now,
            held=held,
            keyring=keyring,
            keys=keys,
            tables=tables,
            catalog=catalog,
            segments=segments,
            names=Names(catalog, keys, segments),
            ledger=ledger,
            leases=Leases(tables, current_process()),
            garbage=Garbage(tables),
            marks=Marks(tables, number),
            closing=stack.pop_all(),
        )
