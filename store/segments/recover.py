"""Recover: what a killed writer left at the end of a segment becomes reusable blobs, and the torn rest is cut.

Works only on segments whose lock is free. A record is taken in only if every byte of it opens: after a power loss
a header may have reached the disk before the frames it announces.
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
from ..disk import Disk, locked, try_lock
from ..errors import StorageFailed
from ..keys.tenant_keys import TenantKeys
from .reader import SegmentReader, segment_path
from .scan import whole_records


@dataclass(frozen=True, slots=True)
class RecoverParts:
    """The mechanisms recovery works with; a tail may hold records of any tenant."""

    directory: Path
    store_id: bytes
    disk: Disk
    catalog: Catalog
    tenant_keys: Callable[[], dict[bytes, TenantKeys]]
    open_catalog: Callable[[TenantKeys], Catalog]


def recover_tails(parts: RecoverParts, *, dry_run: bool = False) -> int:
    """Take in the whole blobs of every abandoned tail, durably; return how many were new, or there to be taken in."""
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
            # Under the lock the row is read again: its writer may have committed and gone meanwhile.
            if try_lock(fd) and (now := parts.catalog.segments().get(segment)):
                # A collection that looks for keys nobody needs must not miss those that are just being taken in.
                with locked(parts.directory):
                    adopted += _recover(parts, segment, fd, now.durable_bytes, dry_run=dry_run)
        finally:
            os.close(fd)
    return adopted


def _recover(parts: RecoverParts, segment: int, fd: int, durable: int, *, dry_run: bool) -> int:
    found: dict[bytes, dict[Digest, Place]] = defaultdict(dict)
    keys = parts.tenant_keys()
    end = start = max(durable, ALIGN_BYTES)
    for record in whole_records(SegmentReader(parts.directory, parts.store_id), segment, fd, start, keys):
        if record.header.binding.kind == KIND_BLOB:
            found[record.header.binding.tenant][record.footer().digest] = record.place
            end = record.place.offset + record.header.record_bytes
    if dry_run:
        return sum(map(len, found.values()))
    adopted = 0
    if found:
        parts.disk.sync(fd)
    for tenant, places in found.items():
        adopted += parts.open_catalog(keys[tenant]).adopt(places, {segment: end})
    if os.fstat(fd).st_size > end and (found or durable):
        parts.disk.truncate(fd, end)
    elif not found and not durable:
        parts.disk.remove(segment_path(parts.directory, segment))
    return adopted
