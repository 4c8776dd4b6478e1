"""Erase: the keys of what nothing else needs are destroyed, so that its bytes are noise wherever copies of them lie.

drop and doom in one transaction -> new key tree root -> old root effaced, all synced -> doomed list cleared. Killed
before the new root, the next open of the store finds the doomed list and finishes it; from then on no version of any
page leads to the keys.
"""

import contextlib
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...formats.manifest import Needs
from ..artifacts.drop import recount_needs, settle_claims
from ..artifacts.names import Found, Names
from ..catalog.garbage import Survey
from ..errors import BadInput, Corrupt
from ..kv.key_bounds import bounds_name
from ..parts import Parts
from ..staging.tenant_tiers import Tiers
from .shred import foreclose_abandoned, shred


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erase destroyed. `level` says against whom it holds.

    `still_staged` are copies that a process made in the middle of it and uses, and tiers that failed in it.
    """

    id: str
    versions: tuple[str, ...]
    blobs_erased: int
    blobs_shared: int
    keys_destroyed: int
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
    if "@" not in name and any(found.summary.kind == "kv" for found in doomed):
        doomed += parts.names.versions(bounds_name(name))  # minimum and maximum of the very keys
    return _foretell(parts, doomed) if dry_run else _erase(parts, tiers, doomed)


def _erase(parts: Parts, tiers: Tiers, doomed: Sequence[Found]) -> Receipt:
    needs = _needs(parts.names, doomed)  # before the first is dropped
    if len(needs) < len(doomed):  # of some the record is bad: what no other version needs was theirs
        _count_without(parts, doomed, needs, dry_run=False)
    ids = {found.summary.id for found in doomed}
    blocks = {id_.hex() for one in needs.values() for id_, _ in one.claims}
    staged = None if "" in ids else ids | blocks  # of one that can't be opened nobody knows which copy is its
    tiers.wipe_before_erase(parts.keys.tenant, staged)
    _clear_leftovers(parts)
    erased = 0
    if len(needs) < len(doomed):
        erased += _delete_unneeded(parts, parts.garbage.survey())
    for found in doomed:
        one = found.summary
        erased += parts.catalog.drop(one.name, one.version, needs.get(found.text, Needs()), shred=True)
    keys = shred(parts)
    settle_claims(parts.names, needs.values())
    used = tiers.drop_after_erase(parts.keys.tenant, staged)  # what was staged meanwhile
    shared = len(parts.catalog.find_blobs({digest for one in needs.values() for digest in one.blobs}))
    level = _OUTSIDE if parts.config.root_file is not None else _INSIDE
    texts = tuple(found.text for found in doomed)
    return Receipt(secrets.token_hex(8), texts, erased, shared, keys, parts.keyring.epoch, level, tuple(used))


def _foretell(parts: Parts, doomed: Sequence[Found]) -> Receipt:
    """Return the receipt that an erase would give, destroying nothing."""
    needs = _needs(parts.names, doomed)
    if len(needs) < len(doomed):
        _count_without(parts, doomed, needs, dry_run=True)
    counts = Counter(digest for one in needs.values() for digest in one.blobs)
    rows = parts.catalog.find_blobs(counts)
    erased = sum(row.refs <= counts[digest] for digest, row in rows.items())
    texts = tuple(found.text for found in doomed)
    return Receipt("dry-run", texts, erased, len(rows) - erased, 0, parts.keyring.epoch, "nothing was erased")


def _count_without(
    parts: Parts, doomed: Sequence[Found], needs: Mapping[str, Needs], *, dry_run: bool
) -> None:  # fmt: skip
    """Count what all versions need but those whose record is bad; raise Corrupt if one more is bad than is doomed."""
    try:
        recount_needs(parts.names, {found.row.place for found in doomed if found.text not in needs}, dry_run=dry_run)
    except Corrupt as error:
        hint = "'rm' the other damaged version first: 'arstore repair' names it"
        raise Corrupt(error.where, error.why, hint=hint) from None


def _needs(names: Names, doomed: Sequence[Found]) -> dict[str, Needs]:
    """Return what versions need, without those whose record is bad."""
    needs = {}
    for found in doomed:
        with contextlib.suppress(Corrupt):
            needs[found.text] = names.needs(found)
    return needs


def _clear_leftovers(parts: Parts) -> None:
    """Doom what ended puts left, of the very name that is erased perhaps. Free where there is nothing.

    A running put that was about to reuse such a blob stores it again.
    """
    seen = parts.marks.leftovers()
    if seen or parts.ledger.abandoned():
        parts.recover()
        _delete_unneeded(parts, foreclose_abandoned(parts))
        parts.marks.leftovers_cleared(seen)


def _delete_unneeded(parts: Parts, survey: Survey) -> int:
    mine = parts.catalog.keys.prefix
    return len(parts.garbage.delete(key for key, _ in survey.unneeded if key.startswith(mine)))
