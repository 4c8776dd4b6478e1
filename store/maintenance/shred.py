"""Shred: destroys the record keys that are doomed, whoever doomed them."""

from contextlib import suppress

from ...formats.row_keys import tenant_of
from ..artifacts.drop import released, remove
from ..artifacts.names import StoredVersion
from ..catalog.garbage import Survey
from ..errors import NoRoom, ReadOnly
from ..locks import locked
from ..parts import Parts


def foreclose_abandoned(parts: Parts) -> Survey:
    """Doom the keys that killed puts used and no row needs; return the survey of the catalog that this took."""
    with locked(parts.directory):  # meanwhile nobody takes in records of these keys
        loans = parts.ledger.abandoned()
        asked = {(tenant_of(loan), slot) for loan, slots in loans.items() for slot in slots}
        survey = parts.garbage.survey(asked)
        for loan, slots in loans.items():
            parts.ledger.foreclose(loan, slots, survey.needed_slots)
    return survey


def shred(parts: Parts) -> int:
    """Destroy every doomed key, durably; return how many that were."""
    with locked(parts.directory):  # meanwhile nobody takes in a record of a doomed key
        doomed = parts.ledger.doomed()
        if doomed:
            parts.keyring.destroy(doomed)
            with suppress(NoRoom):  # the next open destroys them once more, which changes nothing
                parts.ledger.forget(doomed)
    return sum(map(len, doomed.values()))


def finish_shred(parts: Parts) -> None:
    """Destroy what an erase that was killed left doomed. A store that can't be written is still read."""
    with suppress(ReadOnly, NoRoom), parts.spending_reserve():
        shred(parts)


class Removed(list[StoredVersion]):
    """The versions that were dropped, how many keys went with them, and the bytes that the next collections free."""

    keys_destroyed = freed_bytes = 0


def remove_for_good(parts: Parts, name: str, *, all_versions: bool, dry_run: bool) -> Removed:
    """Drop a version, or all versions of a name, and destroy the keys of their records. Durable on return.

    Without the keys, a rebuilt catalog does not have the names again. Blobs that nothing else needs become garbage.
    """
    removed = Removed(remove(parts.names, name, all_versions=all_versions, dry_run=True))
    places = [version.row.place for version in removed]
    places += [row.place for row in released(parts.names, removed)]
    removed.freed_bytes = sum(place.record_bytes for place in places)
    removed.keys_destroyed = sum(version.row.place.slot != 0 for version in removed)
    if not dry_run:
        with parts.spending_reserve():
            parts.keyring.make_room(len(removed))
            removed[:] = remove(parts.names, name, all_versions=all_versions, dry_run=False)
            removed.keys_destroyed = shred(parts)
    return removed
