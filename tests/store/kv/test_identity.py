"""KV by identity: no identity is served the bytes of another, whatever happens to the store."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import arstore
from arstore.formats.digest import derive
from arstore.formats.identity import FIELDS, PROVENANCE, make_identity
from arstore.store.access import rebuild_catalog
from arstore.store.errors import BadInput, Conflict
from tests.support import spec_identity, spec_reader

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]
from tests.support.identities import BASE, TOKENS, is_counted, variants


@pytest.fixture
def store(tmp_path: Path) -> Iterator[arstore.Store]:
    arstore.create_store(tmp_path / "store", key_file=tmp_path / "key")
    with arstore.open_store(tmp_path / "store") as opened:
        yield opened


def made_kv(identity: Mapping[str, object], seed: int) -> "Arrays":
    """Return KV of all tokens that fits an identity, and is like that of no other seed."""
    import numpy as np

    fields, chance = dict(make_identity(identity)), np.random.default_rng(seed)
    heads, dim = int(fields.get("kv_heads", 2)), int(fields.get("head_dim", 4))
    layers = {"0": 1, "0-2": 3}.get(fields.get("layers", ""), 2)
    page, layout = int(fields.get("page_tokens", 1)), fields.get("layout")
    shapes = {"HND": (heads, 10, dim), "packed": (2, 10, heads, dim), "paged-NHD": (10 // page, page, heads, dim)}
    shape = shapes.get(layout or "", (10, heads, dim))
    sides = ("kv",) if layout == "packed" else ("key", "value")
    return {
        f"layers.{layer}.{side}": chance.integers(0, 1 << 16, shape, np.uint16).view(np.float16)
        for layer in range(layers)
        for side in sides
    }


def read(store: arstore.Store, identity: Mapping[str, object]) -> dict[str, bytes]:
    """Return what a look-up of all tokens leads to, nothing if it misses."""
    hit = store.longest_prefix(TOKENS, identity)
    assert hit.tokens_count in (0, len(TOKENS))
    return {name: one.numpy().tobytes() for name, one in hit.tensors().items()} if hit else {}


def raw(arrays: "Arrays") -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def reader_of(tmp_path: Path) -> spec_reader.Store:
    return spec_reader.Store(tmp_path / "store", {"key-file": (tmp_path / "key").read_bytes().strip()})


def test_no_identity_is_served_the_bytes_of_another(store: arstore.Store) -> None:
    """A matrix of every field by two values: looked up before and after each has KV of its own."""
    counted = [one for one in variants() if is_counted(one)]
    assert len({name for one in counted for name in one}) == len(FIELDS) - len(PROVENANCE)
    kept = [(BASE, made_kv(BASE, 0))]
    store.kv.put(kept[0][1], name="base", tokens=TOKENS, identity=BASE)
    for one in counted:
        assert read(store, one) == {}, one
    for number, one in enumerate(counted, 1):
        arrays = made_kv(one, number)
        assert store.kv.put(arrays, name=f"kv/{number}", tokens=TOKENS, identity=one).blobs_new >= 1
        kept.append((one, arrays))
    for identity, arrays in kept:
        assert read(store, identity) == raw(arrays), identity


def test_provenance_finds_what_another_engine_put_unless_strict(store: arstore.Store) -> None:
    arrays = made_kv(BASE, 0)
    store.kv.put(arrays, name="base", tokens=TOKENS, identity={**BASE, "engine": "vllm"})
    for name in PROVENANCE:
        assert read(store, {**BASE, name: "another"}) == raw(arrays)
    strict = {**BASE, "engine": "vllm", "strict": True}
    assert read(store, strict) == {}
    other = made_kv(BASE, 1)
    store.kv.put(other, name="strict", tokens=TOKENS, identity=strict)
    assert read(store, strict) == raw(other)
    assert read(store, {**strict, "engine": "sglang"}) == {}
    assert read(store, {**strict, "hardware": "h100"}) == {}
    assert read(store, BASE) == raw(arrays)


def test_a_look_up_finds_no_sequence_that_differs_in_a_token(store: arstore.Store) -> None:
    identity = {**BASE, "block_tokens": 3}
    store.kv.put(made_kv(identity, 0), name="base", tokens=TOKENS, identity=identity)
    for at in range(len(TOKENS)):
        for token in (TOKENS[at] ^ 1, TOKENS[at] ^ 1 << 31):
            changed = [*TOKENS[:at], token, *TOKENS[at + 1 :]]
            assert store.longest_prefix(changed, identity).tokens_count == at // 3 * 3
    turned = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    assert store.longest_prefix(turned, identity).tokens_count == 0
    assert store.longest_prefix(TOKENS[3:], identity).tokens_count == 0, "blocks hang on all that is before them"


def test_tenants_do_not_find_each_others_kv(store: arstore.Store, tmp_path: Path) -> None:
    arrays = made_kv(BASE, 0)
    store.kv.put(arrays, name="base", tokens=TOKENS, identity=BASE)
    store.tenants.add("other")
    with arstore.open_store(tmp_path / "store", tenant="other") as other:
        assert read(other, BASE) == {}
        other.kv.put(made_kv(BASE, 1), name="base", tokens=TOKENS, identity=BASE)
        assert read(other, BASE) == raw(made_kv(BASE, 1))
    assert read(store, BASE) == raw(arrays)


def test_other_bytes_for_an_identity_never_win(store: arstore.Store) -> None:
    first, second = made_kv(BASE, 0), made_kv(BASE, 1)
    store.kv.put(first, name="first", tokens=TOKENS, identity=BASE)
    with pytest.raises(Conflict, match="second@1"):
        store.kv.put(second, name="second", tokens=TOKENS, identity=BASE)
    assert read(store, BASE) == raw(first)
    kept = store.kv.open("second").tensors()
    assert {name: one.numpy().tobytes() for name, one in kept.items()} == raw(second)
    store.rm("second")
    assert read(store, BASE) == raw(first)
    store.rm("first")
    assert read(store, BASE) == {}


@pytest.mark.parametrize("shared", [0, 3, 6], ids=["nothing", "a block", "two blocks"])
def test_a_version_takes_back_only_what_it_holds(shared: int, store: arstore.Store) -> None:
    """Two that disagree from some token on; once the first is gone, a third may claim what the second could not."""
    identity = {**BASE, "block_tokens": 3}
    first, other = made_kv(identity, 0), made_kv(identity, 1)
    for name, array in other.items():
        array[:shared] = first[name][:shared]
    store.kv.put(first, name="a", tokens=TOKENS, identity=identity)
    with pytest.raises(Conflict):
        store.kv.put(other, name="b", tokens=TOKENS, identity=identity)
    store.rm("a")
    assert store.longest_prefix(TOKENS, identity).tokens_count == shared
    store.kv.put(other, name="c", tokens=TOKENS, identity=identity)
    store.rm("b")
    assert read(store, identity) == raw(other)
    store.rm("c")
    assert read(store, identity) == {}
    store.kv.put(first, name="a", tokens=TOKENS, identity=identity)
    assert read(store, identity) == raw(first)


def test_what_could_not_be_claimed_is_claimed_by_a_repair(store: arstore.Store) -> None:
    first, second, others = made_kv(BASE, 0), made_kv(BASE, 1), "abcdefgh"
    store.kv.put(first, name="first", tokens=TOKENS, identity=BASE)
    for name in others:  # many: rows lie in the order of hashes, so that it should not be by chance who is claimed
        with pytest.raises(Conflict):
            store.kv.put(second, name=name, tokens=TOKENS, identity=BASE)
    store.repair()
    assert read(store, BASE) == raw(first)
    store.rm("first")
    store.repair()
    for name in others:
        assert read(store, BASE) == raw(second)
        store.rm(name)
    assert read(store, BASE) == {}


def test_the_catalog_file_shows_no_digest_and_no_shape(store: arstore.Store, tmp_path: Path) -> None:
    """Nor does what LMDB leaves of old rows in its file."""
    identity = {**BASE, "block_tokens": 3}
    store.kv.put(made_kv(identity, 0), name="kept", tokens=TOKENS, identity=identity)
    store.put(tmp_path / "key", name="made", kind="intermediate", identity={**BASE, "sequence": "s"})
    store.close()
    reader = reader_of(tmp_path)
    rows = reader.catalog()
    found, _ = reader.identities(rows)
    assert len(found) == 1 + 4 + 1
    secret = set(found)
    for _, _, digests, about in found.values():
        secret |= {*digests, about} - {b""}
    assert len(secret) == 6 + 4 + 2
    assert any(b'"layers":[[0,2,2,4,2,4]]' in one for one in secret)
    file = tmp_path / "store" / "catalog" / "data.mdb"
    assert all(value in file.read_bytes() for value in rows["identities"].values())
    assert not any(one in file.read_bytes() for one in secret)
    with arstore.open_store(tmp_path / "store") as opened:
        opened.rm("kept")
    assert not any(one in file.read_bytes() for one in secret)


def test_a_prefix_ends_before_a_block_that_a_rebuild_missed(store: arstore.Store, tmp_path: Path) -> None:
    identity, root = {**BASE, "block_tokens": 3}, tmp_path / "store"
    arrays = made_kv(identity, 0)
    store.kv.put(arrays, name="kv", tokens=TOKENS, identity=identity)
    store.close()
    reader = reader_of(tmp_path)
    rows, canonical = reader.catalog(), dict(make_identity(identity))
    key = derive(reader.tenant.digest_key, "identity")
    second = spec_identity.block_ids(key, spec_identity.key_id(key, "kv", canonical), TOKENS, 3)[1]
    [digest] = reader.identities(rows)[0][second][2]
    lost = reader.row(rows, "blobs", reader.hashed("blob", digest))
    segment, offset = struct.unpack_from("<QQ", lost)
    with (root / "segments" / f"{segment:016x}.seg").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(4))
    assert len(rebuild_catalog(root, key_file=tmp_path / "key").lost) == 1
    assert reader_of(tmp_path).kv(TOKENS, canonical)[0] == 3
    with arstore.open_store(root) as rebuilt:
        assert rebuilt.longest_prefix(TOKENS, identity).tokens_count == 3
        rebuilt.kv.put(arrays, name="again", tokens=TOKENS, identity=identity)
        assert read(rebuilt, identity) == raw(arrays)


@pytest.mark.parametrize(
    ("layout", "page"), [("paged-NHD", None), ("paged-NHD", 10), ("paged-packed-HND", None), ("folded", None)]
)
def test_pages_are_said_and_as_long_as_they_are(layout: str, page: int | None, store: arstore.Store) -> None:
    arrays = made_kv({**BASE, "layout": "paged-NHD", "page_tokens": 5}, 0)
    identity = {**BASE, "layout": layout, "page_tokens": page}
    with pytest.raises(BadInput, match=r"layout|page_tokens"):
        store.kv.put(arrays, name="kv", tokens=TOKENS, identity=identity)
    if page is None:
        with pytest.raises(BadInput, match="layout"):
            store.longest_prefix(TOKENS, identity)
    assert store.ls() == []


@pytest.mark.parametrize("field", ["colour", "Model", "model ", "", "tp_rank"])
def test_a_field_that_is_not_known_is_refused_and_never_ignored(field: str, store: arstore.Store) -> None:
    identity = {**BASE, field: "x"}
    with pytest.raises(BadInput, match="identity"):
        store.kv.put(made_kv(BASE, 0), name="base", tokens=TOKENS, identity=identity)
    with pytest.raises(BadInput, match="identity"):
        store.longest_prefix(TOKENS, identity)
    assert store.ls() == []


def test_a_repair_never_turns_over_what_an_identity_stands_for(store: arstore.Store) -> None:
    """Where no version holds all that it claims, those that hold more stand."""
    identity = {**BASE, "block_tokens": 3}
    gone, early, late = (made_kv(identity, seed) for seed in range(3))
    for name, array in early.items():
        array[:6] = gone[name][:6]
    store.kv.put(gone, name="gone", tokens=TOKENS, identity=identity)
    with pytest.raises(Conflict):
        store.kv.put(early, name="early", tokens=TOKENS, identity=identity)
    store.rm("gone")
    for name in "abcdefgh":
        with pytest.raises(Conflict):
            store.kv.put(late, name=name, tokens=TOKENS, identity=identity)
    assert store.longest_prefix(TOKENS, identity).tokens_count == 6
    store.repair()
    assert read(store, identity) == raw(early)


def test_joining_heals_what_was_lost_with_other_bits(store: arstore.Store) -> None:
    """Recomputed KV has other bits: it takes the place of the bad block, and the good ones stay."""
    tokens = list(range(10))
    identity = {"model": "m", "revision": "1", "precision": "bf16", "block_tokens": 3}
    torch.manual_seed(0)
    first, other = ({f"layers.0.{s}": torch.randn(10, 2, 8).bfloat16() for s in ("key", "value")} for _ in range(2))
    store.kv.put(first, name="first", tokens=tokens, identity=identity)
    [*_, third, _] = store.show("first")[1].blobs
    [row] = store._parts.catalog.find_blobs([third.digest]).values()
    store._parts.catalog.quarantine(third.digest, row.place)
    assert store.longest_prefix(tokens, identity).tokens_count == 6
    store.kv.put(other, name="other", tokens=tokens, identity=identity, join=True)
    prefix = store.longest_prefix(tokens, identity)
    assert prefix.tokens_count == 10
    found = prefix.tensors()
    for name, tensor in found.items():
        wanted = torch.cat([first[name][:6], other[name][6:9], first[name][9:]])
        assert torch.equal(tensor.view(torch.int16), wanted.view(torch.int16))


# ---- what the arrays are is held against what the identity says


def arrays(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {f"layers.0.{side}": torch.ones(20, 2, 8).to(dtype) for side in ("key", "value")}


@pytest.mark.parametrize("precision", ["bf16", "BF16", "bfloat16", "fp32", "f16", "fp8_e5m2", "int8"])
def test_arrays_of_another_dtype_than_the_precision_are_refused(store: arstore.Store, precision: str) -> None:
    identity = {"model": "m", "revision": "1", "precision": precision}
    with pytest.raises(BadInput, match=f"holds F8_E4M3, the identity says precision {precision}"):
        store.kv.put(arrays(torch.float8_e4m3fn), name="kv", tokens=list(range(20)), identity=identity)
    assert store.ls() == []


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16", torch.bfloat16), ("bf16", torch.uint16), ("fp16", torch.float16), ("f32", torch.float32),
        ("fp8", torch.float8_e4m3fn), ("fp8", torch.float8_e5m2), ("fp8", torch.uint8), ("int8", torch.int8),
        ("float8_e4m3fn", torch.float8_e4m3fn), ("kivi-2bit", torch.uint8),
    ],
)  # fmt: skip
def test_arrays_of_the_precision_are_taken(store: arstore.Store, precision: str, dtype: torch.dtype) -> None:
    identity = {"model": "m", "revision": "1", "precision": precision}
    store.kv.put(arrays(dtype), name="kv", tokens=list(range(20)), identity=identity)
    assert store.longest_prefix(list(range(20)), identity).tokens_count == 20


def test_auto_is_no_precision(store: arstore.Store) -> None:
    identity = {"model": "m", "revision": "1", "precision": "auto"}
    with pytest.raises(BadInput, match="precision auto: means another dtype in another process"):
        store.kv.put(arrays(torch.bfloat16), name="kv", tokens=list(range(20)), identity=identity)
    with pytest.raises(BadInput, match="precision auto"):
        store.longest_prefix([1, 2], identity)
