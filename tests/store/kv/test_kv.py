"""Prefix KV through the library: put, matched, read back in every part and layout, against arrays sliced by hand."""

import itertools
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from arstore import BadInput, Conflict, Corrupt, NotFound, Store, StoreError, create_store, open_store
from arstore.formats.catalog import LIVE, QUARANTINED, BlobRow
from arstore.formats.kv_layout import LAYOUTS
from arstore.formats.kv_shape import heads_of
from arstore.store.access import rebuild_catalog
from arstore.store.disk import Disk
from arstore.store.kv.prefix import Prefix
from arstore.store.maintenance.collect import AT_ONCE
from arstore.store.maintenance.retention import Retention
from tests.support.kv_made import IDENTITY, Array, Arrays, made, raw
from tests.support.mortal_disk import killed
from tests.support.plunder import Scene, canary, found

BLOCK = 16
TOKENS = [7 * n % 251 for n in range(70)]  # four blocks and six tokens


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    create_store()
    with open_store() as opened:
        yield opened


def put(store: Store, name: str, tokens: list[int], *, salt: int = 0, **more: Any) -> Any:
    return store.kv.put(made(tokens, salt=salt), name=name, tokens=tokens, identity=IDENTITY, **more)


def match(store: Store, tokens: Any, **other: object) -> int:
    return store.longest_prefix(tokens, IDENTITY | other).tokens_count


def answer(store: Store, tokens: list[int]) -> Any:
    return raw(store.longest_prefix(tokens, IDENTITY).tensors())


# ---- put, match, get


def test_what_was_put_comes_back_bit_for_bit(store: Store) -> None:
    stored = put(store, "chat", TOKENS)
    assert (stored.summary.kind, stored.summary.model) == ("kv", "llama")
    hit = store.longest_prefix(TOKENS, IDENTITY)
    assert (hit.tokens_count, hit.blocks_count, hit.layers, bool(hit)) == (70, 5, (0, 1, 2), True)
    arrays = made(TOKENS)
    assert any(np.isnan(one.astype(np.float32)).any() for one in arrays.values())
    assert raw(hit.tensors()) == raw(arrays)
    assert raw(store.kv.open("chat").tensors()) == raw(arrays)
    assert raw(store.longest_prefix(np.array(TOKENS, np.int64), IDENTITY).tensors()) == raw(arrays)
    assert raw(store.longest_prefix(torch.tensor(TOKENS), IDENTITY).tensors()) == raw(arrays)


def test_the_longest_match_is_whole_blocks_and_a_last_one_only_where_the_sequence_ends(store: Store) -> None:
    put(store, "chat", TOKENS)
    assert match(store, [*TOKENS, 1]) == 64
    for length in range(1, 71):
        assert match(store, TOKENS[:length]) == (70 if length == 70 else length // BLOCK * BLOCK)
    for at in range(70):
        changed = [*TOKENS[:at], 999, *TOKENS[at + 1 :]]
        assert match(store, changed) == at // BLOCK * BLOCK
    put(store, "short", TOKENS[:5])
    assert match(store, TOKENS[:5]) == 5
    assert match(store, TOKENS[:6]) == 0
    miss = store.longest_prefix([1, 2, 3], IDENTITY)
    assert (miss.tokens_count, miss.blocks_count, miss.id, miss.layers, bool(miss)) == (0, 0, "", (), False)
    with pytest.raises(BadInput, match="0 tokens"):
        miss.tensors()


def test_sequences_that_share_a_prefix_store_it_once(store: Store) -> None:
    first = put(store, "first", TOKENS)
    other = [*TOKENS[:40], *range(300, 350)]
    second = put(store, "second", other)
    assert first.blobs_new == 5
    assert (second.blobs_reused, second.blobs_new) == (2, 4)  # of the third block two thirds are the same
    again = put(store, "again", TOKENS)
    assert (again.blobs_reused, again.blobs_new) == (5, 0)
    assert raw(store.kv.open("second").tensors()) == raw(made(other))
    store.erase("first")
    assert answer(store, TOKENS) == raw(made(TOKENS))
    store.erase("again")
    assert match(store, TOKENS) == 32
    assert answer(store, other) == raw(made(other))


def test_every_field_of_the_identity_tells_apart(store: Store) -> None:
    put(store, "chat", TOKENS)
    for other in ({"model": "llama2"}, {"revision": "r2"}, {"adapter": "a"}, {"rope_factor": 8}, {"precision": "bf16"},
                  {"block_tokens": 32}, {"strict": True}):  # fmt: skip
        assert match(store, TOKENS, **other) == 0
    second = IDENTITY | {"revision": "r2"}
    store.kv.put(made(TOKENS, salt=1), name="other", tokens=TOKENS, identity=second)
    assert raw(store.longest_prefix(TOKENS, second).tensors()) == raw(made(TOKENS, salt=1))
    assert answer(store, TOKENS) == raw(made(TOKENS))
    assert match(store, TOKENS, engine="any") == 70  # provenance counts where strict is asked for
    with pytest.raises(BadInput, match="'colour' is not known"):
        match(store, TOKENS, colour="red")
    with pytest.raises(BadInput, match="lacks model, revision"):
        store.longest_prefix(TOKENS, {"precision": "bf16"})
    for size in (0, 65537, 10**18):
        with pytest.raises(BadInput, match=f"block_tokens {size}: wanted 1 to 65536"):
            match(store, TOKENS, block_tokens=size)


def test_two_tenants_never_meet(store: Store) -> None:
    store.tenants.add("guests")
    put(store, "chat", TOKENS)
    with open_store(tenant="guests") as guests:
        assert match(guests, TOKENS) == 0
        assert put(guests, "chat", TOKENS).blobs_reused == 0
        mine, theirs = (one.longest_prefix(TOKENS, IDENTITY) for one in (store, guests))
        assert mine.id != theirs.id
        store.erase("chat")
        assert (match(store, TOKENS), match(guests, TOKENS)) == (0, 70)
    store.tenants.remove("guests", erase=True)
    with store._parts.tables.reading() as rows:
        assert list(rows.scan("identities", b"")) == []


# ---- layouts and parts


@pytest.mark.parametrize("given", LAYOUTS)
def test_every_layout_in_and_out(store: Store, tmp_path: Path, given: str) -> None:
    paged = {"page_tokens": 4} if "paged" in given else {}
    identity = IDENTITY | {"layout": given} | paged
    save_file(made(TOKENS, layout=given), tmp_path / "kv.safetensors")
    store.kv.put(tmp_path / "kv.safetensors", name="chat", tokens=TOKENS, identity=identity)
    hit = store.longest_prefix(TOKENS, identity)
    assert raw(hit.tensors()) == raw(made(TOKENS, layout=given))
    for wanted in LAYOUTS:
        pages = 4 if "paged" in wanted and not paged else None  # where the identity says it, nobody else need
        assert raw(store.kv.open("chat").tensors(layout=wanted, page_tokens=pages)) == raw(made(TOKENS, layout=wanted))
    store.kv.write(hit, tmp_path / "out.safetensors")
    assert raw(load_file(tmp_path / "out.safetensors")) == raw(load_file(tmp_path / "kv.safetensors"))
    store.get_to("chat", tmp_path / "whole.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_pages_are_what_the_identity_says(store: Store, tmp_path: Path) -> None:
    paged = IDENTITY | {"layout": "paged-NHD"}
    for said in ({}, {"page_tokens": 8}):
        with pytest.raises(BadInput, match="page_tokens"):
            store.kv.put(made(TOKENS, layout="paged-NHD"), name="chat", tokens=TOKENS, identity=paged | said)
    assert store.stats().stored_bytes == 0
    flat = IDENTITY | {"page_tokens": 8}  # of the engine, whose pages are not those of the file
    store.kv.put(made(TOKENS), name="chat", tokens=TOKENS, identity=flat)
    hit = store.longest_prefix(TOKENS, flat)
    assert raw(hit.tensors()) == raw(made(TOKENS))
    assert raw(hit.tensors(layout="paged-HND")) == raw(made(TOKENS, layout="paged-HND", page=8))
    store.kv.write(hit, tmp_path / "out")
    assert raw(load_file(tmp_path / "out")) == raw(made(TOKENS))


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


# ---- how much is read


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


# ---- bad input


def spoiled(how: str) -> Arrays:
    arrays: dict[str, Any] = made(TOKENS)
    key = arrays["layers.1.key"]
    changes: dict[str, dict[str, Any]] = {
        "shape": {"layers.1.key": key.swapaxes(0, 1).copy()}, "rank": {"layers.1.key": key.reshape(70, 16)},
        "name": {"layers.x.key": key}, "layer 01": {"layers.01.key": key},
        "dtype": {"layers.1.key": key.view(np.int16)},
        "mixed": {"layers.1.key": key.view(np.uint16)}, "short": {"layers.1.key": key[:69].copy()},
        "strided": {"layers.1.key": np.asfortranarray(key)}, "reversed": {"layers.1.key": key[::-1]},
        "torch strided": {"layers.1.key": torch.from_numpy(np.asfortranarray(key))},
        "big-endian": {name: one.astype(">f2") for name, one in arrays.items()},
        "objects": {"layers.1.key": key.astype(object)}, "list": {"layers.1.key": key.tolist()},
        "nothing": {}, "empty": {"layers.1.key": key[:0].copy()},
        "complex": {"layers.1.key": torch.zeros(70, 2, 8, dtype=torch.complex128)},
        "sparse": {"layers.1.key": torch.from_numpy(key.astype(np.float32)).to_sparse()},
    }  # fmt: skip
    gone = {"no layer": "layers.1", "no value": "layers.1.value", "no first layer": "layers.0", "nothing": "layers"}
    arrays |= changes.get(how, {})
    return {name: one for name, one in arrays.items() if not name.startswith(gone.get(how, "-"))}


SPOILED = {
    "shape": r"layers.1.key is \[2, 70, 8\], wanted \[70, 70, 8\]",
    "rank": r"layers.1.key \[70, 16\] is not of layout NHD",
    "name": "tensor layers.x.key|'layers.x.key' is not layers.N.key", "layer 01": "'layers.01.key' is not",
    "dtype": "holds F16 and I16, wanted one dtype", "mixed": "holds F16 and U16, wanted one dtype",
    "short": r"layers.1.key is \[69, 2, 8\], wanted \[70, 2, 8\] for 70 tokens",
    "strided": "layers.1.key is not contig",
    "reversed": "layers.1.key is not contiguous", "torch strided": "layers.1.key is not contiguous in host memory",
    "big-endian": "dtype >f2 is not known", "objects": "dtype object is not known",
    "list": "layers.1.key is a list, wanted a tensor",
    "complex": "layers.1.key is torch.complex128", "sparse": "layers.1.key is not contiguous in host memory",
    "nothing": "holds nothing", "empty": r"layers.1.key is \[0, 2, 8\]", "no layer": "layer 1 is missing",
    "no value": "layers.1.value is missing", "no first layer": "layer 0 is missing",
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_kv_that_does_not_fit_is_refused_and_nothing_stored(store: Store, how: str) -> None:
    with pytest.raises(BadInput, match=SPOILED[how]) as refused:
        store.kv.put(spoiled(how), name="chat", tokens=TOKENS, identity=IDENTITY)
    assert "\n" not in str(refused.value)
    assert store.stats().stored_bytes == 0
    assert store.ls() == []


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([], "are 0, wanted 1 to"), ([1, -1], "position 1: '-1'"), ([1, 2, 1 << 32], "position 2: '4294967296'"),
        ([1, 2.0], "position 1: '2.0'"), ([True, 1], "position 0: 'True'"), ([1, None], "position 1: 'None'"),
        ([1, "2"], "position 1: '2'"), ([[1], [2]], "position 0"), (np.zeros((2, 2), np.int64), "2 axes"),
        (np.zeros(3), "float64"), (np.array([True]), "bool"), (np.array([1, -5]), "position 1: '-5'"),
        (np.array([1 << 40], np.uint64), "position 0"), (np.array([1, None]), "object"), (np.int64(5), "0 axes"),
        (torch.zeros(3), "float32"), ("1,2", "are str"), (7, "are int"), ([10**400], "position 0"), (b"abc",
        "are bytes"),
        (memoryview(b"abcde"), "bytes"), (np.zeros((1 << 24) + 1, np.uint8), "are 16777217, wanted 1 to 16777216"),
    ],
)  # fmt: skip
def test_bad_tokens_are_refused_by_position(store: Store, tokens: Any, why: str) -> None:
    for ask in (partial(store.longest_prefix, tokens, IDENTITY),
                partial(store.kv.put, made(TOKENS), name="chat", tokens=tokens, identity=IDENTITY)):  # fmt: skip
        with pytest.raises(BadInput, match=why) as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert store.stats().stored_bytes == 0


def test_a_file_that_changes_while_it_is_stored_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "kv.safetensors"
    save_file(made(TOKENS), path)

    def change(advance_bytes: int, total_bytes: int) -> None:
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")

    with pytest.raises(StoreError, match="changed while"):
        store.kv.put(path, name="chat", tokens=TOKENS, identity=IDENTITY, progress=change)
    assert (store.ls(), match(store, TOKENS)) == ([], 0)


def test_what_the_identity_says_of_the_kv_must_be_so(store: Store) -> None:
    for field, value in {"kv_heads": 4, "head_dim": 16, "layers": "0-3"}.items():
        with pytest.raises(BadInput, match="the identity says"):
            store.kv.put(made(TOKENS), name="chat", tokens=TOKENS, identity=IDENTITY | {field: value})
    middle = {name: one for name, one in made(TOKENS).items() if not name.startswith("layers.0")}
    identity = IDENTITY | {"layers": "1-2", "kv_heads": 2, "head_dim": 8}
    store.kv.put(middle, name="stage", tokens=TOKENS, identity=identity)
    hit = store.longest_prefix(TOKENS, identity)
    assert hit.layers == (1, 2)
    assert raw(hit.tensors()) == raw(middle)


def test_only_kv_is_opened_as_kv(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    store.put(tmp_path / "file", name="text")
    with pytest.raises(BadInput, match="text@1: is file, not kv"):
        store.kv.open("text")
    with pytest.raises(NotFound):
        store.kv.open("nothing")


# ---- conflicts


def test_other_bytes_for_an_identity_are_both_kept_and_the_first_answer(store: Store) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict, match="second@1: is stored, but its identity") as refused:
        put(store, "second", [*TOKENS[:64], 5, 6], salt=1)
    assert "\n" not in str(refused.value)
    mine, other = raw(made(TOKENS)), raw(made([*TOKENS[:64], 5, 6], salt=1))
    for change in (lambda: None, lambda: store.gc(AT_ONCE), store.repair):
        change()
        assert answer(store, TOKENS) == mine
        assert match(store, [*TOKENS[:64], 5, 6]) == 64
        assert raw(store.kv.open("second").tensors()) == other
    assert store.repair().corrected == 0


def test_a_conflict_survives_a_rebuild(tmp_path: Path) -> None:
    create_store()
    with open_store() as store:
        put(store, "first", TOKENS)
        with pytest.raises(Conflict):
            put(store, "second", TOKENS, salt=1)
    rebuild_catalog()
    with open_store() as store:
        assert answer(store, TOKENS) == raw(made(TOKENS))
        assert raw(store.kv.open("second").tensors()) == raw(made(TOKENS, salt=1))


@pytest.mark.parametrize("gone", ["first", "second"])
def test_either_side_of_a_conflict_can_be_erased(store: Store, gone: str) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict):
        put(store, "second", TOKENS, salt=1)
    store.erase(gone)
    if gone == "second":
        assert answer(store, TOKENS) == raw(made(TOKENS))
        assert store.repair().corrected == 0
        return
    assert match(store, TOKENS) == 0
    assert raw(store.kv.open("second").tensors()) == raw(made(TOKENS, salt=1))
    assert store.repair().corrected > 0  # what is left answers once the counts are made anew
    assert answer(store, TOKENS) == raw(made(TOKENS, salt=1))


def test_what_came_second_takes_no_claim_with_it_that_it_never_had(store: Store) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict):
        put(store, "second", TOKENS, salt=1)
    store.erase("first")
    put(store, "third", TOKENS, salt=1)
    assert match(store, TOKENS) == 70
    store.erase("second")
    assert answer(store, TOKENS) == raw(made(TOKENS, salt=1))
    store.erase("third")
    assert identity_rows(store) == {}


def test_other_shapes_under_one_identity_are_a_conflict(store: Store) -> None:
    put(store, "first", TOKENS)
    with pytest.raises(Conflict):
        store.kv.put(made(TOKENS[:20], heads=4), name="second", tokens=TOKENS[:20], identity=IDENTITY)
    with pytest.raises(Conflict):
        store.kv.put(made(TOKENS[:20], heads=4), name="third", tokens=TOKENS[:20], identity=IDENTITY, join=True)
    assert raw(store.kv.open("third").tensors()) == raw(made(TOKENS[:20], heads=4))
    assert answer(store, TOKENS) == raw(made(TOKENS))


def test_join_stands_on_what_is_there(store: Store) -> None:
    put(store, "first", TOKENS)
    longer = [*TOKENS[:64], *range(300, 330)]
    joined = put(store, "second", longer, salt=1, join=True)
    assert (joined.blobs_new, match(store, longer)) == (2, 94)
    one, two = made(TOKENS), made(longer, salt=1)
    wanted = {name: np.concatenate([one[name][:64], two[name][64:]]) for name in one}
    assert answer(store, longer) == raw(wanted)
    assert raw(store.kv.open("second").tensors()) == raw(wanted)
    store.erase("first")
    assert answer(store, longer) == raw(wanted)
    assert (match(store, TOKENS), store.repair().corrected) == (64, 0)
    assert put(store, "alone", [9, 9], join=True).blobs_new == 1


# ---- what happens to a store


def test_a_rebuilt_catalog_matches_as_before(tmp_path: Path) -> None:
    create_store()
    sequences = [TOKENS, [*TOKENS[:32], 1, 2, 3], [5, 6, 7]]
    with open_store() as store:
        for n, tokens in enumerate(sequences):
            put(store, f"s{n}", tokens)
        put(store, "gone", [8, 8, 8])
        store.erase("gone")
        rows = identity_rows(store)
    rebuild_catalog()
    with open_store() as store:
        assert identity_rows(store) == rows
        assert match(store, [8, 8, 8]) == 0
        for tokens in sequences:
            assert answer(store, tokens) == raw(made(tokens))


def identity_rows(store: Store) -> dict[bytes, bytes]:
    with store._parts.tables.reading() as rows:
        return dict(rows.scan("identities", b""))


def block_row(store: Store, name: str, number: int) -> tuple[Any, BlobRow]:
    """The digest and row of the first blob of a block."""
    _, manifest = store.show(name)
    blob = manifest.blobs[manifest.claims[1 + number].blobs[0]]
    return blob, store._parts.catalog.find_blobs([blob.digest])[blob.digest]


def damage(store: Store, name: str, number: int) -> None:
    _, row = block_row(store, name, number)
    with (store._parts.directory / f"{row.place.segment:016x}.seg").open("r+b") as file:
        file.seek(row.place.offset + 1000)
        old = file.read(1)
        file.seek(row.place.offset + 1000)
        file.write(bytes([old[0] ^ 1]))


def test_a_bad_block_ends_the_match_before_it_and_heals_with_the_next_put(store: Store) -> None:
    put(store, "chat", TOKENS)
    damage(store, "chat", 2)
    hit = store.longest_prefix(TOKENS, IDENTITY)
    assert hit.tokens_count == 70  # nobody knows yet
    with pytest.raises(Corrupt) as refused:
        hit.tensors()
    assert refused.value.hint == "put the KV again, or compute it anew: that heals it"
    assert block_row(store, "chat", 2)[1].state == QUARANTINED
    assert match(store, TOKENS) == 32
    assert answer(store, TOKENS) == raw({name: one[:32] for name, one in made(TOKENS).items()})
    [bad] = store.verify().corrupt
    assert bad.artifacts == ("chat@1",)
    assert put(store, "chat", TOKENS).blobs_new == 1
    assert block_row(store, "chat", 2)[1].state == LIVE
    assert answer(store, TOKENS) == raw(made(TOKENS))
    assert store.verify(deep=True).corrupt == ()


def test_a_block_that_a_rebuild_misses_ends_the_match_too(tmp_path: Path) -> None:
    create_store()
    with open_store() as store:
        put(store, "chat", TOKENS)
        damage(store, "chat", 2)
    assert len(rebuild_catalog().lost) == 1
    with open_store() as store:
        assert match(store, TOKENS) == 32
        assert put(store, "chat", TOKENS).blobs_new == 1
        assert answer(store, TOKENS) == raw(made(TOKENS))


def test_verify_finds_a_bad_block_and_others_go_on(store: Store) -> None:
    put(store, "chat", TOKENS)
    put(store, "other", [*TOKENS[:16], 1])
    damage(store, "chat", 3)
    assert len(store.verify().corrupt) == 1
    assert (match(store, TOKENS), match(store, [*TOKENS[:16], 1])) == (48, 17)


def test_what_is_removed_while_it_is_read_is_not_found(store: Store) -> None:
    put(store, "chat", TOKENS)
    hit = store.longest_prefix(TOKENS, IDENTITY)
    store.erase("chat")
    with pytest.raises(NotFound, match="was removed while it was read"):
        hit.tensors()


def test_retention_drops_kv_and_its_prefix_rows(store: Store) -> None:
    put(store, "chat", TOKENS)
    put(store, "chat", [1, 2, 3])
    assert match(store, TOKENS) == 70
    collected = store.gc(AT_ONCE, Retention(keep_last=1))
    assert collected.dropped == ("chat@1",)
    assert (match(store, TOKENS), match(store, [1, 2, 3])) == (0, 3)
    assert len(identity_rows(store)) == 2
    assert store.stats().unreferenced_bytes == 0


def test_removed_kv_is_garbage_and_comes_back_with_the_next_put(store: Store) -> None:
    put(store, "chat", TOKENS)
    store.rm("chat")
    assert (match(store, TOKENS), identity_rows(store)) == (0, {})
    assert put(store, "chat", TOKENS).blobs_reused == 5
    assert match(store, TOKENS) == 70


def test_erased_kv_is_gone_for_whoever_kept_everything(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "store", tmp_path / "safe" / "R")
    mark, kept = canary("kv"), canary("other")
    arrays = {
        text: {"layers.0.key": np.frombuffer(text.encode().ljust(64) * 40, np.float16).reshape(40, 4, 8)}
        for text in (mark, kept)
    }
    tokens = {mark: list(range(40)), kept: list(range(100, 140))}
    with scene.open() as store:
        for text in (mark, kept):
            store.kv.put(arrays[text], name=text, tokens=tokens[text], identity=IDENTITY | {"sequence": text})
        assert found(scene.now(), [mark, kept]) == {mark, kept}
        store.erase(mark)
        assert match(store, tokens[mark], sequence=mark) == 0
        assert match(store, tokens[kept], sequence=kept) == 40
        assert len(identity_rows(store)) == 4
    assert found(scene.worst(), [mark, kept]) == {kept}
    assert found(scene.ever(old_roots=True), [mark]) == {mark}  # the test bites


def test_a_put_that_is_killed_shows_nothing_and_the_next_uses_what_it_left(tmp_path: Path) -> None:
    reused = set()
    for at in itertools.count(1):
        root = tmp_path / str(at)
        create_store(root / "store", key_file=root / "key")

        def work(disk: Disk, root: Path = root) -> None:
            from arstore.store.keys.unlock import Secrets

            with Store(root / "store", held=Secrets(key_file=root / "key"), disk=disk) as store:
                put(store, "chat", TOKENS)

        died = killed(at, work)
        with open_store(root / "store", key_file=root / "key") as store:
            assert match(store, TOKENS) in ((0,) if died else (70,))
            assert identity_rows(store) == {} or not died
            for held in store.leases():
                store.break_lease(held.id)
            reused.add(put(store, "chat", TOKENS).blobs_reused)
            assert answer(store, TOKENS) == raw(made(TOKENS))
            assert store.repair().corrected == 0
        if not died:
            break
    assert at > 5
    assert reused == {0, 5}
