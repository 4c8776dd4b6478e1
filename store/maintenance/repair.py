"""Repair: corrects the counts of a catalog, or makes the catalog anew from the segments alone.

Segments hold everything but pins and times of use. A version record holds name, number, label and manifest, a blob
record its digest. What was erased or removed stays gone, because its keys are destroyed.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...formats.catalog import QUARANTINED, BlobRow, Place, SegmentRow, VersionRow, missing_place
from ...formats.digest import Digest, digest_bytes
from ...formats.errors import FormatError
from ...formats.manifest import Manifest, parse_manifest
from ...formats.record import ALIGN_BYTES, KIND_BLOB, parse_segment_header
from ...formats.strict_json import parse_json
from ..artifacts.drop import recount_needs
from ..artifacts.names import Summary
from ..catalog.catalog import Catalog
from ..catalog.opening import create_tables
from ..catalog.recount import forget_versions, restore
from ..catalog.tables import Tables
from ..catalog.usage import write_segments
from ..config import CATALOG_DIR, SEGMENTS_DIR
from ..disk import Disk
from ..errors import Corrupt, NotFound
from ..keys.keyring import Keyring
from ..keys.opening import open_keyring
from ..keys.tenant_keys import TenantKeys, every_tenant
from ..keys.unlock import Ask, Secrets
from ..parts import Parts
from ..progress import Progress
from ..segments.reader import SegmentReader, segment_path
from ..segments.records import OpenRecord
from ..segments.scan import whole_records

_SKIPPED_IDS = 1 << 20


@dataclass(slots=True)
class TenantFound:
    """The keys of one tenant, and the blobs and versions that the segments hold of it."""

    keys: TenantKeys
    blobs: dict[Digest, BlobRow] = field(default_factory=dict)
    versions: dict[tuple[str, int], tuple[Summary, VersionRow, Manifest]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Salvage:
    """Everything that a reading of all segments found."""

    tenants: dict[bytes, TenantFound]
    segments: dict[int, SegmentRow]
    last_segment: int  # no segment id up to this one is used again


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did: how many records it took in, how many counts it corrected, and what is lost, and why."""

    recovered: int
    lost: tuple[str, ...]
    corrected: int = 0


def mend(parts: Parts, *, forget_lost: bool, dry_run: bool) -> Repaired:
    """Take in whole records of killed writers, then correct how many versions need each blob. Durable on return.

    If a version can't be read, nothing is counted. With `forget_lost`, versions that can't be opened leave the catalog
    first.
    """
    names, catalog = parts.names, parts.catalog
    recovered = parts.recover(dry_run=dry_run)
    unopened = names.unopened()
    lost = [f"version {version.version} of a name that can't be read: {version.why}" for version in unopened]
    gone = {version.row.place for version in unopened} if forget_lost else set[Place]()
    if gone and not dry_run:
        forget_versions(catalog, gone)
    bad = []
    for version in names.all():
        try:
            names.needs(version)
        except Corrupt as error:
            bad.append(f"{version.text}: {error}")
        except NotFound:
            continue  # it was removed meanwhile
    countable = not bad and len(gone) == len(unopened)
    corrected = recount_needs(names, gone, dry_run=dry_run) if countable else 0
    return Repaired(recovered, (*lost, *bad), corrected)


def salvage(
    directory: Path,
    store_id: bytes,
    keys: Mapping[bytes, TenantKeys],
    disk: Disk,
    progress: Progress,
    *,
    forget_lost: bool,
) -> Salvage:
    """Read every segment, check every byte of every record, and return the rows that the catalog is to have.

    With `forget_lost`, versions that lack a blob are left out.
    """
    tenants = {tenant: TenantFound(own) for tenant, own in keys.items()}
    segments: dict[int, SegmentRow] = {}
    reader = SegmentReader(directory, store_id)
    paths = sorted(directory.glob(f"{'[0-9a-f]' * 16}.seg"))
    total = sum(path.stat().st_size for path in paths)
    for path in paths:
        fd = disk.open(path)
        try:
            header = parse_segment_header(os.pread(fd, ALIGN_BYTES, 0))
            if header.store_id != store_id or segment_path(directory, header.segment_id) != path:
                continue
            end = ALIGN_BYTES
            for record in whole_records(reader, header.segment_id, fd, ALIGN_BYTES, keys):
                end = record.place.offset + record.header.record_bytes
                _take_in(tenants[record.header.binding.tenant], record)
                progress(record.header.record_bytes, total)
            segments[header.segment_id] = SegmentRow(header.lifetime, max(end, os.fstat(fd).st_size), 0)
        except FormatError:
            continue  # it is no segment of this store; versions that lack its records are listed as lost
        finally:
            os.close(fd)
    for tenant in tenants.values():
        _count(tenant, forget_lost=forget_lost)
    live: Counter[int] = Counter()
    for tenant in tenants.values():
        for place in tenant_places(tenant):
            live[place.segment] += place.record_bytes
    # A missing segment may turn up again, so its number must not be given to another.
    last = max((int(path.stem, 16) for path in paths), default=0) + _SKIPPED_IDS
    return Salvage(tenants, {n: replace(row, live_bytes=live[n]) for n, row in segments.items()}, last)


def tenant_places(tenant: TenantFound) -> Iterator[Place]:
    """Yield where every record of a tenant lies."""
    yield from (row.place for row in tenant.blobs.values())
    yield from (row.place for _, row, _ in tenant.versions.values())


def _take_in(tenant: TenantFound, record: OpenRecord) -> None:
    if record.header.binding.kind == KIND_BLOB:
        tenant.blobs.setdefault(record.footer().digest, BlobRow(record.place, 0))
        return
    where = f"version record in segment {record.place.segment:016x} at byte {record.place.offset}"
    try:
        body = parse_json(record.read_all())
        manifest = parse_manifest(body["manifest"])
        manifest_id = digest_bytes(tenant.keys.tenant.digest_key, manifest.packed())
        summary = Summary(
            str(body["name"]),
            int(body["version"]),
            body["label"],
            manifest_id.hex(),
            manifest.kind,
            dict(manifest.identity).get("model"),
            manifest.plain_bytes,
            str(body["created"]),
            pinned=False,
        )
    except (FormatError, KeyError, TypeError, ValueError) as error:
        tenant.lost.append(f"{where}: {error}")
        return
    row = VersionRow(record.place, False, summary.sealed(tenant.keys.key(record.place)))
    other = tenant.versions.get((summary.name, summary.version))
    # There are two records only if a put that lost a race was killed before its key was destroyed. The later one stays.
    if other is None or other[0].created <= summary.created:
        tenant.versions[summary.name, summary.version] = (summary, row, manifest)


def _count(tenant: TenantFound, *, forget_lost: bool) -> None:
    """Count how many versions need each blob.

    A blob that a version lacks gets a row that says so. The version stays, and the next put of these bytes makes it
    whole. With `forget_lost` the version goes instead.
    """
    for (name, version), (_, _, manifest) in list(tenant.versions.items()):
        missing = {blob for blob in manifest.blobs if _is_missing(tenant.blobs.get(blob.digest))}
        if missing:
            tenant.lost.append(f"{name}@{version}: {len(missing)} of {len(manifest.blobs)} blobs are missing or bad")
        if missing and forget_lost:
            del tenant.versions[name, version]
        for blob in missing if not forget_lost else ():
            tenant.blobs[blob.digest] = BlobRow(missing_place(blob.length), 0, QUARANTINED)
    needs: Counter[Digest] = Counter()
    for _, _, manifest in tenant.versions.values():
        needs.update({blob.digest for blob in manifest.blobs})
    for digest, row in tenant.blobs.items():
        tenant.blobs[digest] = row.referred(needs[digest])


def _is_missing(row: BlobRow | None) -> bool:
    return row is None or row.place.is_missing


def rebuild(root: Path, held: Secrets, ask: Ask, disk: Disk, progress: Progress, *, forget_lost: bool) -> Repaired:
    """Make the catalog of a store anew from its segments, durably. Raises Fenced if somebody has the store open.

    The keys of records that were not found stay. So if a missing segment turns up, another rebuild can take it in. With
    `forget_lost` these keys are destroyed, and so are the keys of dead records.
    """
    config, _, keyring = open_keyring(root, held, ask, disk)
    fresh = root / f"{CATALOG_DIR}.new"
    with closing(keyring):
        keyring.check_writable()
        keyring.own_alone()
        salvaged = salvage(
            root / SEGMENTS_DIR, config.store_id, every_tenant(keyring, config), disk, progress, forget_lost=forget_lost
        )
        with closing(create_tables(fresh, keyring, disk)) as tables:
            recovered = _fill(tables, salvaged)
        old = root / f"{CATALOG_DIR}.old"
        disk.remove(old)
        # Between these two renames the store has no catalog. If this is killed there, another rebuild makes it.
        if (root / CATALOG_DIR).exists():
            disk.rename(root / CATALOG_DIR, old)
        disk.rename(fresh, root / CATALOG_DIR)
        disk.sync_dir(root)
        disk.remove(old)
        orphans = {own.keys.number: _orphans(keyring, own) for own in salvaged.tenants.values()}
        if forget_lost and any(orphans.values()):
            keyring.destroy(orphans)
    return Repaired(recovered, tuple(lost for tenant in salvaged.tenants.values() for lost in tenant.lost))


def _fill(tables: Tables, salvaged: Salvage) -> int:
    """Write the rows into an empty catalog, and return how many records they point to."""
    tables.write(lambda rows: write_segments(rows, salvaged.segments, salvaged.last_segment))
    for tenant in salvaged.tenants.values():
        catalog = Catalog(tables, tenant.keys.number, tenant.keys.tenant.index_key)
        # An identity belongs to the version that was stored first, so the oldest version comes first.
        by_age = sorted(tenant.versions.items(), key=lambda item: item[1][0].created)
        restore(catalog, tenant.blobs, {ref: (row, manifest.needs().claims) for ref, (_, row, manifest) in by_age})
    return sum(not place.is_missing for tenant in salvaged.tenants.values() for place in tenant_places(tenant))


def _orphans(keyring: Keyring, tenant: TenantFound) -> list[int]:
    """Return the slots of a tenant whose keys open no record that a row points to."""
    used = {place.slot for place in tenant_places(tenant)}
    return [slot for slot in keyring.slots(tenant.keys.number) if slot not in used]
