"""Tenants: one of them removed, with everything it has where that is asked for."""

from collections.abc import Callable
from dataclasses import replace

from ..catalog.catalog import Catalog
from ..catalog.garbage import Garbage
from ..catalog.tables import Tables
from ..errors import BadInput, Conflict
from ..keys.keyring import Keyring
from .stats import Holding, holding


def remove_tenant(
    tables: Tables, garbage: Garbage, keyring: Keyring, own_number: int, name: str, forget: Callable[..., list[str]], *,
    erase: bool, dry_run: bool,
) -> Holding:  # fmt: skip
    """Remove a tenant; with `erase` its artifacts too, by destroying every key of it at once. Durable on return.

    `forget` wipes what is staged of a tenant, see `Tiers.forget`; it raises Fenced, before anything is destroyed.
    Raises Conflict if it has artifacts and `erase` is not given, BadInput for the tenant the store is opened as.
    """
    number, tenant = keyring.tenant(name)
    if number == own_number:
        raise BadInput(f"tenant {name}", "is the one the store is opened as; use --tenant with another")
    gone = holding(Catalog(tables, number, tenant.index_key))
    if gone.artifacts and not erase:
        why = f"has artifacts: {gone.artifacts}, {gone.stored_bytes} bytes stored"
        raise Conflict(f"tenant {name}", why, hint="add --erase to destroy them with it")
    if dry_run:
        return gone
    forget(tenant)
    garbage.drop_tenant(number)  # before its keys: killed between, the tenant is there to be removed again
    keyring.remove_tenant(number)
    garbage.drop_tenant(number)  # what was put meanwhile
    return replace(gone, still_staged=tuple(forget(tenant, late=True)))  # and staged
