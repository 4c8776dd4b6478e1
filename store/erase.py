"""Erase: the keys of what nothing else needs are destroyed, so that its bytes are noise wherever copies of them lie.

drop and doom in one transaction -> new key tree root -> old root effaced, all synced -> doomed list cleared. Killed
before the new root, the next open finishes it; from then on no version of any page leads to the keys.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from ..formats.digest import Digest
from .catalog import Catalog
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


def erase(
    names: Names, catalog: Catalog, keyring: Keyring, ledger: SlotLedger, doomed: Iterable[Found], level: str
) -> Receipt:
    """Erase versions for good; on return nothing in the store opens what only they needed.

    Cost grows with the pages of the key tree that are touched, not with the bytes erased.
    """
    texts: list[str] = []
    needed: set[Digest] = set()
    erased = 0
    for found in doomed:
        blobs = frozenset(blob.digest for blob in names.manifest(found).blobs)
        erased += catalog.drop(found.summary.name, found.summary.version, blobs, shred=True)
        needed |= blobs
        texts.append(found.text)
    keys = shred(keyring, ledger)
    catalog.erase_finished()
    shared = len(catalog.find_blobs(needed))
    return Receipt(secrets.token_hex(8), tuple(texts), erased, shared, keys, keyring.epoch, level)


def shred(keyring: Keyring, ledger: SlotLedger) -> int:
    """Destroy every doomed key, durably; return how many that were."""
    doomed = ledger.doomed()
    if doomed:
        keyring.destroy(doomed)
        for tenant, slots in doomed.items():
            ledger.forget(tenant, slots)
    return sum(map(len, doomed.values()))
