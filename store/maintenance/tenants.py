"""Tenants: lists, adds and removes the tenants of one store."""

from dataclasses import dataclass, replace

from ...formats.keypage import Tenant
from ..catalog.catalog import Catalog
from ..errors import BadInput, Conflict
from ..parts import Parts
from ..staging.tenant_tiers import Tiers
from .stats import Holding, holding


@dataclass(frozen=True, slots=True)
class Tenants:
    """The tenants of a store that is open as one of them."""

    parts: Parts
    tiers: Tiers

    def all(self) -> list[Tenant]:
        return list(self.parts.keyring.tenants().values())

    def add(self, name: str, quota_bytes: int = 0) -> None:
        """Make a tenant with keys of its own; raise Conflict if the name is taken."""
        self.parts.keyring.add_tenant(name, open_keys=not self.parts.config.encrypted, quota_bytes=quota_bytes)

    def remove(self, name: str, *, erase: bool = False, dry_run: bool = False) -> Holding:
        """Remove a tenant; with `erase` its artifacts too, by destroying all its keys at once. Durable on return.

        Raises Conflict if it has artifacts and `erase` is not given, BadInput for the tenant the store is opened as,
        and Fenced, before anything is destroyed, if a process uses a staged copy of its artifacts.
        """
        p = self.parts
        p.keyring.refresh()  # another process may have put for the tenant
        number, tenant = p.keyring.tenant(name)
        if number == p.keys.number:
            raise BadInput(f"tenant {name}", "is the one the store is opened as; use --tenant with another")
        gone = holding(Catalog(p.tables, number, tenant.index_key))
        gone = replace(gone, keys=len(p.keyring.slots(number)))
        if gone.artifacts and not erase:
            why = f"has artifacts: {gone.artifacts}, {gone.stored_bytes} bytes stored"
            raise Conflict(f"tenant {name}", why, hint="add --erase to destroy them with it")
        if dry_run:
            return gone
        self.tiers.wipe_before_erase(tenant, None)
        with p.spending_reserve():
            p.keyring.make_room(1)
            p.garbage.drop_tenant(number)  # before its keys, so that a removal that is killed can be run again
            p.keyring.remove_tenant(number)
            p.garbage.drop_tenant(number)  # rows of what was put meanwhile
        return replace(gone, still_staged=tuple(self.tiers.drop_after_erase(tenant, None)))
