"""Key supply: record keys for one put. Each key is durable before it seals a byte."""

import threading
from collections.abc import Set

from ..catalog.key_slots import SlotLedger
from ..keys.keyring import Keyring

_RESERVE_MIN, _RESERVE_MAX = 16, 4096


class SlotSupply:
    """Record keys that are durable: first those that earlier puts left over, then new ones in growing batches.

    Threads share it.
    """

    def __init__(self, keyring: Keyring, ledger: SlotLedger, tenant: int, *, encrypted: bool) -> None:
        self._keyring, self._ledger, self._tenant, self._encrypted = keyring, ledger, tenant, encrypted
        self._ready: list[tuple[int, bytes]] = []
        self._used: list[int] = []
        self._loan: bytes | None = None
        self._batch = _RESERVE_MIN
        self._guard = threading.Lock()

    def take(self, count: int) -> list[tuple[int, bytes | None]]:
        """Return `count` slots with their keys. In a store without encryption that is slot 0 and no key."""
        if not self._encrypted:
            return [(0, None)] * count
        with self._guard:
            if self._loan is None:
                self._loan, spare = self._ledger.borrow_spare(self._tenant, _RESERVE_MAX)
                self._ready += [(slot, self._keyring.key(self._tenant, slot)) for slot in spare]
            if (short := count - len(self._ready)) > 0:
                made = self._keyring.reserve(self._tenant, max(short, self._batch))
                self._ledger.extend(self._loan, [slot for slot, _ in made])
                self._ready += made
                self._batch = min(2 * self._batch, _RESERVE_MAX)
            taken, self._ready = self._ready[:count], self._ready[count:]
            self._used += [slot for slot, _ in taken]
        return list(taken)

    def end_loan(self, needed: Set[int]) -> None:
        """End the loan: unused keys go to the next put. Used keys whose slots are not in `needed` are doomed."""
        if self._loan is not None:
            spare = [slot for slot, _ in self._ready]
            self._ledger.close_loan(self._loan, spare, [slot for slot in self._used if slot not in needed])
            self._ready, self._used, self._loan = [], [], None
