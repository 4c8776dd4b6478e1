"""Recover: what a killed writer left at the end of a segment becomes reusable blobs, and the torn rest is cut.

Works only on segments whose lock is free. A record is taken in only if every byte of it opens: after a power loss
a header may have reached the disk before the frames it announces.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..formats.catalog import Place, place_of
from ..formats.digest import Digest
from ..formats.errors import FormatError
from ..formats.record import ALIGN_BYTES, HEADER_BYTES, KIND_BLOB, Header, parse_header
from .catalog import Catalog
from .disk import Disk, try_lock
from .errors import Corrupt
from .records import OpenRecord, TenantKeys
from .segments import SegmentReader, segment_path


@dataclass(frozen=True, slots=True)
class RecoverParts:
    """The mechanisms recovery works with; a tail may hold records of any tenant."""

    directory: Path
    store_id: bytes
    disk: Disk
    catalog: Catalog
    tenant_keys: Callable[[], dict[bytes, TenantKeys]]
    open_catalog: Callable[[TenantKeys], Catalog]


def recover_tails(parts: RecoverParts) -> int:
    """Take in the whole blobs of every abandoned tail, durably; return how many were new."""
    adopted = 0
    for segment, row in parts.catalog.segments().items():
        path = segment_path(parts.directory, segment)
        try:
            if path.stat().st_size <= row.durable_bytes:
                continue
        except FileNotFoundError:
            continue
        fd = parts.disk.open(path)
        try:
            # Under the lock the row is read again: its writer may have committed and gone meanwhile.
            if try_lock(fd):
                adopted += _recover(parts, segment, fd, parts.catalog.segments()[segment].durable_bytes)
        finally:
            os.close(fd)
    return adopted


def _recover(parts: RecoverParts, segment: int, fd: int, durable: int) -> int:
    size = os.fstat(fd).st_size
    found: dict[bytes, dict[Digest, Place]] = defaultdict(dict)
    keys = parts.tenant_keys()
    reader = SegmentReader(parts.directory, parts.store_id)
    end = at = max(durable, ALIGN_BYTES)
    while at + ALIGN_BYTES <= size:
        # Extents are written side by side: a hole that a killed thread left may lie before a whole record.
        packed = os.pread(fd, HEADER_BYTES, at)
        header = _header(packed)
        digest = _digest(reader, keys, segment, at, header) if header else None
        if header is None or digest is None:
            at += ALIGN_BYTES
            continue
        if header.binding.kind == KIND_BLOB:
            found[header.binding.tenant][digest] = place_of(segment, at, header)
            end = at + header.record_bytes
        at += header.record_bytes
    adopted = 0
    if found:
        parts.disk.sync(fd)
    for tenant, places in found.items():
        adopted += parts.open_catalog(keys[tenant]).adopt(places, {segment: end})
    if size > end and (found or durable):
        parts.disk.truncate(fd, end)
    elif not found and not durable:
        parts.disk.remove(segment_path(parts.directory, segment))
    return adopted


def _header(packed: bytes) -> Header | None:
    try:
        return parse_header(packed)
    except FormatError:
        return None


def _digest(
    reader: SegmentReader, keys: dict[bytes, TenantKeys], segment: int, at: int, header: Header
) -> Digest | None:
    """Return what a record holds if it is whole, from header to padding, and its key is here."""
    owner = keys.get(header.binding.tenant)
    if owner is None:
        return None
    try:
        record = OpenRecord(reader, owner, place_of(segment, at, header), header.binding.kind)
        digest = record.footer().digest
        record.check(digest)
        return digest
    except (FormatError, Corrupt):
        return None
