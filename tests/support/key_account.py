"""What the keys of a tenant are there for, by its catalog: a key that nothing accounts for is one that was lost."""

from arstore import Store
from arstore.formats.catalog import parse_blob, parse_slots, parse_version


def unaccounted(store: Store) -> set[int]:
    """Return the slots whose keys no row, loan or spare list knows of; assert that none is missing."""
    parts = store._parts
    parts.keyring.refresh()
    prefix = parts.catalog.keys.prefix
    with parts.tables.reading() as rows:
        used = {parse_blob(value).place.slot for _, value in rows.scan("blobs", prefix)}
        used |= {parse_version(value).place.slot for _, value in rows.scan("versions", prefix)}
        spare = set(parse_slots(rows.get("spare", prefix) or b""))
        lent = {slot for _, value in rows.scan("loans", prefix) for slot in parse_slots(value)}
    there = set(parts.keyring.slots(parts.keys.number))
    assert used | spare <= there if parts.config.encrypted else not there
    return there - (used | spare | lent)
