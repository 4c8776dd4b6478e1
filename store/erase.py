"""Erase: the keys of what nothing else needs are destroyed, so that its bytes are noise wherever copies of them lie.

drop and doom in one transaction -> new key tree root -> old root effaced, all synced -> doomed list cleared. Killed
before the new root, the next open finishes it; from then on no version of any page leads to the keys.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.digest import Digest
from .catalog import Catalog
from .disk import locked
from .garbage import Garbage, Survey
from .keyring import Keyring
from .names import Found, Names
from .slots import SlotLedger


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erase destroyed. `level` says against whom it holds."""

    id: str
    versions: tuple[str, ...]
    blobs_erased: int
    blobs_shared: int
    keys_destroyed: int
    root_epoch: int
    level: str


_INSIDE = "against whoever has the store and its key file as they are now; old copies of the store may still open"
_OUTSIDE = (
    "against whoever has every version of every file of the store; old contents of the root file are the exception"
)


def erase(
    directory: Path,
    names: Names,
    catalog: Catalog,
    keyring: Keyring,
    ledger: SlotLedger,
    doomed: Sequence[Found],
    root_outside: bool,
) -> Receipt:
    """Erase versions for good; on return nothing in the store opens what only they needed.

    Cost grows with the pages of the key tree that are touched, not with the bytes erased.
    """
    needs = {found.text: names.needs(found) for found in doomed}  # all readable before the first is dropped
    erased = 0
    for found in doomed:
        one = found.summary
        erased += catalog.drop(one.name, one.version, needs[found.text], shred=True)
    keys = shred(directory, keyring, ledger)
    catalog.erase_finished()
    shared = len(frozenset[Digest]().union(*needs.values())) - erased
    level = _OUTSIDE if root_outside else _INSIDE
    return Receipt(secrets.token_hex(8), tuple(needs), erased, shared, keys, keyring.epoch, level)


def foretell(names: Names, catalog: Catalog, doomed: Sequence[Found], root_epoch: int) -> Receipt:
    """Return the receipt that an erase would give, destroying nothing."""
    counts = Counter(digest for found in doomed for digest in names.needs(found))
    rows = catalog.find_blobs(counts)
    erased = sum(row.refs <= counts[digest] for digest, row in rows.items())
    texts = tuple(found.text for found in doomed)
    return Receipt("dry-run", texts, erased, len(rows) - erased, 0, root_epoch, "nothing was erased")


def foreclose_abandoned(directory: Path, ledger: SlotLedger, garbage: Garbage) -> Survey:
    """Doom what killed puts sealed and no row stands on; return the survey of the catalog that this took."""
    with locked(directory):  # nobody takes in what a killed put left while its keys are judged
        loans = ledger.abandoned()
        asked = {(int.from_bytes(loan[:4], "big"), slot) for loan, slots in loans.items() for slot in slots}
        survey = garbage.survey(asked)
        for loan, slots in loans.items():
            ledger.foreclose(loan, slots, survey.needed_slots)
    return survey


def clear_abandoned(directory: Path, ledger: SlotLedger, garbage: Garbage, recover: Callable[[], int]) -> None:
    """Doom everything that killed puts left, of the very name that is erased perhaps. Free where there were none."""
    if ledger.abandoned():
        recover()
        garbage.delete(key for key, _ in foreclose_abandoned(directory, ledger, garbage).unneeded)


def shred(directory: Path, keyring: Keyring, ledger: SlotLedger) -> int:
    """Destroy every doomed key, durably; return how many that were."""
    with locked(directory):  # nobody is taking in a record of such a key just now
        doomed = ledger.doomed()
        if doomed:
            keyring.destroy(doomed)
            ledger.forget(doomed)
    return sum(map(len, doomed.values()))
