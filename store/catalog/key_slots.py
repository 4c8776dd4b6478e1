"""Key slots: which record keys are lent to running puts, which are spare, and which must be destroyed.

Invariant: when a transaction drops the last need of a record, it also dooms the record's key. So no ciphertext outside
the catalog can be read once the doomed keys are destroyed. A running put holds the lock of its loan. A put that was
killed leaves a loan without a lock, and the next collection dooms those of its keys that no row refers to.
"""

import os
import threading
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from ...formats.catalog import pack_slots, parse_slots
from ...formats.row_keys import doomed_key, loan_key, loan_lock_offset, tenant_key, tenant_of
from ..disk import Disk
from ..errors import StorageFailed
from ..locks import is_byte_locked, try_lock_byte, unlock_byte
from .tables import Rows, Tables

TABLES = ("loans", "spare", "doomed")


def doom(rows: Rows, tenant: int, slots: Iterable[int]) -> None:
    """Put keys on the list of those to be destroyed. Call it in the transaction that drops the last need of them."""
    batch = sorted(set(slots) - {0})  # 0: the record is plain and has no key
    if batch:  # one row holds all: with a row each, an erase of thousands of blobs would spend most of its time here
        key = doomed_key(tenant, batch[0])
        listed = parse_slots(rows.get("doomed", key) or b"")
        rows.put("doomed", key, pack_slots(sorted({*listed, *batch})))


def doomed_slots(rows: Rows, tenant: int) -> set[int]:
    """Return the slots of a tenant whose keys are to be destroyed. Nothing that they sealed may be taken in again."""
    return {slot for _, value in rows.scan("doomed", tenant_key(tenant)) for slot in parse_slots(value)}


class SlotLedger:
    """The slots of one store. Every method is one transaction. `locks` is the file whose bytes stand for loans."""

    def __init__(self, tables: Tables, locks: Path, disk: Disk) -> None:
        self._tables, self._locks, self._disk = tables, locks, disk
        self._fd: int | None = None  # the first loan opens it, because reading a store must not make a file in it
        self._guard = threading.Lock()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def borrow_spare(self, tenant: int, most: int) -> tuple[bytes, list[int]]:
        """Open a loan of up to `most` spare slots of a tenant; return the loan and the slots."""
        loan = loan_key(tenant, os.urandom(8))
        if not try_lock_byte(self._lock_file(), loan_lock_offset(loan)):
            raise StorageFailed("loan", "its lock is held")  # two loans got one number of 64 bits

        def change(rows: Rows) -> list[int]:
            spare = parse_slots(rows.get("spare", tenant_key(tenant)) or b"")
            rows.put("spare", tenant_key(tenant), pack_slots(spare[most:]))
            rows.put("loans", loan, pack_slots(spare[:most]))
            return spare[:most]

        return loan, self._tables.write(change)

    def extend(self, loan: bytes, slots: Iterable[int]) -> None:
        """Add freshly reserved slots to a loan, before the first of them is used."""

        def change(rows: Rows) -> None:
            lent = parse_slots(rows.get("loans", loan) or b"")
            rows.put("loans", loan, pack_slots([*lent, *slots]))

        self._tables.write(change)

    def close_loan(self, loan: bytes, spare: list[int], unneeded: Iterable[int]) -> None:
        """End a loan. `spare` slots, which sealed nothing, go to the next put, and `unneeded` ones are doomed.

        Nothing happens if the loan has ended already.
        """
        tenant = tenant_of(loan)

        def change(rows: Rows) -> None:
            if rows.get("loans", loan) is None:  # a collection and its own put may end a loan at the same time
                return
            before = parse_slots(rows.get("spare", tenant_key(tenant)) or b"")
            rows.put("spare", tenant_key(tenant), pack_slots(before + spare))
            doom(rows, tenant, unneeded)
            rows.delete("loans", loan)

        self._tables.write(change)
        unlock_byte(self._lock_file(), loan_lock_offset(loan))

    def abandoned(self) -> dict[bytes, list[int]]:
        """Return the loans whose process is gone, with their slots."""
        loans = {key: parse_slots(value) for key, value in self._tables.scan("loans", b"")}
        if not loans or not self._locks.exists():
            return loans
        fd = os.open(self._locks, os.O_RDWR | os.O_CLOEXEC)  # this description also sees the locks of this process
        try:
            return {key: slots for key, slots in loans.items() if not is_byte_locked(fd, loan_lock_offset(key))}
        finally:
            os.close(fd)

    def foreclose(self, loan: bytes, slots: Iterable[int], needed: Set[tuple[int, int]]) -> None:
        """End the loan of a put that was killed. Its slots are doomed but for the (tenant, slot) pairs in `needed`."""
        tenant = tenant_of(loan)
        self.close_loan(loan, [], [slot for slot in slots if (tenant, slot) not in needed])

    def doomed(self) -> dict[int, set[int]]:
        """Return the slots whose keys are to be destroyed, by tenant."""
        with self._tables.reading() as rows:
            tenants = {tenant_of(key) for key, _ in rows.scan("doomed", b"")}
            return {tenant: doomed_slots(rows, tenant) for tenant in tenants}

    def forget(self, destroyed: Mapping[int, Set[int]]) -> None:
        """Take slots whose keys are destroyed off the list, by tenant."""

        def change(rows: Rows) -> None:
            for tenant, slots in destroyed.items():
                for key, value in list(rows.scan("doomed", tenant_key(tenant))):
                    rows.delete("doomed", key)
                    doom(rows, tenant, set(parse_slots(value)) - slots)  # the row may list newer ones too

        self._tables.write(change)

    def _lock_file(self) -> int:
        with self._guard:
            if self._fd is None:
                self._fd = self._disk.open(self._locks, create=True)
            return self._fd
