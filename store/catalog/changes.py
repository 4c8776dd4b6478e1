"""Changes: what adding and dropping a version does to the rows of a tenant, inside one transaction.

Invariant: counts change in the transaction that changes the rows they count. That holds for needs, claims, live bytes,
usage and the list of doomed keys. A function that raises leaves the transaction to be undone.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...formats.catalog import LIVE, BlobRow, Place, VersionRow, pack_newest, parse_blob
from ...formats.digest import Digest
from ...formats.row_keys import RowKeys, usage_key
from ..errors import NoRoom
from .identities import claim, unclaim
from .key_slots import doom, doomed_slots
from .leases import Lease
from .lookup import newest_version, read_blob, read_version
from .tables import Rows
from .usage import account, count, extend_segments

if TYPE_CHECKING:
    from ...formats.identity import KeyId
    from ...formats.manifest import Needs


class Superseded(Exception):
    """Another version of the name was committed first. Take the next number."""


class BlobGone(Exception):
    """A blob that was to be reused is gone or bad, or another version claimed the identity first. Look again."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version ready to be committed: its row, the blobs it needs, and those of them that were just written."""

    name: str
    version: int
    row: VersionRow
    needs: "Needs"
    written: Mapping[Digest, Place]
    durable: Mapping[int, int]  # segment id -> bytes that are on disk
    quota_bytes: int = 0
    lease: Lease | None = None
    join: bool = False  # raise BlobGone where an identity stands for other bytes: the caller then uses those


def commit_version(rows: Rows, keys: RowKeys, new: NewVersion) -> "KeyId | None":
    """Add a version. Return the first identity it claims that goes on to stand for other bytes, None if none does.

    Raises Fenced, Superseded, BlobGone or NoRoom as `Catalog.commit` says.
    """
    if new.lease:
        new.lease.check(rows)
    if newest_version(rows, keys, new.name) != new.version - 1:
        raise Superseded
    add_blobs(rows, keys, new.written)
    for digest in new.needs.blobs:
        blob = read_blob(rows, keys, digest)
        if blob is None or blob.state != LIVE:
            raise BlobGone
        rows.put("blobs", keys.blob(digest), blob.referred(+1).packed())
    claims = new.needs.claims
    claimed = claim(rows, keys, claims)
    if new.join and claimed < len(claims):
        raise BlobGone
    rows.put("versions", keys.version(new.name, new.version), replace(new.row, claimed=claimed).packed())
    rows.put("names", keys.name(new.name), pack_newest(new.version))
    account(rows, keys.tenant, {new.row.place.segment: new.row.place.record_bytes})
    extend_segments(rows, new.durable)
    if new.quota_bytes and count(rows, usage_key(keys.tenant)) > new.quota_bytes:
        raise NoRoom("quota", f"the tenant's quota of {new.quota_bytes} bytes would be exceeded")
    return claims[claimed][0] if claimed < len(claims) else None


def drop_version(rows: Rows, keys: RowKeys, name: str, version: int, needs: "Needs", *, shred: bool) -> int:
    """Remove a version and what it claims. With `shred`, delete the blobs that only it needed, and return their number.

    Raises Conflict if the version is gone.
    """
    row = read_version(rows, keys, name, version)
    changed_bytes: Counter[int] = Counter({row.place.segment: -row.place.record_bytes})
    slots = [row.place.slot]
    for blob_key in map(keys.blob, needs.blobs):
        value = rows.get("blobs", blob_key)
        blob = parse_blob(value) if value is not None else None
        if blob and shred and blob.refs <= 1:
            rows.delete("blobs", blob_key)
            slots.append(blob.place.slot)
            changed_bytes[blob.place.segment] -= blob.place.record_bytes
        elif blob and blob.refs:
            rows.put("blobs", blob_key, blob.referred(-1).packed())
    unclaim(rows, keys, needs.claims[: row.claimed])
    rows.delete("versions", keys.version(name, version))
    doom(rows, keys.tenant, slots)
    account(rows, keys.tenant, changed_bytes)
    if shred and next(rows.scan("versions", keys.name(name)), None) is None:
        rows.delete("names", keys.name(name))
    return len(slots) - 1


def add_blobs(rows: Rows, keys: RowKeys, places: Mapping[Digest, Place]) -> int:
    """Add blobs that lie at these places, and return how many of them were added.

    A blob whose key is doomed is left out: a collection judged what a killed put had left there. A blob that is stored
    and good already keeps its place, and the new copy is dead space in its segment. A bad one gets the new place.
    """
    added = 0
    changed_bytes: Counter[int] = Counter()
    doomed = doomed_slots(rows, keys.tenant) if places else frozenset[int]()
    replaced_slots: list[int] = []
    for digest, place in places.items():
        old = read_blob(rows, keys, digest)
        if place.slot in doomed or (old and old.state == LIVE):
            continue
        if old:
            changed_bytes[old.place.segment] -= old.place.record_bytes
            replaced_slots.append(old.place.slot)
        changed_bytes[place.segment] += place.record_bytes
        rows.put("blobs", keys.blob(digest), BlobRow(place, old.refs if old else 0).packed())
        added += 1
    doom(rows, keys.tenant, replaced_slots)
    account(rows, keys.tenant, changed_bytes)
    return added
