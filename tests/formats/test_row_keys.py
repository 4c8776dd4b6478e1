"""Row keys: their bytes, as FORMAT.md section 9 gives them, and the order that they have in LMDB."""

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from arstore.formats.catalog import pack_count, pack_newest, pack_slots, parse_count, parse_newest, parse_slots
from arstore.formats.digest import Digest
from arstore.formats.errors import FormatError
from arstore.formats.identity import KeyId
from arstore.formats.row_keys import (
    RowKeys,
    doomed_key,
    leftovers_key,
    loan_key,
    loan_lock_offset,
    quarantines_key,
    segment_key,
    segment_of,
    tenant_key,
    tenant_of,
    usage_key,
    version_of,
)
from tests.support.fuzz import U32, U64

KEYS = RowKeys(0x01020304, bytes(range(32)))


def hashed(kind: bytes, subject: bytes) -> bytes:
    """The keyed hash of the specification: for each part its length, u64 little-endian, then the part."""
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in (kind, subject))
    return blake3(framed, key=bytes(range(32))).digest(length=20)


def test_keys_of_one_tenant() -> None:
    prefix = bytes([1, 2, 3, 4])
    subject = bytes(range(100, 132))
    assert KEYS.prefix == tenant_key(0x01020304) == prefix
    assert KEYS.blob(Digest(subject)) == prefix + hashed(b"blob", subject)
    assert KEYS.identity(KeyId(subject)) == prefix + hashed(b"identity", subject)
    assert KEYS.name("llama") == prefix + hashed(b"name", b"llama")
    assert KEYS.version("llama", 258) == prefix + hashed(b"name", b"llama") + bytes([0, 0, 1, 2])
    assert KEYS.lease("llama") == b"name" + prefix + hashed(b"name", b"llama")


def test_keys_that_no_index_key_stands_in() -> None:
    assert segment_key(258) == bytes([0, 0, 0, 0, 0, 0, 1, 2])
    assert doomed_key(5, 258) == bytes([0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 2])
    assert loan_key(5, b"\xff" * 8) == bytes([0, 0, 0, 5]) + b"\xff" * 8
    assert usage_key(5) == b"usage\0\0\0\5"
    assert leftovers_key(5) == b"leftovers\0\0\0\5"
    assert quarantines_key(5) == b"quarantines\0\0\0\5"


def test_every_lock_of_a_loan_is_an_offset_that_a_lock_may_have() -> None:
    assert loan_lock_offset(loan_key(5, b"\xff" * 8)) == 2**63 - 1
    assert loan_lock_offset(loan_key(5, (6).to_bytes(8, "big"))) == 3


@given(U32, U32, U64)
def test_numbers_come_back_from_keys(tenant: int, version: int, segment: int) -> None:
    keys = RowKeys(tenant, bytes(32))
    assert tenant_of(keys.version("llama", version)) == tenant_of(loan_key(tenant, bytes(8))) == tenant
    assert version_of(keys.version("llama", version)) == version
    assert segment_of(segment_key(segment)) == segment


@given(U64, U64, U32, U32)
def test_keys_sort_as_their_numbers_do(first: int, second: int, older: int, newer: int) -> None:
    assert (segment_key(first) < segment_key(second)) == (first < second)
    assert (doomed_key(1, first) < doomed_key(1, second)) == (first < second)
    assert (KEYS.version("llama", older) < KEYS.version("llama", newer)) == (older < newer)


def test_numbers_in_values() -> None:
    assert pack_count(258) == bytes([2, 1, 0, 0, 0, 0, 0, 0])
    assert pack_newest(258) == bytes([0, 0, 1, 2])
    assert pack_slots([1, 258]) == bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2])


@given(U64, U32, st.lists(U64))
def test_values_come_back(count: int, version: int, slots: list[int]) -> None:
    assert parse_count(pack_count(count)) == count
    assert parse_newest(pack_newest(version)) == version
    assert parse_slots(pack_slots(slots)) == slots


@pytest.mark.parametrize("length", [0, 7, 9])
def test_a_counter_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match="counter"):
        parse_count(bytes(length))


@pytest.mark.parametrize("length", [0, 3, 5])
def test_a_newest_version_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match="version number"):
        parse_newest(bytes(length))


def test_a_list_of_slots_that_is_cut_short_is_refused() -> None:
    with pytest.raises(FormatError, match="slot list"):
        parse_slots(bytes(15))
