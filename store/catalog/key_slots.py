"""Slots: which record keys are lent to running puts, which are left over, and which must be destroyed.

Invariant: a key that may have sealed bytes which nothing needs is doomed in the transaction that drops the need, so
that destroying doomed keys leaves no readable ciphertext outside the catalog. A running put holds a lock that its loan
names; a put that was killed leaves the loan without it, and the next collection dooms what no row stands on.

    loans    tenant u32, random (8)  -> slots u64 each
    spare    tenant u32              -> slots u64 each: durable keys that never sealed anything
    doomed   tenant u32, slot u64    -> slots u64 each, in order; the first of them is the key's
"""

import os
import struct
import threading
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from ...formats.errors import FormatError
from ..disk import Disk, is_byte_locked, lock_byte, unlock_byte
from .tables import Rows, Tables

TABLES = ("loans", "spare", "doomed")
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")


def doom(rows: Rows, tenant: int, slots: Iterable[int]) -> None:
    """Say, inside the transaction that drops the last need of records, that their keys are to be destroyed."""
    batch = sorted(set(slots) - {0})  # 0: the record is plain and has no key
    if batch:  # one row for all: an erase of thousands of blobs would spend most of its time on rows
        key = _U32.pack(tenant) + _U64.pack(batch[0])
        there = _slots(rows.get("doomed", key) or b"")
        rows.put("doomed", key, _packed(sorted({*there, *batch})))


def doomed_slots(rows: Rows, tenant: int) -> set[int]:
    """Return the slots of a tenant whose keys are to be destroyed: what they sealed must not be taken in again."""
    return {slot for _, value in rows.scan("doomed", _U32.pack(tenant)) for slot in _slots(value)}


class SlotLedger:
    """The slots of one store; every method is one transaction. `locks` is the file whose bytes stand for loans."""

    def __init__(self, tables: Tables, locks: Path, disk: Disk) -> None:
        self._tables, self._locks, self._disk = tables, locks, disk
        self._fd: int | None = None  # opened by the first loan: reading a store changes nothing in it
        self._guard = threading.Lock()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)

    def borrow_spare(self, tenant: int, most: int) -> tuple[bytes, list[int]]:
        """Open a loan of up to `most` left-over slots of a tenant; return the loan and the slots."""
        loan = _U32.pack(tenant) + os.urandom(8)
        lock_byte(self._lock_file(), _lock_offset(loan))

        def change(rows: Rows) -> list[int]:
            spare = _slots(rows.get("spare", _U32.pack(tenant)) or b"")
            rows.put("spare", _U32.pack(tenant), _packed(spare[most:]))
            rows.put("loans", loan, _packed(spare[:most]))
            return spare[:most]

        return loan, self._tables.write(change)

    def extend(self, loan: bytes, slots: Iterable[int]) -> None:
        """Add freshly reserved slots to a loan, before the first of them is used."""

        def change(rows: Rows) -> None:
            before = _slots(rows.get("loans", loan) or b"")
            rows.put("loans", loan, _packed([*before, *slots]))

        self._tables.write(change)

    def settle(self, loan: bytes, spare: list[int], unneeded: Iterable[int]) -> None:
        """End a loan unless it has ended: what sealed nothing is spare, what sealed bytes nobody needs is doomed."""
        tenant = loan[:4]

        def change(rows: Rows) -> None:
            if rows.get("loans", loan) is None:  # seen as abandoned while its put was just ending it
                return
            before = _slots(rows.get("spare", tenant) or b"")
            rows.put("spare", tenant, _packed(before + spare))
            doom(rows, _U32.unpack(tenant)[0], unneeded)
            rows.delete("loans", loan)

        self._tables.write(change)
        unlock_byte(self._lock_file(), _lock_offset(loan))

    def abandoned(self) -> dict[bytes, list[int]]:
        """Return the loans whose process is gone, with their slots."""
        with self._tables.reading() as rows:
            loans = {key: _slots(value) for key, value in rows.scan("loans", b"")}
        if not loans or not self._locks.exists():
            return loans
        fd = os.open(self._locks, os.O_RDWR | os.O_CLOEXEC)  # an opening of its own sees the locks of this process too
        try:
            return {key: slots for key, slots in loans.items() if not is_byte_locked(fd, _lock_offset(key))}
        finally:
            os.close(fd)

    def foreclose(self, loan: bytes, slots: Iterable[int], needed: Set[tuple[int, int]]) -> None:
        """End the loan of a put that was killed: every slot that the catalog does not refer to is doomed."""
        tenant = _U32.unpack(loan[:4])[0]
        self.settle(loan, [], [slot for slot in slots if (tenant, slot) not in needed])

    def doomed(self) -> dict[int, set[int]]:
        """Return the slots whose keys are to be destroyed, by tenant."""
        with self._tables.reading() as rows:
            tenants = {_U32.unpack(key[:4])[0] for key, _ in rows.scan("doomed", b"")}
            return {tenant: doomed_slots(rows, tenant) for tenant in tenants}

    def forget(self, destroyed: Mapping[int, Set[int]]) -> None:
        """Strike slots whose keys are destroyed off the list, by tenant."""

        def change(rows: Rows) -> None:
            for tenant, slots in destroyed.items():
                for key, value in list(rows.scan("doomed", _U32.pack(tenant))):
                    rows.delete("doomed", key)
                    doom(rows, tenant, set(_slots(value)) - slots)  # what was doomed meanwhile

        self._tables.write(change)

    def _lock_file(self) -> int:
        with self._guard:
            if self._fd is None:
                self._fd = self._disk.open(self._locks, create=True)
            return self._fd


def _lock_offset(loan: bytes) -> int:
    """Return the byte of the locks file that stands for a loan."""
    return int.from_bytes(loan[-8:], "big") >> 1


def _slots(packed: bytes) -> list[int]:
    if len(packed) % _U64.size:
        raise FormatError("slot list is cut short")
    return [slot for (slot,) in _U64.iter_unpack(packed)]


def _packed(slots: list[int]) -> bytes:
    return b"".join(map(_U64.pack, slots))
