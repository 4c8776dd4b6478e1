"""Stats: how much is stored, how much space deduplication saves, and how much room is left."""

import os
from dataclasses import dataclass

from ...formats.catalog import QUARANTINED
from ..catalog.catalog import Catalog
from ..parts import Parts


@dataclass(frozen=True, slots=True)
class Stats:
    """Sizes of one tenant's part of a store, in bytes; `disk_bytes` and `free_bytes` are the whole store's."""

    artifacts: int
    names: int
    logical_bytes: int  # of all versions, as if each were stored alone
    blobs: int
    unique_bytes: int  # plaintext of every blob, once
    stored_bytes: int  # what the tenant's records take in segments
    unreferenced_bytes: int  # plaintext of blobs that no version needs: garbage, or a put under way
    quarantined_blobs: int
    quota_bytes: int
    segments: int
    disk_bytes: int
    free_bytes: int

    @property
    def dedup_ratio(self) -> float:
        """Logical bytes over unique bytes that versions need; 1 where nothing is stored."""
        needed = self.unique_bytes - self.unreferenced_bytes
        return self.logical_bytes / needed if needed else 1.0


@dataclass(frozen=True, slots=True)
class Holding:
    """What a tenant has: its versions, the bytes that its records take in segments, and its record keys.

    After the tenant was removed, `still_staged` names copies that could not be wiped, see `Receipt`.
    """

    artifacts: int
    stored_bytes: int
    keys: int = 0
    still_staged: tuple[str, ...] = ()


def holding(catalog: Catalog) -> Holding:
    """Return what a tenant has. Its rows are enough, so no key of it is needed."""
    return Holding(len(catalog.versions()), catalog.usage_bytes())


def gather_stats(parts: Parts) -> Stats:
    """Return the sizes of a tenant, from one pass over its rows."""
    root, catalog = parts.root, parts.catalog
    summaries = [version.summary for version in parts.names.all()]
    blobs = unique = unreferenced = quarantined = 0
    for row in catalog.all_blobs():
        blobs += 1
        unique += row.place.plain_bytes
        unreferenced += 0 if row.refs else row.place.plain_bytes
        quarantined += row.state == QUARANTINED
    disk = os.statvfs(root)
    return Stats(
        artifacts=len(summaries),
        names=len({summary.name for summary in summaries}),
        logical_bytes=sum(summary.plain_bytes for summary in summaries),
        blobs=blobs,
        unique_bytes=unique,
        stored_bytes=catalog.usage_bytes(),
        unreferenced_bytes=unreferenced,
        quarantined_blobs=quarantined,
        quota_bytes=parts.keys.tenant.quota_bytes,
        segments=len(catalog.segments()),
        disk_bytes=sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file()),
        free_bytes=disk.f_bavail * disk.f_frsize,
    )
