"""Catalog rows: each comes back from its bytes, and hostile bytes give FormatError."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arstore.formats.catalog import (
    BlobRow,
    Named,
    NamedRow,
    Place,
    SegmentRow,
    VersionRow,
    close_row,
    open_row,
    parse_blob,
    parse_named,
    parse_segment,
    parse_version,
)
from arstore.formats.digest import Digest, derive
from arstore.formats.frames import (
    FRAME_MAX_BYTES,
)
from arstore.formats.lease import PURPOSE_MAX_BYTES, LeaseRow, ProcessId, parse_lease, parse_process
from arstore.formats.record import (
    PLAIN_MAX_BYTES,
)
from tests.support import spec_identity
from tests.support.fuzz import FUZZ, KEY16, KEY32, U32, U64, decoded, mutated

PLACES = st.builds(
    Place, U64, U64, U64, st.integers(0, PLAIN_MAX_BYTES), U64, KEY16, st.integers(1, FRAME_MAX_BYTES),
    st.integers(0, 3), st.integers(0, 1),
)  # fmt: skip


NAMED = st.builds(Named, U32, st.lists(KEY32.map(Digest), max_size=3).map(tuple), st.binary(max_size=50))


PROCESSES = st.builds(ProcessId, KEY16, U32, U64, U64)


ASCII = st.characters(max_codepoint=127)


ROWS: list[tuple[Callable[..., Any], st.SearchStrategy[Any]]] = [
    (parse_blob, st.builds(BlobRow, PLACES, U32, st.integers(0, 1), U32, U64, U64)),
    (parse_version, st.builds(VersionRow, PLACES, st.booleans(), st.binary(max_size=200), U64, U32)),
    (parse_named, st.builds(NamedRow, NAMED, U32)),
    (parse_segment, st.builds(SegmentRow, st.integers(0, 255), U64, U64)),
    (parse_lease, st.builds(LeaseRow, U64, U64, KEY16, PROCESSES, U64, st.text(ASCII, max_size=PURPOSE_MAX_BYTES))),
    (parse_process, PROCESSES),
]


@pytest.mark.parametrize(("parse", "rows"), ROWS, ids=["blob", "version", "identity", "segment", "lease", "process"])
@FUZZ
@given(data=st.data(), check_key=KEY32, table=st.sampled_from(["blobs", "loans", ""]), key=st.binary(max_size=28))
def test_catalog_row(
    parse: Callable[..., Any], rows: st.SearchStrategy[Any], data: st.DataObject, check_key: bytes, table: str,
    key: bytes,
) -> None:  # fmt: skip
    row = data.draw(rows)
    ids = [data.draw(KEY32)] if parse is parse_named else []
    value = close_row(check_key, table, key, row.packed(*ids))
    assert parse(open_row(check_key, table, key, value), *ids) == row
    assert decoded(open_row, check_key, table, key + b"\0", value) is None
    assert decoded(open_row, check_key, table + "s", key, value) is None
    assert decoded(open_row, check_key, table[:-1], table[-1:].encode() + key, value) is None or not table
    assert decoded(open_row, derive(check_key, "x"), table, key, value) is None
    bad = data.draw(mutated(value) | st.binary(max_size=20))
    assume(bad != value)
    assert decoded(open_row, check_key, table, key, bad) is None

    hostile = data.draw(mutated(row.packed(*ids)) | st.binary(max_size=160))
    found = decoded(parse, hostile, *ids)
    if found is not None:
        assert found.packed(*ids) == hostile
        if isinstance(found, BlobRow | VersionRow):
            assert found.place.record_bytes >= 0


@FUZZ
@given(st.builds(NamedRow, NAMED, U32), KEY32, KEY32)
def test_an_identity_row_says_nothing_without_its_id(row: NamedRow, id_: bytes, other: bytes) -> None:
    assume(id_ != other)
    packed = row.packed(id_)
    assert decoded(parse_named, packed, other) != row
    assert decoded(parse_named, packed, bytes(32)) != row or id_ == bytes(32)
    about = row.named.about
    assert not any(bytes(digest) in packed for digest in row.named.blobs)
    assert len(about) < 8 or about not in packed
    assert spec_identity.parse_identity(packed, id_) == (row.refs, row.named.tokens, list(row.named.blobs), about)


@FUZZ
@given(
    st.builds(BlobRow, PLACES, st.integers(1, 2**32 - 2), st.integers(0, 1), U32, U64, U64), st.sampled_from([1, -1])
)
def test_a_need_that_comes_or_goes_ends_a_condemnation(row: BlobRow, change: int) -> None:
    changed = row.referred(change)
    assert (changed.refs, changed.condemned_cycle, changed.condemned_s) == (row.refs + change, 0, 0)
    assert replace(changed, refs=row.refs) == replace(row, condemned_cycle=0, condemned_s=0)


@FUZZ
@given(st.builds(LeaseRow, U64, U64, KEY16, PROCESSES, U64, st.just("put")))
def test_a_released_lease_has_no_owner_and_keeps_its_epoch(row: LeaseRow) -> None:
    released = parse_lease(row.released().packed())
    assert not released.held
    assert replace(released, owner=row.owner) == row
    assert row.held == any(row.owner)
