"""The key tree: a radix tree of sealed key pages in one file, updated by shadow writes only.

Invariant: a page that the durable root can reach is never overwritten. `Shadow` writes changed pages to positions
that the root doesn't reach, and returns a new reference. The change counts once a root with that reference is durable.
"""

import os
from collections import defaultdict
from collections.abc import Mapping

from ...formats.errors import FormatError
from ...formats.frames import KEY_BYTES
from ...formats.keypage import (
    DEPTH_MAX,
    FAN_OUT,
    LEAF_SLOTS,
    PAGE_BYTES,
    PageRef,
    open_page,
    pack_children,
    parse_children,
    seal_page,
    slot_key,
)
from ..disk import Disk

NONE = PageRef()


def read_page(fd: int, ref: PageRef) -> bytes:
    """Return the body of the page at `ref`; raise FormatError if another version of the page lies there."""
    return open_page(ref.key, os.pread(fd, PAGE_BYTES, ref.position * PAGE_BYTES))


def find_leaf(fd: int, root: PageRef, number: int) -> bytes | None:
    """Return the body of leaf `number`, or None where the tree has none."""
    ref = root
    if not ref.position or number >= FAN_OUT**ref.depth:
        return None
    while ref.depth:
        child, number = divmod(number, FAN_OUT ** (ref.depth - 1))
        child_ref = parse_children(read_page(fd, ref), ref.depth).get(child)
        if child_ref is None:
            return None
        ref = child_ref
    return read_page(fd, ref)


def leaf_refs(fd: int, root: PageRef) -> dict[int, PageRef]:
    """Return where every leaf lies, by number. Only inner pages are read."""
    if not root.position:
        return {}
    if not root.depth:
        return {0: root}
    span = FAN_OUT ** (root.depth - 1)
    leaves = {}
    for child, ref in parse_children(read_page(fd, root), root.depth).items():
        leaves.update({child * span + number: leaf for number, leaf in leaf_refs(fd, ref).items()})
    return leaves


def reached(fd: int, root: PageRef) -> set[int]:
    """Return the positions of all pages of a tree, leaves included. Only inner pages are read."""
    if not root.position:
        return set()
    positions = {root.position}
    if root.depth:
        for ref in parse_children(read_page(fd, root), root.depth).values():
            positions |= {ref.position} if not ref.depth else reached(fd, ref)
    return positions


def changed_leaves(fd: int, root: PageRef, keys: Mapping[int, bytes | None]) -> dict[int, bytes | None]:
    """Return the changed leaves of a tree of record keys when slots get these keys. A key of None empties its slot.

    A leaf that has no key left is None. A slot to be emptied that is in no leaf is ignored.
    """
    leaves: dict[int, bytearray] = {}
    for slot, key in keys.items():
        number = slot // LEAF_SLOTS
        if number not in leaves:
            body = find_leaf(fd, root, number)
            if body is None and key is None:
                continue
            leaves[number] = bytearray(body or bytes(LEAF_SLOTS * KEY_BYTES))
        start = slot % LEAF_SLOTS * KEY_BYTES
        leaves[number][start : start + KEY_BYTES] = key or bytes(KEY_BYTES)
    return {number: bytes(body) if any(body) else None for number, body in leaves.items()}


def filled_slots(fd: int, root: PageRef) -> list[int]:
    """Return every slot of a tree of record keys that holds a key."""
    filled: list[int] = []
    for number, ref in leaf_refs(fd, root).items():
        body = read_page(fd, ref)
        slots = range(number * LEAF_SLOTS, (number + 1) * LEAF_SLOTS)
        filled += [slot for slot in slots if slot_key(body, slot)]
    return filled


class Shadow:
    """New versions of pages, kept in memory until `flush`. They replace none that the current root reaches."""

    def __init__(self, fd: int, used: set[int], disk: Disk) -> None:
        self._fd, self._disk = fd, disk
        self._used = used | {0}  # position 0 means "none" in a reference
        self._next = 0
        self._dirty: dict[int, bytes] = {}

    def update(self, root: PageRef, leaves: dict[int, bytes | None]) -> PageRef:
        """Return the root of the tree with these leaves changed. A leaf of None is removed."""
        while max(leaves) >= FAN_OUT**root.depth or (root.position == 0 and root.depth == 0 and max(leaves) > 0):
            if root.depth == DEPTH_MAX:
                raise FormatError("key tree is full")
            above = root.depth + 1
            root = self._write(pack_children({0: root}), above) if root.position else PageRef(0, above)
        return self._update(root, leaves)

    def flush(self) -> None:
        """Write the new pages and make them durable."""
        for position, page in sorted(self._dirty.items()):
            self._disk.write_at(self._fd, page, position * PAGE_BYTES)
        self._dirty.clear()
        self._disk.sync(self._fd)

    def _update(self, ref: PageRef, leaves: dict[int, bytes | None]) -> PageRef:
        if not ref.depth:
            body = leaves[0]
            return NONE if body is None else self._write(body, 0)
        children = parse_children(self._read(ref), ref.depth) if ref.position else {}
        span = FAN_OUT ** (ref.depth - 1)
        by_child: dict[int, dict[int, bytes | None]] = defaultdict(dict)
        for number, body in leaves.items():
            by_child[number // span][number % span] = body
        for child, leaves_below in by_child.items():
            changed = self._update(children.get(child, PageRef(0, ref.depth - 1)), leaves_below)
            if changed.position:
                children[child] = changed
            else:
                children.pop(child, None)
        return self._write(pack_children(children), ref.depth) if children else PageRef(0, 0)

    def _read(self, ref: PageRef) -> bytes:
        page = self._dirty.get(ref.position)
        return open_page(ref.key, page) if page else read_page(self._fd, ref)

    def _write(self, body: bytes, depth: int) -> PageRef:
        while self._next in self._used:
            self._next += 1
        self._used.add(self._next)
        key = os.urandom(KEY_BYTES)
        self._dirty[self._next] = seal_page(key, body)
        return PageRef(self._next, depth, key)
