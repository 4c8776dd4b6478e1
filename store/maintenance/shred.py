"""Shred: record keys that are doomed, destroyed. Who doomed them does not matter here."""

from ...formats.row_keys import tenant_of
from ..artifacts.drop import remove
from ..artifacts.names import Found
from ..catalog.garbage import Survey
from ..disk import locked
from ..parts import Parts


def foreclose_abandoned(parts: Parts) -> Survey:
    """Doom what killed puts sealed and no row stands on; return the survey of the catalog that this took."""
    with locked(parts.directory):  # nobody takes in what a killed put left while its keys are judged
        loans = parts.ledger.abandoned()
        asked = {(tenant_of(loan), slot) for loan, slots in loans.items() for slot in slots}
        survey = parts.garbage.survey(asked)
        for loan, slots in loans.items():
            parts.ledger.foreclose(loan, slots, survey.needed_slots)
    return survey


def shred(parts: Parts) -> int:
    """Destroy every doomed key, durably; return how many that were."""
    with locked(parts.directory):  # nobody is taking in a record of such a key just now
        doomed = parts.ledger.doomed()
        if doomed:
            parts.keyring.destroy(doomed)
            parts.ledger.forget(doomed)
    return sum(map(len, doomed.values()))


def remove_for_good(parts: Parts, name: str, *, all_versions: bool, dry_run: bool) -> list[Found]:
    """Drop a version, or all of a name, and destroy the keys of their records: a rebuilt catalog has no such names.

    What nothing else needs becomes garbage, collected later. Durable on return.
    """
    removed = remove(parts.names, name, all_versions=all_versions, dry_run=dry_run)
    if not dry_run:
        shred(parts)
    return removed
