"""Erase: destroys the keys of blobs that nothing else needs, so that no copy of their bytes can be read any more.

The steps, each synced: drop the versions and doom their keys in one transaction, write a new root of the key tree,
efface the old root, clear the list of doomed keys. If an erase is killed before the new root, the next open of the
store finds the list and finishes it. After the new root, no version of any page leads to the keys.
"""

import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...formats.catalog import Place
from ...formats.manifest import Needs
from ...formats.row_keys import tenant_of
from ..artifacts.drop import recount_needs, settle_claims
from ..artifacts.names import Names, StoredVersion
from ..catalog.garbage import Survey
from ..errors import BadInput, Corrupt
from ..kv.key_bounds import bounds_name
from ..parts import Parts
from ..staging.tenant_tiers import Tiers
from .shred import foreclose_abandoned, shred


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erase destroyed. `level` says against whom it holds.

    `freed_bytes` is what the next collection gives back. `still_staged` names copies that a process staged during the
    erase and uses, and tiers that failed during it.
    """

    id: str
    versions: tuple[str, ...]
    blobs_erased: int
    blobs_shared: int
    keys_destroyed: int
    freed_bytes: int
    root_epoch: int
    level: str
    still_staged: tuple[str, ...] = ()


_INSIDE = "against whoever has the store and its key file as they are now; old copies of the store may still open"
_OUTSIDE = (
    "against whoever has every version of every file of the store; old contents of the root file are the exception"
)


def erase(parts: Parts, tiers: Tiers, name: str, *, dry_run: bool) -> Receipt:
    """Erase versions for good; on return nothing in the store opens what only they needed. See `Store.erase`.

    Cost grows with the pages of the key tree that are touched, not with the bytes erased.
    """
    if not parts.config.encrypted:
        raise BadInput(str(parts.root), "the store is not encrypted, so there are no keys to destroy")
    doomed = parts.names.addressed(name, all_versions=True)
    if "@" not in name and any(version.summary.kind == "kv" for version in doomed):
        doomed += parts.names.versions(bounds_name(name))  # they hold minimum and maximum of the erased keys
    if dry_run:
        return _foretell(parts, doomed)
    with parts.spending_reserve():
        return _erase(parts, tiers, doomed)


def _erase(parts: Parts, tiers: Tiers, doomed: Sequence[StoredVersion]) -> Receipt:
    needs = _needs(parts.names, doomed)  # before any version is dropped
    if len(needs) < len(doomed):  # some records are bad: their blobs are those that no other version needs
        _count_without(parts, doomed, needs, dry_run=False)
    ids = {version.summary.id for version in doomed}
    blocks = {id_.hex() for needed in needs.values() for id_, _ in needed.claims}
    staged = None if "" in ids else ids | blocks  # None is all: the id of a version that can't be opened is unknown
    tiers.wipe_before_erase(parts.keys.tenant, staged)
    before = parts.catalog.usage_bytes()
    _clear_leftovers(parts)
    parts.keyring.make_room(len(doomed) + sum(len(needed.blobs) for needed in needs.values()))
    erased = 0
    if len(needs) < len(doomed):
        erased += _delete_unneeded(parts, parts.garbage.survey())
    for version in doomed:
        name, number = version.summary.name, version.summary.version
        erased += parts.catalog.drop(name, number, needs.get(version.text, Needs()), shred=True)
    keys = shred(parts)
    settle_claims(parts.names, needs.values())
    used = tiers.drop_after_erase(parts.keys.tenant, staged)  # copies that were staged meanwhile
    shared = len(parts.catalog.find_blobs({digest for needed in needs.values() for digest in needed.blobs}))
    level = _OUTSIDE if parts.config.root_file is not None else _INSIDE
    texts = tuple(version.text for version in doomed)
    freed = before - parts.catalog.usage_bytes()
    return Receipt(secrets.token_hex(8), texts, erased, shared, keys, freed, parts.keyring.epoch, level, tuple(used))


def _foretell(parts: Parts, doomed: Sequence[StoredVersion]) -> Receipt:
    """Return the receipt that an erase would give, destroying nothing."""
    needs = _needs(parts.names, doomed)
    if len(needs) < len(doomed):
        _count_without(parts, doomed, needs, dry_run=True)
    counts = Counter(digest for needed in needs.values() for digest in needed.blobs)
    rows = parts.catalog.find_blobs(counts)
    erased = [row for digest, row in rows.items() if row.refs <= counts[digest]]
    gone = {row.place for row in erased} | {version.row.place for version in doomed}
    lent, garbage = _leftovers(parts)
    slots = {place.slot for place in gone | garbage} - {0}
    texts, freed = tuple(version.text for version in doomed), sum(place.record_bytes for place in gone | garbage)
    keys, epoch = len(slots) + lent, parts.keyring.epoch
    return Receipt("dry-run", texts, len(erased), len(rows) - len(erased), keys, freed, epoch, "nothing was erased")


def _leftovers(parts: Parts) -> tuple[int, set[Place]]:
    """Return how many keys of killed puts sealed nothing that has a row, and where the garbage lies that goes, too."""
    loans = parts.ledger.abandoned()
    if not parts.marks.leftovers() and not loans:
        return 0, set()
    asked = {(tenant_of(loan), slot) for loan, slots in loans.items() for slot in slots}
    survey, mine = parts.garbage.survey(asked), parts.catalog.keys.prefix
    garbage = {row.place for key, row in survey.unneeded if key.startswith(mine)}
    return len(asked - survey.needed_slots), garbage


def _count_without(parts: Parts, doomed: Sequence[StoredVersion], needs: Mapping[str, Needs], *, dry_run: bool) -> None:
    """Count what all versions need, without the doomed ones that can't be read. Raises Corrupt if another is bad."""
    unread = {version.row.place for version in doomed if version.text not in needs}
    try:
        recount_needs(parts.names, unread, dry_run=dry_run)
    except Corrupt as error:
        hint = "'rm' the other damaged version first: 'arstore repair' names it"
        raise Corrupt(error.where, error.why, hint=hint) from None


def _needs(names: Names, doomed: Sequence[StoredVersion]) -> dict[str, Needs]:
    """Return what each version needs, without versions whose record is bad."""
    needs = {}
    for version in doomed:
        with contextlib.suppress(Corrupt):
            needs[version.text] = names.needs(version)
    return needs


def _clear_leftovers(parts: Parts) -> None:
    """Doom blobs that ended puts left, because they may be of the name that is erased.

    It costs nothing if there are none. A running put that was about to reuse such a blob stores it again.
    """
    seen = parts.marks.leftovers()
    if seen or parts.ledger.abandoned():
        parts.recover()
        _delete_unneeded(parts, foreclose_abandoned(parts))
        parts.marks.leftovers_cleared(seen)


def _delete_unneeded(parts: Parts, survey: Survey) -> int:
    mine = parts.catalog.keys.prefix
    return len(parts.garbage.delete(key for key, _ in survey.unneeded if key.startswith(mine)))
