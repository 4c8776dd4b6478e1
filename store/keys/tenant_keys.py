"""Tenant keys: the keys of one tenant, and the record keys that it has in the key tree."""

from dataclasses import dataclass

from ...formats.catalog import Place
from ...formats.keypage import Tenant
from ...formats.record import PLAIN
from ..config import Config
from ..errors import Corrupt
from .keyring import Keyring

MISSING = "is missing: its segment was not there when the catalog was made anew"


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """One tenant: its number, its own keys, and the keyring with its record keys."""

    number: int
    tenant: Tenant
    keyring: Keyring
    encrypted: bool

    def key(self, place: Place) -> bytes | None:
        """Return the key of a record, None if the record is plain.

        Raises Corrupt if the key is gone, or if the record is plain in an encrypted store or the other way round.
        """
        if place.is_missing:
            raise Corrupt("record", MISSING)
        if (place.protection == PLAIN) == self.encrypted:
            where = f"record in segment {place.segment:016x} at byte {place.offset}"
            raise Corrupt(where, "plain in an encrypted store, or encrypted in a plain one")
        if place.protection == PLAIN:
            return None
        return self.keyring.key(self.number, place.slot)


def every_tenant(keyring: Keyring, config: Config) -> dict[bytes, TenantKeys]:
    """Return the keys of all tenants by tenant id."""
    tenants = keyring.tenants().items()
    return {tenant.id: TenantKeys(number, tenant, keyring, config.encrypted) for number, tenant in tenants}
