"""Integrity: one bit anywhere in a store is noticed, and named by what reads it and by verify."""

import os
import random
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import lmdb

from arstore.formats.codec import Codec
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, KIND_BLOB, KIND_VERSION
from arstore.store.errors import Corrupt, NotFound
from tests.support.command import arstore, cli
from tests.support.damage import (
    NAMES,
    Spot,
    World,
    attempt,
    flip,
    flipped,
    listed,
    of_size,
    pristine,
    regions,
    sources,
    swap,
    tree,
    world,
)

__all__ = ["pristine", "sources", "world"]  # fixtures


def check_flip(world: World, spot: Spot, offset: int, bit: int, *verified: str) -> None:
    """Flip one bit of a record: its artifact is refused, and the place named, by get and by verify alike.

    The padding of a blob is needed for nothing: there get may still answer, until verify has seen it.
    """
    where = f"bit {bit} of byte {offset - spot.offset} of the record in {spot.named()}"
    with flipped(spot.path, offset, bit):
        refused = attempt(world, spot.artifact)
        needed = offset < spot.padding or not spot.is_blob
        assert isinstance(refused, Corrupt) if needed else refused is None, where
        if refused:
            assert spot.named() in str(refused), where
        [bad] = world.verify(*verified).corrupt
        assert (spot.named() in bad.what, bad.artifacts) == (True, (f"{spot.artifact}@1",)), where
        assert isinstance(attempt(world, spot.artifact), Corrupt), where
        bystander = next(name for name in ("other", "model") if name != spot.artifact)
        assert attempt(world, bystander) is None, where
    assert world.verify(*verified).corrupt == (), where  # which lets it out of quarantine


def test_a_bit_of_any_field_of_any_record(pristine: World) -> None:
    chance = random.Random(1)
    spots = [spot for spot in pristine.spots() if spot.artifact != "big"]
    codecs = {(spot.header.binding.kind, spot.header.binding.codec) for spot in spots}
    assert codecs == {(KIND_BLOB, Codec.STORED), (KIND_BLOB, Codec.ZSTD), (KIND_VERSION, Codec.ZSTD)}
    for spot in spots:
        for start, stop in regions(spot).values():
            check_flip(pristine, spot, chance.randrange(start, stop), chance.randrange(8), "model", "other")
    assert pristine.verify(deep=True).corrupt == ()


def test_a_bit_anywhere(pristine: World) -> None:
    chance = random.Random(2)
    spots = pristine.spots()
    for _ in range(60):
        spot = chance.choice(spots)
        check_flip(pristine, spot, chance.randrange(spot.offset, spot.end), chance.randrange(8))
    assert pristine.verify(deep=True).corrupt == ()


def test_a_bit_of_any_frame_of_a_large_tensor(pristine: World) -> None:
    chance = random.Random(3)
    large = [spot for spot in pristine.spots() if spot.header.binding.frames_count == 3]
    assert {spot.header.binding.codec for spot in large} == {Codec.STORED, Codec.ZSTD}
    for spot in large:
        for part in range(7):
            at = spot.offset + HEADER_BYTES + spot.header.payload_bytes * part // 7
            check_flip(pristine, spot, at + chance.randrange(100), chance.randrange(8), "big")


def test_a_bit_of_a_segment_header(pristine: World) -> None:
    chance = random.Random(4)
    spots = pristine.spots()
    for path in pristine.segments:
        inside = {spot.artifact for spot in spots if spot.path == path}
        for offset in (0, 7, 8, 23, 24, 31, 32, 33, 2000, 4063, 4064, 4095):
            with flipped(path, offset, chance.randrange(8)):
                for name in NAMES:
                    refused = attempt(pristine, name)
                    assert (str(path) in str(refused)) if name in inside else refused is None, offset
                found = pristine.verify()
                assert listed(found) == {(f"{name}@1",) for name in inside}
                assert all(str(path) in bad.what for bad in found.corrupt)
    assert pristine.verify().corrupt == ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the catalog: where its value lies in the file (old pages may hold it twice), and what it is."""

    table: str
    key: bytes
    key_at: tuple[int, ...]
    key_bytes: int
    value_bytes: int


def catalog_rows(world: World) -> list[Row]:
    held = (world.root / "catalog" / "data.mdb").read_bytes()
    rows = []
    with closing(lmdb.open(str(world.root / "catalog"), max_dbs=16)) as env:
        for table in ("blobs", "versions", "names", "segments", "counters"):
            names = env.open_db(table.encode())
            with env.begin(db=names) as txn:
                for key, value in txn.cursor():
                    found = tuple(match.start() for match in re.finditer(re.escape(key + value), held))
                    assert found
                    rows.append(Row(table, key, found, len(key), len(value)))
    return rows


def flip_all(path: Path, places: tuple[int, ...], offset: int, bit: int) -> None:
    for place in places:
        flip(path, place + offset, bit)


def test_a_bit_of_any_value_in_the_catalog(world: World) -> None:
    chance = random.Random(5)
    data = world.root / "catalog" / "data.mdb"
    with world.open() as store:
        index = store._parts.catalog
        needed = {index.keys.blob(blob.digest) for blob in store.show("model")[1].blobs}
        needed |= {index.keys.version("model", 1)}
    rows = catalog_rows(world)
    assert needed <= {row.key for row in rows}
    for row in rows:
        for _ in range(3):
            offset, bit = row.key_bytes + chance.randrange(row.value_bytes), chance.randrange(8)
            before = data.read_bytes()
            flip_all(data, row.key_at, offset, bit)
            refused = attempt(world, "model")
            assert isinstance(refused, Corrupt) if row.key in needed else refused is None, (row, offset, bit)
            data.write_bytes(before)


def test_a_bit_of_any_key_in_the_catalog(world: World) -> None:
    """A row under another key may be refused or not be found, but is never taken for the other."""
    chance = random.Random(6)
    data = world.root / "catalog" / "data.mdb"
    for row in catalog_rows(world):
        before = data.read_bytes()
        flip_all(data, row.key_at, chance.randrange(row.key_bytes), chance.randrange(8))
        attempt(world, "model")
        data.write_bytes(before)


def test_a_bit_of_the_pages_of_the_catalog(world: World) -> None:
    """LMDB has no checksums and follows what its pages say, if need be over a cliff: then the process dies.

    But what comes out is right, and nothing is left at the destination that is not.
    """
    chance = random.Random(7)
    data, out = world.root / "catalog" / "data.mdb", world.base / "out"
    before = data.read_bytes()
    pages = [page for page in range(len(before) // 4096) if any(before[page * 4096 : page * 4096 + 64])]
    places = [chance.choice(pages) * 4096 + chance.randrange(10, 48) for _ in range(12)]
    for place in (16, 20, 22, 23, 40, 88, 4096 + 23, *places):
        flip(data, place, chance.randrange(8))
        ran = arstore("--store", world.root, "get", "model", out)
        assert ran.code in (0, 3, 13) or ran.code < 0, (place, ran.err)
        assert (tree(out) == tree(world.source("model"))) if ran.code == 0 else not out.exists()
        shutil.rmtree(out, ignore_errors=True)
        data.write_bytes(before)


def test_a_bit_of_the_key_root(world: World) -> None:
    """Of the two slots one is live: a bit of it refuses all, the bits of the other are noise."""
    chance = random.Random(8)
    path = world.root / "keys" / "root"
    outcomes = set()
    for slot in (0, ALIGN_BYTES):
        refusals = []
        for offset in (0, 11, 12, 40, 60, 76):
            with flipped(path, slot + offset, chance.randrange(8)):
                refusals.append(type(attempt(world, "model")))
        assert len(set(refusals)) == 1
        outcomes.add(refusals[0])
    assert outcomes == {Corrupt, type(None)}


def test_a_bit_of_the_key_pages(world: World) -> None:
    chance = random.Random(9)
    path = world.root / "keys" / "pages"
    outcomes = []
    for start in range(0, path.stat().st_size, ALIGN_BYTES):
        with flipped(path, start + chance.randrange(ALIGN_BYTES), chance.randrange(8)):
            outcomes.append(type(attempt(world, "model")))
    assert Corrupt in outcomes
    assert set(outcomes) <= {Corrupt, type(None)}


def test_new_keys_are_refused_where_the_tree_is_damaged(world: World) -> None:
    path = world.root / "keys" / "pages"
    outcomes = set()
    for start in range(0, path.stat().st_size, ALIGN_BYTES):
        before = path.read_bytes()
        with world.open() as store:  # opened before the damage, as by a put that is at work
            flip(path, start + 99)
            try:
                store._parts.keyring.reserve(0, 1)
                outcomes.add("reserved")
            except Corrupt:
                outcomes.add("refused")
                path.write_bytes(before)
    assert outcomes == {"reserved", "refused"}


def test_a_bit_of_the_key_stanzas(world: World) -> None:
    chance = random.Random(10)
    path = world.root / "keys" / "stanzas.json"
    refusals = 0
    for offset in range(path.stat().st_size):
        with flipped(path, offset, chance.randrange(8)):
            refused = attempt(world, "model")
            assert not isinstance(refused, NotFound)
            refusals += refused is not None
    assert refusals > path.stat().st_size // 2


def test_the_command_line_says_it_and_verify_lists_it(world: World) -> None:
    spot = of_size(world.spots(), "model", 8192)[0]
    flip(spot.path, spot.offset + HEADER_BYTES + 5, 3)
    out = world.base / "out"
    out.mkdir()
    program = ("--store", world.root)

    ran = cli(*program, "get", "model", out / "it")
    assert (ran.code, ran.out) == (13, "")
    assert ran.error.startswith("arstore: error: get: model@1: ")
    assert spot.named() in ran.error
    assert "arstore: hint: " in ran.err

    ran = cli(*program, "get", "model", out / "it", "--json")
    assert ran.code == ran.json["error"]["exit_code"] == 13
    assert ran.json["error"]["kind"] == "corrupt"

    for flags in ((), ("--deep",), ("model",), ("--all",)):
        ran = cli(*program, "verify", "--json", *flags)
        assert ran.code == 13
        [bad] = ran.json["corrupt"]
        assert spot.named() in bad["what"]
        assert bad["artifacts"] == ["model@1"]
        assert ran.json["checked"] > 1
    ran = cli(*program, "verify", "other", "--json")
    assert (ran.code, ran.json["corrupt"]) == (0, [])

    assert cli(*program, "get", "model", out / "it").code == 13
    assert list(out.iterdir()) == []
    assert cli(*program, "put", world.source("model"), "model").code == 0
    ran = cli(*program, "verify", "--json")
    assert (ran.code, ran.json["corrupt"]) == (0, [])
    assert cli(*program, "get", "model", out / "it").code == 0
    assert tree(out / "it") == tree(world.source("model"))


def test_the_command_line_after_larger_damage(world: World) -> None:
    spots = world.spots()
    first, second = of_size(spots, "model", 8192)
    path, old = first.path, first.path.read_bytes()
    out = world.base / "out"

    def change(act: Callable[[], object]) -> None:
        act()
        ran = cli("--store", world.root, "get", "model", out)
        assert (ran.code, out.exists()) == (13, False)
        assert first.path.stem in ran.error
        assert cli("--store", world.root, "verify").code == 13
        path.write_bytes(old)
        assert cli("--store", world.root, "verify").code == 0

    change(lambda: swap(first, second))
    change(lambda: os.truncate(path, second.offset + 100))
    change(lambda: shutil.copyfile(world.segments[1], path))
    change(path.unlink)
    change(lambda: flip(path, 24))
