"""Key slots: loans that their puts end, loans of puts that are gone, and the list of keys to be destroyed."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from arstore.store.catalog.key_slots import SlotLedger, doom
from arstore.store.catalog.tables import Tables
from arstore.store.disk import Disk
from tests.support.catalog_rows import ALL_TABLES

TENANT = 5


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    return tmp_path / "loans"


@pytest.fixture
def ledger(tables: Tables, locks: Path) -> Iterator[SlotLedger]:
    with closing(SlotLedger(tables, locks, Disk())) as ledger:
        yield ledger


def keys_of(tables: Tables, table: str) -> list[bytes]:
    with tables.reading() as rows:
        return [key for key, _ in rows.scan(table, b"")]


def test_spare_slots_go_to_the_next_loan(ledger: SlotLedger) -> None:
    loan, slots = ledger.borrow_spare(TENANT, 10)
    assert slots == []
    ledger.extend(loan, [1, 2, 3, 4])
    ledger.close_loan(loan, [3, 4], [])
    assert ledger.borrow_spare(TENANT, 1)[1] == [3]
    assert ledger.borrow_spare(TENANT, 10)[1] == [4]
    assert ledger.borrow_spare(TENANT, 10)[1] == []


def test_the_spare_slots_of_a_tenant_are_not_lent_to_another(ledger: SlotLedger) -> None:
    loan, _ = ledger.borrow_spare(TENANT, 0)
    ledger.close_loan(loan, [1], [])
    assert ledger.borrow_spare(TENANT + 1, 10)[1] == []


def test_what_a_loan_did_not_need_is_doomed(ledger: SlotLedger) -> None:
    loan, _ = ledger.borrow_spare(TENANT, 0)
    ledger.extend(loan, [1, 2, 3])
    ledger.close_loan(loan, [3], [2, 1])
    assert ledger.doomed() == {TENANT: {1, 2}}


def test_a_loan_ends_once(ledger: SlotLedger) -> None:
    loan, _ = ledger.borrow_spare(TENANT, 0)
    ledger.close_loan(loan, [1], [])
    ledger.close_loan(loan, [], [1])
    assert ledger.doomed() == {}
    assert ledger.borrow_spare(TENANT, 10)[1] == [1]


def test_a_loan_is_abandoned_when_its_opener_is_gone(tables: Tables, locks: Path, ledger: SlotLedger) -> None:
    running, _ = ledger.borrow_spare(TENANT, 0)
    with closing(SlotLedger(tables, locks, Disk())) as other:
        ended, _ = other.borrow_spare(TENANT, 0)
        other.extend(ended, [1, 2])
        assert ledger.abandoned() == other.abandoned() == {}
    assert ledger.abandoned() == {ended: [1, 2]}
    ledger.close()  # as the end of its process does
    ledger._fd = None
    assert ledger.abandoned() == {ended: [1, 2], running: []}


def test_loans_whose_locks_file_is_gone_are_abandoned(ledger: SlotLedger, locks: Path) -> None:
    loan, _ = ledger.borrow_spare(TENANT, 0)
    locks.unlink()
    assert ledger.abandoned() == {loan: []}


def test_foreclosing_dooms_what_no_row_refers_to(ledger: SlotLedger) -> None:
    loan, _ = ledger.borrow_spare(TENANT, 0)
    ledger.extend(loan, [1, 2, 3])
    ledger.foreclose(loan, [1, 2, 3], {(TENANT, 2), (TENANT + 1, 3)})
    assert ledger.doomed() == {TENANT: {1, 3}}
    assert ledger.abandoned() == {}


def test_reading_makes_no_locks_file(ledger: SlotLedger, locks: Path) -> None:
    assert (ledger.abandoned(), ledger.doomed()) == ({}, {})
    assert not locks.exists()


def test_what_was_doomed_meanwhile_is_not_forgotten(ledger: SlotLedger, tables: Tables) -> None:
    tables.write(lambda rows: doom(rows, TENANT, [4, 9]))
    destroyed = ledger.doomed()
    tables.write(lambda rows: doom(rows, TENANT, [4, 6]))  # in the same row
    tables.write(lambda rows: doom(rows, TENANT, [7]))
    tables.write(lambda rows: doom(rows, TENANT + 1, [4]))
    ledger.forget(destroyed)
    assert ledger.doomed() == {TENANT: {6, 7}, TENANT + 1: {4}}


def test_slots_that_are_doomed_together_take_one_row(tables: Tables) -> None:
    tables.write(lambda rows: doom(rows, TENANT, range(1, 1000)))
    tables.write(lambda rows: doom(rows, TENANT, [1, 2000]))
    assert len(keys_of(tables, "doomed")) == 1


def test_a_plain_record_has_no_key_to_doom(tables: Tables) -> None:
    tables.write(lambda rows: doom(rows, TENANT, [0, 0]))
    assert [keys_of(tables, table) for table in ALL_TABLES] == [[]] * len(ALL_TABLES)
