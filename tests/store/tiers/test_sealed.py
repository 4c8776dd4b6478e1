"""Sealed extents: what is foreign, damaged or written to by others is never served."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from arstore import Store
from arstore.store.errors import Corrupt
from arstore.store.kv.prefix import Loaded, Prefix
from arstore.store.kv.prefix_part import PrefixPart
from arstore.store.tiers import sealed as sealed_room
from arstore.store.tiers.head import Head, parse_head
from tests.support.fresh_memory import memory
from tests.support.tier_faults import given
from tests.support.tier_places import (
    KV_NAMES,
    MINE,
    OTHERS,
    SHARED,
    left,
    local_of,
    open_arena,
    put_all,
    small_steps,
    store,
)
from tests.support.tier_suite import THIRD, A, B, part, whole

__all__ = ["memory", "small_steps", "store"]  # fixtures


def test_bytes_that_others_write_while_an_extent_is_filled_are_never_sealed(memory: Path, small_steps: None) -> None:
    def foreign(_: int) -> None:
        [partial_] = memory.rglob("*.partial")
        with partial_.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"evil")

    arena = open_arena("shared", memory)
    held = arena.fill(A, given(), on_bytes=foreign)
    with pytest.raises(Corrupt):
        whole(held)


def test_kv_goes_up_to_be_sealed_layer_by_layer(
    store: Store, tmp_path: Path, memory: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long sequence no more than that has room in memory."""
    [key] = [store.get(name).summary.id for name in KV_NAMES[:1] if put_all(store, tmp_path)]
    held = local_of(store, KV_NAMES[0]).hold(key)
    assert held
    loads: list[Any] = []
    real = Prefix.load

    def load(self: Prefix, part: PrefixPart, into: memoryview | None = None) -> Loaded:
        loads.append(part.layers)
        return real(self, part, into)

    monkeypatch.setattr(Prefix, "load", load)
    monkeypatch.setattr(sealed_room, "_WINDOW_SUMS", 1)
    arena = open_arena("shared", memory)
    assert whole(arena.fill(key, held)) == whole(held)
    loads = [one for one in loads if one is not None]  # the last one was that of `whole`
    numbers = sorted({layer for one in loads for layer in one})
    assert loads == [[number] for number in numbers]
    assert len(numbers) > 1


Damage = Callable[[bytes, Path], bytes]


def sealed_as(tenant: bytes, memory: Path, key: str = A) -> bytes:
    arena = open_arena("shared", memory / "away", tenant)
    arena.fill(key, given())
    content = (arena.directory / f"{key}.extent").read_bytes()
    arena.remove(key)
    return content


def swapped(content: bytes, first: int, second: int, length: int) -> bytes:
    taken = bytearray(content)
    taken[first : first + length], taken[second : second + length] = (
        content[second : second + length], content[first : first + length],
    )  # fmt: skip
    return bytes(taken)


def swap_sums(content: bytes, _: Path) -> bytes:
    at = content.index(b'"sums"') + len(b'"sums": ["')
    return swapped(content, at, at + 68, 64)


def too_few_sums(content: bytes, memory: Path) -> bytes:
    arena, wanted = open_arena("shared", memory), given()
    seal = arena._seal
    assert seal
    head, _ = parse_head(memory, content, len(content), seal)
    return replace(head, sums=head.sums[:-1]).packed(seal) + wanted.content


def unsigned(content: bytes, memory: Path) -> bytes:
    wanted = given()
    return Head(A, wanted.name, tuple(wanted.spans), THIRD).packed() + wanted.content


def signed_by_nobody(content: bytes, _: Path) -> bytes:
    """Return an extent of which nothing was changed but what its first tensor is."""
    table = content[48 : 48 + int.from_bytes(content[8:16], "little")].replace(b'"U8"', b'"I8"')
    return content[:16] + blake3(table).digest() + table + content[48 + len(table) :]


DAMAGE: dict[str, Damage] = {
    "another tenant's seal": lambda content, memory: sealed_as(OTHERS, memory),
    "another key": lambda content, memory: sealed_as(MINE, memory, B),
    "not sealed at all": unsigned,
    "a table signed by nobody": signed_by_nobody,
    "swapped sums": swap_sums,
    "too few sums": too_few_sums,
    "swapped chunks": lambda content, _: swapped(content, len(content) - THIRD, len(content) - THIRD + 1000, 1000),
    "no byte": lambda content, _: b"",
    "zeros": lambda content, _: bytes(len(content)),
    "cut": lambda content, _: content[:-1],
    "cut in the head": lambda content, _: content[:100],
    "longer": lambda content, _: content + b"x",
    "bytes of another": lambda content, memory: content[:-THIRD] + sealed_as(MINE, memory)[-THIRD:],
}


@SHARED
@pytest.mark.parametrize("how", DAMAGE)
def test_a_foreign_or_damaged_extent_is_never_served(how: str, memory: Path, small_steps: None) -> None:
    (memory / "away").mkdir(mode=0o700)
    arena = open_arena("shared", memory)
    arena.fill(A, given())
    extent = arena.directory / f"{A}.extent"
    extent.write_bytes(DAMAGE[how](extent.read_bytes(), memory))
    assert [one.key for one in arena.residents()] == [A]  # so that it can be taken away
    if held := arena.hold(A):
        for at, length in ((0, THIRD), (0, 1), (999, 2), (1500, 1)):
            with pytest.raises(Corrupt):
                part(held, at, length)
        del held
        assert arena.remove(A)
    assert (arena.hold(A), left(arena.directory)) == (None, [])
    assert whole(arena.fill(A, wanted := given())) == wanted.content


@SHARED
def test_one_flipped_bit_anywhere_is_seen(memory: Path, small_steps: None) -> None:
    wanted, arena = given(2500), open_arena("shared", memory)
    arena.fill(A, wanted)
    extent, served = arena.directory / f"{A}.extent", list[int]()
    sound = extent.read_bytes()
    table_stop = 48 + int.from_bytes(sound[8:16], "little")
    for at in [*range(0, table_stop, 3), *range(table_stop, 4096, 199), *range(4096, len(sound), 17)]:
        extent.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        with contextlib.suppress(Corrupt):
            if held := arena.hold(A):
                assert whole(held) == wanted.content
                served.append(at)
    assert all(table_stop <= at < 4096 for at in served), "only what lies between table and data says nothing"


@SHARED
def test_a_held_extent_that_others_write_to_is_an_error_and_no_other_bytes(memory: Path, small_steps: None) -> None:
    wanted, arena = given(), open_arena("shared", memory)
    held = arena.fill(A, wanted)
    extent = arena.directory / f"{A}.extent"
    with extent.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([wanted.content[-1] ^ 1]))
        file.flush()
        assert part(held, 0, THIRD - 1000) == wanted.content[:-1000]
        for first in (THIRD - 1, 0):
            with pytest.raises(Corrupt):
                part(held, first, THIRD - first)
        for length in (THIRD, 100, 0):
            file.truncate(length)
            with pytest.raises(Corrupt):
                whole(held)
