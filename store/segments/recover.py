"""Recover: a killed writer leaves a tail at the end of a segment. Whole records in it become blobs, the rest is cut.

Only segments whose lock is free are touched. A record is taken in only if every byte of it opens. After a power loss a
header may be on disk without the frames that it announces.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...formats.catalog import Place
from ...formats.digest import Digest
from ...formats.record import ALIGN_BYTES, KIND_BLOB
from ..catalog.catalog import Catalog
from ..disk import Disk
from ..errors import StorageFailed
from ..keys.tenant_keys import TenantKeys
from ..locks import locked, try_lock
from .reader import SegmentReader, segment_path
from .scan import whole_records


@dataclass(frozen=True, slots=True)
class RecoverParts:
    """What recovery works with. A tail may hold records of any tenant."""

    directory: Path
    store_id: bytes
    disk: Disk
    catalog: Catalog
    tenant_keys: Callable[[], dict[bytes, TenantKeys]]
    open_catalog: Callable[[TenantKeys], Catalog]


def recover_tails(parts: RecoverParts, *, dry_run: bool = False) -> int:
    """Take in the whole blobs of every abandoned tail, durably; return how many were new.

    With `dry_run` nothing changes, and the count is of whole blobs in tails.
    """
    adopted = 0
    for segment, row in parts.catalog.segments().items():
        path = segment_path(parts.directory, segment)
        try:
            if path.stat().st_size <= row.durable_bytes:
                continue
            fd = parts.disk.open(path)
        except (FileNotFoundError, StorageFailed):
            if path.exists():
                raise
            continue  # a collection removed it
        try:
            # Its writer may have committed and ended meanwhile, so the row is read again under the lock.
            if try_lock(fd) and (now := parts.catalog.segments().get(segment)):
                # Meanwhile no collection may judge which keys nobody needs.
                with locked(parts.directory):
                    adopted += _recover(parts, segment, fd, now.durable_bytes, dry_run=dry_run)
        finally:
            os.close(fd)
    return adopted


def _recover(parts: RecoverParts, segment: int, fd: int, durable: int, *, dry_run: bool) -> int:
    whole: dict[bytes, dict[Digest, Place]] = defaultdict(dict)
    keys = parts.tenant_keys()
    end = start = max(durable, ALIGN_BYTES)
    for record in whole_records(SegmentReader(parts.directory, parts.store_id), segment, fd, start, keys):
        if record.header.binding.kind == KIND_BLOB:
            whole[record.header.binding.tenant][record.footer().digest] = record.place
            end = record.place.offset + record.header.record_bytes
    if dry_run:
        return sum(map(len, whole.values()))
    adopted = 0
    if whole:
        parts.disk.sync(fd)
    for tenant, places in whole.items():
        adopted += parts.open_catalog(keys[tenant]).adopt(places, {segment: end})
    if os.fstat(fd).st_size > end and (whole or durable):
        parts.disk.truncate(fd, end)
    elif not whole and not durable:
        parts.disk.remove(segment_path(parts.directory, segment))
    return adopted
