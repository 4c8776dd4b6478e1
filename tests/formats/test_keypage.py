"""Key pages: tenant, inner and root pages come back, and hostile bytes give FormatError."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arstore.formats.digest import derive
from arstore.formats.frames import (
    seal,
)
from arstore.formats.keypage import (
    DEPTH_MAX,
    FAN_OUT,
    PAGE_BYTES,
    PageRef,
    Root,
    Tenant,
    open_page,
    open_root,
    pack_children,
    parse_children,
    parse_tenant,
    seal_page,
    seal_root,
    slot_key,
)
from tests.support.fuzz import FUZZ, KEY16, KEY32, U32, U64, decoded, mutated

REFS = st.builds(PageRef, U32.filter(bool), st.integers(0, DEPTH_MAX), KEY32)


TENANT_NAMES = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=32)


TENANTS = st.builds(Tenant, KEY16, TENANT_NAMES, KEY32, KEY32, U64, U64, REFS)


@FUZZ
@given(KEY32, TENANTS, st.data())
def test_tenant_page(key: bytes, tenant: Tenant, data: st.DataObject) -> None:
    page = seal_page(key, tenant.packed())
    assert len(page) == PAGE_BYTES
    assert parse_tenant(open_page(key, page)) == tenant
    bad = data.draw(mutated(page) | st.binary(max_size=40))
    assume(bad != page)
    assert decoded(open_page, key, bad) is None
    assert decoded(open_page, derive(key, "x"), page) is None
    hostile = open_page(key, seal_page(key, data.draw(mutated(tenant.packed()) | st.binary(max_size=300))))
    found = decoded(parse_tenant, hostile)
    assert found is None or found.keys.depth <= DEPTH_MAX


@pytest.mark.parametrize("body", [bytes(100), bytes(PAGE_BYTES - 15)], ids=["short", "long"])
def test_a_page_has_one_length(body: bytes) -> None:
    """A page of another length that opens would be parsed past its end."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    page = AESGCM(bytes(32)).encrypt(bytes(12), body, b"arstore key page")
    assert decoded(open_page, bytes(32), page) is None


@FUZZ
@given(KEY32, st.dictionaries(st.integers(0, FAN_OUT - 1), REFS, max_size=5), st.integers(1, DEPTH_MAX))
def test_inner_page(key: bytes, children: dict[int, PageRef], depth: int) -> None:
    children = {number: replace(child, depth=depth - 1) for number, child in children.items()}
    assert parse_children(open_page(key, seal_page(key, pack_children(children))), depth) == children


@FUZZ
@given(st.binary(max_size=4080), st.integers(1, DEPTH_MAX), st.integers(0, 2**40))
def test_any_body_as_inner_or_leaf_page(body: bytes, depth: int, slot: int) -> None:
    opened = open_page(bytes(32), seal_page(bytes(32), body))
    for number, child in parse_children(opened, depth).items():
        assert 0 <= number < FAN_OUT
        assert child.position
    key = slot_key(opened, slot)
    assert key is None or (len(key) == 32 and any(key))


@FUZZ
@given(KEY32, KEY16, st.builds(Root, U64, REFS, U32, KEY32), st.data())
def test_key_root(master: bytes, store_id: bytes, root: Root, data: st.DataObject) -> None:
    nonce = data.draw(st.binary(min_size=12, max_size=12))
    slot = seal_root(master, store_id, root, nonce)
    assert len(slot) == PAGE_BYTES
    assert open_root(master, store_id, slot) == root
    assert decoded(open_root, master, derive(store_id, "x", 16), slot) is None
    bad = data.draw(mutated(slot[:109]) | st.binary(max_size=130))
    assume(bad[:109] != slot[:109])
    assert decoded(open_root, master, store_id, bad) is None
    hostile = seal(
        master,
        f"key root {store_id.hex()}",
        data.draw(st.binary(max_size=100) | st.binary(min_size=81, max_size=81)),
        nonce,
    )
    found = decoded(open_root, master, store_id, hostile)
    assert found is None or found.directory.depth <= DEPTH_MAX
