"""Prefixes: every part of one comes back as arrays sliced by hand, and reads little more than itself."""

import itertools
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arstore import BadInput, NotFound, Store, create_store, open_store
from arstore.formats.kv_shape import heads_of
from arstore.store.kv.prefix import Prefix
from tests.support.kv_made import IDENTITY, Array, made, raw
from tests.support.kv_store import TOKENS, put, store

__all__ = ["store"]  # a fixture


def test_any_layers_heads_and_positions(store: Store) -> None:
    arrays = made(TOKENS, heads=4)
    store.kv.put(arrays, name="chat", tokens=TOKENS, identity=IDENTITY)
    hit = store.longest_prefix(TOKENS, IDENTITY)
    for layers, (a, b), heads in itertools.product(([0], [2, 1]), ((0, 1), (15, 17), (16, 64), (3, 70)), (1, 2, 4)):
        for rank in range(heads):
            part = partial(heads_of, rank, heads)
            wanted = {
                name: one[a:b, part(4).start : part(4).stop]
                for name, one in arrays.items() if int(name.split(".")[1]) in layers
            }  # fmt: skip
            assert raw(hit.tensors(layers=layers, positions=(a, b), heads=part)) == raw(wanted)
    for bad in ((0, 71), (5, 5), (6, 5), (-1, 5)):
        with pytest.raises(BadInput, match="the prefix has 70 tokens"):
            hit.tensors(positions=bad)
    with pytest.raises(BadInput, match="are not in this shape"):
        hit.tensors(layers=[3])
    with pytest.raises(BadInput, match="layout 'other' is not known"):
        hit.tensors(layout="other")
    with pytest.raises(BadInput, match="do not divide each other"):
        hit.tensors(heads=partial(heads_of, 0, 3))


def test_chosen_positions_alone(store: Store) -> None:
    arrays = made(TOKENS)
    put(store, "chat", TOKENS)
    hit = store.longest_prefix(TOKENS, IDENTITY)
    for chosen in ([0], [69], [5, 3, 4, 3], [15, 16, 31, 33, 69], list(range(70))):
        wanted = {name: one[sorted(set(chosen))] for name, one in arrays.items()}
        assert raw(hit.select(chosen)) == raw(wanted)
        assert raw(hit.select(chosen, layers=[1], layout="packed")) == raw(
            {"layers.1.kv": np.stack([wanted["layers.1.key"], wanted["layers.1.value"]])}
        )
    for bad in ([], [70], [-1], [0, 70]):
        with pytest.raises(BadInput, match="not all of 0 to 69"):
            hit.select(bad)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[int], dict[str, Array]]]:
    """One sequence of four blocks of 256 tokens, 8 layers of 8 heads of 128: a head of a block is 64 KiB."""
    path = tmp_path_factory.mktemp("large")
    tokens = list(range(4 * 256))
    chance = np.random.default_rng(1)
    arrays: dict[str, Array] = {
        f"layers.{n}.{side}": chance.integers(0, 1 << 16, (1024, 8, 128), np.uint16).view(np.float16)
        for n in range(8) for side in ("key", "value")
    }  # fmt: skip
    create_store(path / "store", key_file=path / "key")
    with open_store(path / "store", key_file=path / "key") as store:
        store.kv.put(arrays, name="chat", tokens=tokens, identity=LARGE)
        yield store, tokens, arrays


LARGE = {"model": "llama", "revision": "r1", "precision": "fp16"}


Large = tuple[Store, list[int], dict[str, Array]]


def hit_of(large: Large) -> Prefix:
    return large[0].longest_prefix(large[1], LARGE)


def test_one_stored_copy_serves_every_parallelism(large: Large) -> None:
    for rank, world in [(n, of) for of in (1, 2, 4, 8) for n in range(of)]:
        hit = hit_of(large)
        tensors = hit.tensors(heads=partial(heads_of, rank, world), layers=[0, 7])
        share = slice(8 // world * rank, 8 // world * (rank + 1))
        wanted = {name: one[:, share] for name, one in large[2].items() if name[7] in "07"}
        assert raw(tensors) == raw(wanted)
        selected = sum(one.nbytes for one in wanted.values())
        if 8 // world * 256 * 128 * 2 >= 256 << 10:  # a share of one side of one block
            assert selected < hit.bytes_read <= 1.1 * selected
        else:
            assert hit.bytes_read <= 1.1 * selected * (256 << 10) / (8 // world * 64 << 10)


@pytest.mark.parametrize(
    "part", [{"layers": [3]}, {"layers": [0, 5]}, {"positions": (256, 512)}, {"positions": (0, 768), "layers": [7]}]
)
def test_a_part_reads_little_more_than_itself(large: Large, part: Mapping[str, Any]) -> None:
    hit = hit_of(large)
    selected = sum(one.numel() * one.element_size() for one in hit.tensors(**part).values())
    assert selected < hit.bytes_read <= 1.1 * selected


def test_positions_read_only_the_blocks_they_lie_in(large: Large) -> None:
    hit = hit_of(large)
    hit.select([0, 255, 600], layers=[1])
    assert hit.bytes_read <= 1.1 * 2 * 256 * 8 * 128 * 2 * 2
    hit = hit_of(large)
    hit.tensors(positions=(300, 301), layers=[1])
    assert hit.bytes_read <= 1.1 * 256 * 8 * 128 * 2 * 2


def test_layers_come_in_order_and_the_first_after_its_own_bytes(large: Large) -> None:
    total = sum(one.nbytes for one in large[2].values())
    hit = hit_of(large)
    for turn, (number, tensors) in enumerate(hit.stream(ahead=0)):
        assert number == turn
        assert raw(tensors) == raw({name: large[2][name] for name in (f"layers.{turn}.key", f"layers.{turn}.value")})
        assert (turn + 1) * total / 8 <= hit.bytes_read <= 1.1 * (turn + 1) * total / 8
    hit = hit_of(large)
    assert next(iter(hit.stream()))[0] == 0
    assert hit.bytes_read <= 1.1 * total * 3 / 8  # its own, and what was read ahead meanwhile
    assert [number for number, _ in hit_of(large).stream(layers=[5, 2])] == [5, 2]
    with pytest.raises(BadInput, match="not in this shape"):
        next(hit.stream(layers=[8]))


def test_a_stream_that_is_left_leaves_no_thread_and_reads_no_further(large: Large) -> None:
    before = set(threading.enumerate())
    hit = hit_of(large)
    stream = hit.stream(ahead=6)
    next(stream)
    stream.close()
    assert set(threading.enumerate()) <= before
    assert hit.bytes_read < sum(one.nbytes for one in large[2].values()) / 2
    for _ in hit_of(large).stream():
        break
    assert set(threading.enumerate()) <= before


def test_only_kv_is_opened_as_kv(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    store.put(tmp_path / "file", name="text")
    with pytest.raises(BadInput, match="text@1: is file, not kv"):
        store.kv.open("text")
    with pytest.raises(NotFound):
        store.kv.open("nothing")


def test_what_is_removed_while_it_is_read_is_not_found(store: Store) -> None:
    put(store, "chat", TOKENS)
    hit = store.longest_prefix(TOKENS, IDENTITY)
    store.erase("chat")
    with pytest.raises(NotFound, match="was removed while it was read"):
        hit.tensors()
