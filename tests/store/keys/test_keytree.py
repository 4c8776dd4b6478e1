"""The key tree: leaves come back whatever its depth, and pages that a root reaches are never overwritten."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arstore.formats.errors import FormatError
from arstore.formats.keypage import FAN_OUT, LEAF_SLOTS, PAGE_BYTES, PageRef
from arstore.store.disk import Disk
from arstore.store.keys.keytree import (
    NONE,
    Shadow,
    changed_leaves,
    filled_slots,
    find_leaf,
    leaf_refs,
    reached,
    read_page,
)

Leaves = dict[int, bytes | None]


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "pages", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def updated(pages: int, root: PageRef, leaves: Leaves) -> PageRef:
    """Commit leaves as the keyring does: over pages that the root does not reach."""
    shadow = Shadow(pages, reached(pages, root), Disk())
    root = shadow.update(root, leaves)
    shadow.flush()
    return root


def leaves_of(pages: int, root: PageRef) -> dict[int, bytes]:
    return {number: read_page(pages, ref)[:8] for number, ref in leaf_refs(pages, root).items()}


def body(text: str) -> bytes:
    return text.encode().ljust(8, b"\0")


def test_an_empty_tree(pages: int) -> None:
    assert find_leaf(pages, NONE, 0) is None
    assert leaf_refs(pages, NONE) == {}
    assert reached(pages, NONE) == set()
    assert filled_slots(pages, NONE) == []


@pytest.mark.parametrize(
    ("number", "depth"), [(0, 0), (1, 1), (FAN_OUT - 1, 1), (FAN_OUT, 2), (FAN_OUT**2 - 1, 2), (FAN_OUT**2, 3)]
)
def test_a_tree_is_as_deep_as_its_last_leaf_needs(pages: int, number: int, depth: int) -> None:
    root = updated(pages, NONE, {number: body("last")})
    assert root.depth == depth
    assert leaves_of(pages, root) == {number: body("last")}
    assert find_leaf(pages, root, number + 1) is None
    assert len(reached(pages, root)) == depth + 1


def test_a_tree_that_grows_keeps_its_leaves(pages: int) -> None:
    root = NONE
    wanted: dict[int, bytes] = {}
    for number in (0, 5, FAN_OUT, FAN_OUT**2):
        wanted[number] = body(str(number))
        root = updated(pages, root, {number: wanted[number]})
        assert leaves_of(pages, root) == wanted


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(st.integers(0, 300), st.one_of(st.none(), st.text("ab", min_size=1, max_size=4)), min_size=1)
    )
)
def test_updates_are_those_of_a_dict(pages: int, steps: list[dict[int, str | None]]) -> None:
    root = NONE
    wanted: dict[int, bytes] = {}
    for step in steps:
        before, known = root, dict(wanted)
        root = updated(pages, root, {number: body(text) if text else None for number, text in step.items()})
        for number, text in step.items():
            if text:
                wanted[number] = body(text)
            else:
                wanted.pop(number, None)
        assert leaves_of(pages, root) == wanted
        assert leaves_of(pages, before) == known  # until the new root is durable, the old one must open
        for number in step:
            leaf = find_leaf(pages, root, number)
            assert (leaf and leaf[:8]) == wanted.get(number)


def test_nothing_is_written_before_the_flush(pages: int) -> None:
    shadow = Shadow(pages, set(), Disk())
    root = shadow.update(shadow.update(NONE, {0: body("first")}), {1: body("second")})
    assert os.fstat(pages).st_size == 0
    shadow.flush()
    assert leaves_of(pages, root) == {0: body("first"), 1: body("second")}


def test_pages_of_an_old_tree_are_used_again(pages: int) -> None:
    root = updated(pages, NONE, {0: body("0")})
    for number in range(1, 20):
        root = updated(pages, root, {0: body(str(number))})
    assert os.fstat(pages).st_size <= 4 * PAGE_BYTES


def test_an_old_reference_opens_no_page_that_was_used_again(pages: int) -> None:
    old = updated(pages, NONE, {0: body("old")})
    root = updated(pages, old, {0: body("new")})
    updated(pages, root, {0: body("newer")})  # lies where the old page was
    with pytest.raises(FormatError):
        read_page(pages, old)


def test_a_tree_has_eight_levels_at_most(pages: int) -> None:
    with pytest.raises(FormatError, match="full"):
        updated(pages, NONE, {FAN_OUT**8: body("beyond")})


def test_record_keys_are_set_and_emptied_by_slot(pages: int) -> None:
    first, second = bytes([1]) * 32, bytes([2]) * 32
    keys = {1: first, LEAF_SLOTS - 1: second, LEAF_SLOTS: first}
    root = updated(pages, NONE, changed_leaves(pages, NONE, keys))
    assert filled_slots(pages, root) == [1, LEAF_SLOTS - 1, LEAF_SLOTS]
    changed = changed_leaves(pages, root, {1: None, LEAF_SLOTS: None, 50 * LEAF_SLOTS: None})
    assert changed.keys() == {0, 1}
    assert changed[1] is None  # no key is left in it
    root = updated(pages, root, changed)
    assert filled_slots(pages, root) == [LEAF_SLOTS - 1]
    assert leaf_refs(pages, root).keys() == {0}
