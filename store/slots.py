"""Slots: which record keys are lent to running puts, which are left over, and which must be destroyed.

Invariant: a key that may have sealed bytes which nothing needs is doomed in the transaction that drops the need, so
that destroying doomed keys leaves no readable ciphertext outside the catalog. A put that was killed leaves its loan
behind; the next collection sees that its process is gone and dooms what the catalog does not refer to.

    loans    tenant u32, random (8)  -> process (36), slots u64 each
    spare    tenant u32              -> slots u64 each: durable keys that never sealed anything
    doomed   tenant u32, slot u64    -> slots u64 each, in order; the first of them is the key's
"""

import secrets
import struct
from collections.abc import Iterable, Mapping, Set

from ..formats.errors import FormatError
from ..formats.lease import PROCESS_BYTES, ProcessId, parse_process
from .lease import sees_dead
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
    """The slots of one store; every method is one transaction."""

    def __init__(self, tables: Tables, process: ProcessId) -> None:
        self._tables, self._process = tables, process

    def borrow_spare(self, tenant: int, most: int) -> tuple[bytes, list[int]]:
        """Open a loan of up to `most` left-over slots of a tenant; return the loan and the slots."""
        loan = _U32.pack(tenant) + secrets.token_bytes(8)

        def change(rows: Rows) -> list[int]:
            spare = _slots(rows.get("spare", _U32.pack(tenant)) or b"")
            rows.put("spare", _U32.pack(tenant), _packed(spare[most:]))
            self._write_loan(rows, loan, spare[:most])
            return spare[:most]

        return loan, self._tables.write(change)

    def extend(self, loan: bytes, slots: Iterable[int]) -> None:
        """Add freshly reserved slots to a loan, before the first of them is used."""

        def change(rows: Rows) -> None:
            value = rows.get("loans", loan)
            before = _slots(value[PROCESS_BYTES:]) if value else []
            self._write_loan(rows, loan, [*before, *slots])

        self._tables.write(change)

    def settle(self, loan: bytes, spare: list[int], unneeded: Iterable[int]) -> None:
        """End a loan: what sealed nothing is spare, what sealed bytes that nothing needs is doomed."""
        tenant = loan[:4]

        def change(rows: Rows) -> None:
            before = _slots(rows.get("spare", tenant) or b"")
            rows.put("spare", tenant, _packed(before + spare))
            doom(rows, _U32.unpack(tenant)[0], unneeded)
            rows.delete("loans", loan)

        self._tables.write(change)

    def abandoned(self) -> dict[bytes, list[int]]:
        """Return the loans whose process is gone, with their slots."""
        with self._tables.reading() as rows:
            loans = [(key, value) for key, value in rows.scan("loans", b"")]
        return {
            key: _slots(value[PROCESS_BYTES:])
            for key, value in loans
            if sees_dead(self._process, parse_process(value[:PROCESS_BYTES]))
        }

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

    def _write_loan(self, rows: Rows, loan: bytes, slots: list[int]) -> None:
        rows.put("loans", loan, self._process.packed() + _packed(slots))


def _slots(packed: bytes) -> list[int]:
    if len(packed) % _U64.size:
        raise FormatError("slot list is cut short")
    return [slot for (slot,) in _U64.iter_unpack(packed)]


def _packed(slots: list[int]) -> bytes:
    return b"".join(map(_U64.pack, slots))
