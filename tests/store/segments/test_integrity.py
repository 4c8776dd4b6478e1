"""Integrity: whatever happens to the bytes of a store, a get gives back the right ones or none at all.

Bits are flipped, files cut, swapped, replayed, renamed and mixed between tenants and stores. After each of these a
`get` either refuses, naming the place and leaving nothing behind, or gives back exactly what was put, because what was
damaged was not needed for it; and `verify` finds every record and segment that is not as it was written.
"""

import errno
import json
import os
import random
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore.cli.main import EXIT_CODES
from arstore.formats.catalog import BlobRow, VersionRow
from arstore.formats.codec import Codec
from arstore.formats.digest import digest_bytes
from arstore.formats.frames import TAG_BYTES
from arstore.formats.manifest import BlobName, Manifest, Needs, Tensor
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, KIND_BLOB, KIND_VERSION, Header, parse_header
from arstore.store.access import create_store
from arstore.store.artifacts.commit import Wish
from arstore.store.artifacts.names import Summary
from arstore.store.artifacts.put import tag_manifest
from arstore.store.artifacts.refs import parse_ref
from arstore.store.artifacts.select import Selection
from arstore.store.catalog.changes import NewVersion
from arstore.store.disk import make_buffer
from arstore.store.errors import Corrupt, KeyRefused, NotFound, StorageFailed
from arstore.store.keys.unlock import Secrets
from arstore.store.maintenance.scrub import Scrubbed
from arstore.store.segments import cold_read as direct
from arstore.store.segments import fetch
from arstore.store.segments.records import draft_record
from arstore.store.segments.writer import WRITE_BUFFER_BYTES
from arstore.store.store import Store
from arstore.store.tiers.local import StoredObject, stored_artifact
from tests.support.command import arstore, cli

Tree = dict[str, bytes]
FRAME_BYTES = 4 << 20
FILL = 0xA5

# The fields of a record header, by the byte table of formats/FORMAT.md and not by the code that is tested.
HEADER_FIELDS = {
    "magic": (0, 4), "kind": (4, 5), "codec": (5, 6), "protection": (6, 7), "zero": (7, 8), "frame_bytes": (8, 12),
    "more zeros": (12, 16), "plain_bytes": (16, 24), "payload_bytes": (24, 32), "slot": (32, 40), "tenant": (40, 56),
    "instance": (56, 72), "commitment": (72, 104), "last zeros": (104, 128), "check": (128, 160),
}  # fmt: skip


# --- a store, what lies in it, and what comes out of it


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one record lies, and whose it is; another tenant's records are nobody's here."""

    path: Path
    offset: int
    header: Header
    artifact: str

    @property
    def end(self) -> int:
        return self.offset + self.header.record_bytes

    @property
    def padding(self) -> int:
        """Where the padding starts."""
        return self.offset + self.header.used_bytes

    @property
    def is_blob(self) -> bool:
        return self.header.binding.kind == KIND_BLOB

    def named(self) -> str:
        return f"segment {int(self.path.stem, 16):016x} at byte {self.offset}"

    def bytes(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.header.record_bytes)


@dataclass(frozen=True, slots=True)
class World:
    """A store, its key outside it, the sources of what was put, and room to get it to."""

    base: Path
    sources: Path
    encrypted: bool

    @property
    def root(self) -> Path:
        return self.base / "store"

    @property
    def segments(self) -> list[Path]:
        return sorted((self.root / "segments").iterdir())

    def source(self, name: str) -> Path:
        return self.sources / SOURCES[name]

    def open(self, tenant: str = "default") -> Store:
        return Store(self.root, tenant=tenant, held=Secrets(key_file=self.base / "key"))

    def verify(self, *names: str, deep: bool = False) -> Scrubbed:
        with self.open() as store:
            return store.verify(names, deep=deep)

    def copy(self, base: Path) -> "World":
        shutil.copytree(self.base, base)
        return World(base, self.sources, self.encrypted)

    def spots(self) -> list[Spot]:
        """Every record of every segment in order, found by walking the segments."""
        with self.open() as store:
            owners = {}
            for found in store.ls():
                manifest = store.show(found.text)[1]
                rows = store._parts.catalog.find_blobs(blob.digest for blob in manifest.blobs)
                for place in (found.row.place, *(row.place for row in rows.values())):
                    owners[place.segment, place.offset] = found.summary.name
        spots = []
        for path in self.segments:
            held = path.read_bytes()
            at = ALIGN_BYTES
            while at < len(held):
                header = parse_header(held[at : at + HEADER_BYTES])
                spots.append(Spot(path, at, header, owners.get((int(path.stem, 16), at), "")))
                at += header.record_bytes
        return spots


NAMES = ("model", "other", "big")
SOURCES = {
    "model": "model", "other": "other.bin", "big": "big.safetensors", "more": "more.safetensors",
    "stranger": "stranger.bin",
}  # fmt: skip


def tree(path: Path) -> Tree:
    """Return the files below a path, or the file itself, by relative name."""
    files = [inner for inner in path.rglob("*") if inner.is_file()] if path.is_dir() else [path]
    return {inner.relative_to(path).as_posix(): inner.read_bytes() for inner in files}


def make_sources(base: Path) -> None:
    """Write what is put at first, a checkpoint directory, a file and tensors of several frames, and two for later."""
    values = np.random.default_rng(11)
    model = base / "model"
    (model / "sub").mkdir(parents=True)
    layers = {f"layers.{n}.w": values.standard_normal((64, 32), dtype=np.float32) for n in range(2)}
    bias = values.standard_normal(40, dtype=np.float32)
    save_file({**layers, "bias": bias, "zeros": np.zeros(4096, np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"layers": 2, "name": "test" * 100}))
    (model / "sub" / "notes").write_bytes(values.bytes(3000))
    # As long as a layer of the model, so that their records can change places; another kind, so another segment.
    (base / "other.bin").write_bytes(values.bytes(64 * 32 * 4))
    (base / "stranger.bin").write_bytes(values.bytes(64 * 32 * 4))
    save_file({"more": values.standard_normal((99, 50))}, base / "more.safetensors")
    rows = values.standard_normal((2304, 1024), dtype=np.float32)
    flat = np.tile(values.integers(0, 9, 512, dtype=np.int32), (2304, 2))
    save_file({"rows": rows, "flat": flat}, base / "big.safetensors")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sources")
    make_sources(base)
    return base


@pytest.fixture(scope="module", params=[True, False], ids=["encrypted", "plain"])
def pristine(request: pytest.FixtureRequest, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A store that holds the three artifacts and two tenants. Tests that leave damage behind copy it."""
    world = World(tmp_path_factory.mktemp("world"), sources, request.param)
    create_store(world.root, encrypted=world.encrypted, key_file=world.base / "key" if world.encrypted else None)
    with world.open() as store:
        store.tenants.add("stranger")
        for name in NAMES:
            store.put(world.source(name), name=name, kind="file" if name == "other" else None)
    return world


@pytest.fixture
def world(pristine: World, tmp_path: Path) -> Iterator[World]:
    yield pristine.copy(tmp_path / "world")
    shutil.rmtree(tmp_path / "world")


def attempt(world: World, name: str, selection: Selection | None = None) -> Corrupt | KeyRefused | NotFound | None:
    """Get an artifact: return the refusal, after which nothing may be left, or None where all of it came back."""
    out = world.base / "out"
    out.mkdir()
    try:
        with world.open() as store:
            store.get_to(name, out / "it", selection)
        assert os.listdir(out) == ["it"]
        if selection is None:
            assert tree(out / "it") == tree(world.source(name)), f"{name} came back wrong"
        return None
    except (Corrupt, KeyRefused, NotFound) as error:
        refused = error
    finally:
        left = os.listdir(out)
        shutil.rmtree(out)
    assert not left, "a refused get left something behind"
    assert str(refused).count("\n") == 0
    return refused


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@contextmanager
def flipped(path: Path, offset: int, bit: int = 0) -> Iterator[None]:
    """Flip one bit, and flip it back."""
    flip(path, offset, bit)
    try:
        yield
    finally:
        flip(path, offset, bit)


def listed(found: Scrubbed) -> set[tuple[str, ...]]:
    return {bad.artifacts for bad in found.corrupt}


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


# --- one bit


def regions(spot: Spot) -> dict[str, tuple[int, int]]:
    """Every field of a record: header, first and last frame with their tags, footer, padding."""
    header, at = spot.header, spot.offset
    payload = at + HEADER_BYTES
    footer = payload + header.payload_bytes
    found = {name: (at + start, at + stop) for name, (start, stop) in HEADER_FIELDS.items()}
    found |= {
        "first frame": (payload, payload + min(FRAME_BYTES, header.payload_bytes - TAG_BYTES)),
        "tag of the last frame": (footer - TAG_BYTES, footer),
        "digest in the footer": (footer, footer + 32),
        "tag of the footer": (spot.padding - TAG_BYTES, spot.padding),
    }
    if header.binding.codec:
        found["frame table"] = (footer + 32, footer + 32 + 4 * header.binding.frames_count)
    if spot.padding < spot.end:
        found |= {"first of the padding": (spot.padding, spot.padding + 1), "last of it": (spot.end - 1, spot.end)}
    return found


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


# --- whole records and whole files


def test_a_segment_that_was_cut(world: World) -> None:
    spots = world.spots()
    path = world.segments[0]
    held = path.read_bytes()
    mine = [spot for spot in spots if spot.path == path]
    near = [spot.offset + more for spot in mine for more in (-1, 0, 1, HEADER_BYTES, ALIGN_BYTES)]
    for length in sorted({0, 1, ALIGN_BYTES - 1, ALIGN_BYTES, *near, len(held) - 1}):
        os.truncate(path, min(length, len(held)))
        for name in ("model", "big"):
            whole = max(spot.end for spot in mine if spot.artifact == name) <= length
            refused = attempt(world, name)
            assert refused is None if whole else isinstance(refused, Corrupt), (name, length)
            if refused:
                assert str(path) in str(refused)
            assert (world.verify(name).corrupt == ()) == whole
        path.write_bytes(held)
    assert world.verify().corrupt == ()


def test_what_is_appended_is_never_read(world: World) -> None:
    path = world.segments[0]
    with path.open("ab") as file:
        file.write(secrets.token_bytes(10_000))
    assert attempt(world, "model") is None
    assert world.verify().corrupt == ()


def swap(first: Spot, second: Spot) -> None:
    one, two = first.bytes(), second.bytes()
    write_at(first.path, first.offset, two)
    write_at(second.path, second.offset, one)


def of_size(spots: list[Spot], artifact: str, plain_bytes: int) -> list[Spot]:
    return [s for s in spots if s.artifact == artifact and s.is_blob and s.header.binding.plain_bytes == plain_bytes]


def test_two_records_that_changed_places(world: World) -> None:
    first, second = of_size(world.spots(), "model", 8192)
    swap(first, second)
    refused = attempt(world, "model")
    assert isinstance(refused, Corrupt)
    assert first.named() in str(refused) or second.named() in str(refused)
    found = world.verify()
    assert {spot for spot in (first, second) for bad in found.corrupt if spot.named() in bad.what} == {first, second}
    assert len(found.corrupt) == 2


def test_two_records_that_changed_segments(world: World) -> None:
    spots = world.spots()
    first, second = of_size(spots, "model", 8192)[0], of_size(spots, "other", 8192)[0]
    assert first.path != second.path
    assert first.header.record_bytes == second.header.record_bytes
    swap(first, second)
    for spot in (first, second):
        refused = attempt(world, spot.artifact)
        assert isinstance(refused, Corrupt)
        assert spot.named() in str(refused)
    assert listed(world.verify()) == {("model@1",), ("other@1",)}


def test_a_record_that_stands_in_for_another(world: World) -> None:
    first, second = of_size(world.spots(), "model", 8192)
    write_at(second.path, second.offset, first.bytes())
    refused = attempt(world, "model")
    assert isinstance(refused, Corrupt)
    assert second.named() in str(refused)
    [bad] = world.verify().corrupt
    assert second.named() in bad.what


@pytest.mark.parametrize("change", ["swap", "repeat"])
def test_frames_of_one_record_out_of_order(world: World, change: str) -> None:
    rows = three_frames(world, encoded=False)
    sealed = FRAME_BYTES + TAG_BYTES
    first, second = rows.offset + HEADER_BYTES, rows.offset + HEADER_BYTES + sealed
    held = rows.bytes()[HEADER_BYTES:]
    write_at(rows.path, second, held[:sealed])
    if change == "swap":
        write_at(rows.path, first, held[sealed : 2 * sealed])
    refused = attempt(world, "big")
    assert isinstance(refused, Corrupt)
    assert rows.named() in str(refused)
    assert listed(world.verify()) == {("big@1",)}


def three_frames(world: World, *, encoded: bool) -> Spot:
    """Return the record of one of the two large tensors: `rows` is stored as it is, `flat` is encoded."""
    large = [spot for spot in world.spots() if spot.header.binding.frames_count == 3]
    [found] = [spot for spot in large if bool(spot.header.binding.codec) == encoded]
    return found


def put_more(world: World) -> None:
    """Put a fourth artifact, which goes to the segment of the first."""
    with world.open() as store:
        store.put(world.source("more"), name="more")


@pytest.mark.parametrize("filled", [False, True], ids=["as it was", "filled with zeros"])
def test_an_old_copy_of_a_segment_that_is_played_again(world: World, filled: bool) -> None:
    path = world.segments[0]
    old = path.read_bytes()
    put_more(world)
    new = path.read_bytes()
    assert len(old) < len(new)
    path.write_bytes(old.ljust(len(new), b"\0") if filled else old)
    assert attempt(world, "model") is None
    assert isinstance(attempt(world, "more"), Corrupt)
    assert listed(world.verify()) == {("more@1",)}
    # What is put now must not end up where readers would refuse it, nor count on what is gone.
    with world.open() as store:
        assert store.put(world.source("more"), name="more").blobs_reused == 0 or filled
        store.verify()
        store.put(world.source("more"), name="more")
    assert attempt(world, "more") is None
    assert attempt(world, "model") is None


@pytest.mark.parametrize("change", ["onto", "exchange", "foreign", "deleted"])
def test_a_segment_under_another_name(world: World, tmp_path: Path, change: str) -> None:
    first, second = world.segments
    hit = {"model", "big"}
    if change == "onto":
        second.replace(first)
        hit = set(NAMES)
    elif change == "exchange":
        aside = first.rename(first.with_name("aside"))
        second.rename(first)
        aside.rename(second)
        hit = set(NAMES)
    elif change == "foreign":
        other = World(tmp_path / "elsewhere", world.sources, world.encrypted)
        create_store(other.root, encrypted=world.encrypted, key_file=world.base / "key" if world.encrypted else None)
        with Store(other.root, held=Secrets(key_file=world.base / "key")) as store:
            store.put(other.source("model"), name="model")
        shutil.copyfile(other.segments[0], first)
    else:
        first.unlink()
    for name in NAMES:
        refused = attempt(world, name)
        assert isinstance(refused, Corrupt) if name in hit else refused is None
        if refused:
            assert str(first) in str(refused) or str(second) in str(refused)
    assert listed(world.verify()) == {(f"{name}@1",) for name in hit}


# --- tenants


def test_a_record_that_was_moved_to_another_tenant(world: World) -> None:
    with world.open("stranger") as store:
        store.put(world.source("stranger"), name="theirs", kind="file")
        place = next(store._parts.catalog.all_blobs()).place
    theirs = (world.root / "segments" / f"{place.segment:016x}.seg").read_bytes()
    theirs = theirs[place.offset : place.offset + place.record_bytes]
    [mine] = of_size(world.spots(), "other", 8192)
    write_at(mine.path, mine.offset, theirs)
    refused = attempt(world, "other")
    assert isinstance(refused, Corrupt)
    assert mine.named() in str(refused)
    assert listed(world.verify()) == {("other@1",)}


def test_a_row_that_points_to_another_tenants_record(world: World) -> None:
    """Even a catalog that lies, which takes the store's master key, gives no tenant another's plaintext."""
    with world.open("stranger") as store:
        store.put(world.source("other"), name="theirs", kind="file")
        theirs = next(store._parts.catalog.all_blobs()).place
    with world.open() as store:
        [blob] = store.show("other")[1].blobs
        row = BlobRow(theirs, 1)
        store._parts.catalog.tables.write(
            lambda rows: rows.put("blobs", store._parts.catalog.keys.blob(blob.digest), row.packed())
        )
    assert isinstance(attempt(world, "other"), Corrupt)
    assert listed(world.verify()) == {("other@1",)}


# --- the catalog and the keys


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


# --- the same through the command line


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


# --- healing

Damage = Callable[[World], None]


def damage_blobs(world: World) -> None:
    for spot in world.spots():
        if spot.is_blob:
            flip(spot.path, spot.offset + HEADER_BYTES)


def damage_versions(world: World) -> None:
    for spot in world.spots():
        if not spot.is_blob:
            flip(spot.path, spot.offset + HEADER_BYTES)


def damage_segment_headers(world: World) -> None:
    for path in world.segments:
        flip(path, 24)


def delete_segments(world: World) -> None:
    for path in world.segments:
        path.unlink()


def cut_segments(world: World) -> None:
    for path in world.segments:
        os.truncate(path, 3 * ALIGN_BYTES)


LARGE_DAMAGE = [damage_segment_headers, delete_segments, cut_segments]


def put_again(world: World) -> None:
    with world.open() as store:
        for name in NAMES:
            store.put(world.source(name), name=name, kind="file" if name == "other" else None)
    assert all(attempt(world, name) is None for name in NAMES)


def remove_first_versions(world: World) -> None:
    """Remove the versions whose own records are bad: what they consisted of is not known any more."""
    with world.open() as store:
        for name in NAMES:
            store.rm(f"{name}@1")


@pytest.mark.parametrize("damage", [damage_blobs, damage_versions, *LARGE_DAMAGE])
def test_putting_the_source_again_heals(world: World, damage: Damage) -> None:
    damage(world)
    assert listed(world.verify()) == {(f"{name}@1",) for name in NAMES}
    assert all(isinstance(attempt(world, name), Corrupt) for name in NAMES)
    put_again(world)
    if damage is not damage_blobs:
        assert listed(world.verify()) == {(f"{name}@1",) for name in NAMES}
        remove_first_versions(world)
    assert world.verify(deep=True).corrupt == ()


@pytest.mark.parametrize("damage", LARGE_DAMAGE)
def test_a_put_does_not_count_on_a_segment_that_is_gone(world: World, damage: Damage) -> None:
    """Before any verify or get has seen it: what a put acknowledges can be read."""
    damage(world)
    put_again(world)
    remove_first_versions(world)
    assert world.verify(deep=True).corrupt == ()


def test_a_blob_that_reads_well_again_leaves_quarantine(world: World) -> None:
    spot = of_size(world.spots(), "model", 8192)[0]
    with flipped(spot.path, spot.padding):
        assert attempt(world, "model") is None
        assert len(world.verify().corrupt) == 1
        assert "quarantine" in str(attempt(world, "model"))
    assert world.verify().corrupt == ()
    assert attempt(world, "model") is None


# --- memory


@pytest.mark.parametrize("name", ["rows", "flat"])
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_no_unverified_byte_stays_in_the_callers_buffer(world: World, name: str, frame: int) -> None:
    spot = three_frames(world, encoded=name == "flat")
    plain = bytearray(9 << 20)
    with world.open() as store:
        store.get("big").tensors([name], into=plain)
    # The frames are 4, 4 and 1 MiB of plaintext, and what they are encoded to is about in proportion.
    flip(spot.path, spot.offset + HEADER_BYTES + spot.header.payload_bytes * (8 * frame + 1) // 18)
    buffer = bytearray([FILL]) * len(plain)
    with world.open() as store, pytest.raises(Corrupt, match=spot.named()):
        store.get("big").tensors([name], into=buffer)
    for number in range(3):
        part = slice(number * FRAME_BYTES, (number + 1) * FRAME_BYTES)
        got = bytes(buffer[part])
        untouched = got in (bytes([FILL]) * len(got), bytes(len(got)))
        assert untouched or (number != frame and got == plain[part])


def test_a_selection_reads_past_damage_it_does_not_need(world: World) -> None:
    rows = three_frames(world, encoded=False)
    flip(rows.path, rows.offset + HEADER_BYTES + FRAME_BYTES + TAG_BYTES + 1)  # rows 1024 to 2047
    assert attempt(world, "big", Selection(slices=(("rows", 0, 1024),))) is None
    refused = attempt(world, "big", Selection(slices=(("rows", 1000, 1025),)))
    assert isinstance(refused, Corrupt)
    assert rows.named() in str(refused)


# --- what is not in the page cache


@contextmanager
def reading(monkeypatch: pytest.MonkeyPatch, *, cold: bool) -> Iterator[list[int]]:
    """Have every range count as not cached, or as cached; yield the lengths of what is read past the page cache."""
    lengths = list[int]()
    real = direct._read

    def read(fd: int, out: memoryview, offset: int) -> int:
        lengths.append(len(out))
        return real(fd, out, offset)

    with monkeypatch.context() as patched:
        patched.setattr(direct, "_is_cached", lambda *_: not cold)
        patched.setattr(direct, "_read", read)
        yield lengths


def staged(held: StoredObject) -> bytes:
    """Return the bytes of an artifact as they are staged."""
    held.read(0, memoryview(buffer := bytearray(held.length_bytes)))
    return bytes(buffer)


def tensors(world: World) -> bytes | Corrupt:
    """Return the bytes of the large tensors, or the refusal."""
    with world.open() as store:
        try:
            return staged(stored_artifact(store.get("big")))
        except Corrupt as error:
            return error


def damages(world: World) -> dict[str, Callable[[], None]]:
    """Each part of a large record changed, its end cut off, its space given back, its file gone."""
    found: dict[str, Callable[[], None]] = {}
    for encoded in (False, True):
        spot = three_frames(world, encoded=encoded)
        fields = regions(spot)
        for name in ("check", "tag of the last frame", "digest in the footer"):
            found[f"{name} {encoded}"] = partial(flip, spot.path, sum(fields[name]) // 2)
        found[f"zeros {encoded}"] = partial(write_at, spot.path, spot.offset, bytes(ALIGN_BYTES))
        found[f"cut {encoded}"] = partial(os.truncate, spot.path, spot.end - 1)
        found[f"gone {encoded}"] = spot.path.unlink
    return found


def test_cold_reads_refuse_what_warm_ones_do(pristine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in damages(pristine):
        refusals = []
        for cold in (True, False):
            world = pristine.copy(tmp_path / "world")
            damages(world)[name]()
            with reading(monkeypatch, cold=cold):
                refusals.append(tensors(world))
            shutil.rmtree(world.base)
        assert isinstance(refusals[0], Corrupt), name
        assert str(refusals[0]) == str(refusals[1]), name


def test_cold_reads_give_what_warm_ones_do(pristine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with reading(monkeypatch, cold=True) as lengths:
        found = tensors(pristine)
    if not lengths:
        pytest.skip("this file system reads nothing past the page cache")
    assert max(lengths) > 4 << 20
    with reading(monkeypatch, cold=False) as none:
        assert found == tensors(pristine)
    assert none == []
    whole = pristine.source("big").read_bytes()
    ends = [0, 1, 300, FRAME_BYTES - 1, FRAME_BYTES + 5000, 9 << 20, len(whole) - 70, len(whole)]
    with reading(monkeypatch, cold=True), pristine.open() as store:
        for start, stop in [(one, other) for one in ends for other in ends if one < other]:
            out = bytearray(stop - start)
            store.get("big").fill([((0, start, stop), memoryview(out))], cold=True)
            assert out == whole[start:stop], (start, stop)


def test_what_is_not_cached_is_read_past_the_cache_and_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_COLD_TASK_BYTES", 1 << 30)  # or what a map has read ahead nearby is part of a run
    spot = three_frames(world, encoded=False)
    fd = os.open(spot.path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if direct._is_cached(fd, spot.offset, spot.end):
            pytest.skip("this kernel or file system does not say what is cached")
        assert isinstance(tensors(world), bytes)
        assert not direct._is_cached(fd, spot.offset, spot.end)
        flip(spot.path, spot.offset + HEADER_BYTES + FRAME_BYTES + 99)  # in the cache and not yet on the disk
        assert spot.named() in str(tensors(world))
    finally:
        os.close(fd)


def test_a_disk_that_fails_under_a_cold_read_is_said_and_marks_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with reading(monkeypatch, cold=True), monkeypatch.context() as patched:
        patched.setattr(direct, "_read", failing)
        with pytest.raises(StorageFailed, match=r"^[^\n]*\.seg: input/output error$"):
            tensors(world)
    assert attempt(world, "big") is None


def test_a_file_that_changes_while_it_is_mapped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spot = max((spot for spot in world.spots() if spot.artifact == "big" and spot.is_blob), key=lambda one: one.end)
    with reading(monkeypatch, cold=True) as lengths, world.open() as store:
        big = stored_artifact(store.get("big"))
        first = staged(big)
        if not lengths:
            pytest.skip("this file system reads nothing past the page cache")
        count = len(os.listdir("/proc/self/fd"))
        assert all(staged(big) == first for _ in range(20))
        assert len(os.listdir("/proc/self/fd")) == count
        held = spot.path.read_bytes()
        os.truncate(spot.path, spot.end - ALIGN_BYTES - 1)
        with pytest.raises(Corrupt, match="cut short"):
            staged(big)
        spot.path.write_bytes(held)
    assert world.verify().corrupt == ()
    with reading(monkeypatch, cold=True), world.open() as store:
        big = stored_artifact(store.get("big"))
        assert staged(big) == first
        spot.path.unlink()  # as a collection does; the map has it still
        assert staged(big) == first


# --- manifests that were made to do harm


def plant_bytes(store: Store, name: str, packed: bytes) -> None:
    """Commit any bytes as the version record of `name`."""
    parts = store._parts.put
    key = digest_bytes(parts.keys.tenant.digest_key, packed)
    slot, secret = (0, None)
    if parts.keys.encrypted:
        [(slot, secret)] = parts.keys.keyring.reserve(parts.keys.number, 1)
    draft = draft_record(parts.keys, slot, secret, KIND_VERSION, key, memoryview(packed), Codec.ZSTD, 1 << 20)
    with closing(parts.open_writer("weights")) as writer:
        extent = writer.reserve(draft.record_bytes).use(memoryview(make_buffer(WRITE_BUFFER_BYTES)))
        place = draft.seal_into(extent)
        extent.finish()
        summary = Summary(name, 1, None, "0" * 64, "weights", None, 1, "2026-01-01T00:00:00Z", False)
        row = VersionRow(place, False, summary.sealed(secret))
        parts.catalog.commit(NewVersion(name, 1, row, Needs(), {}, writer.sync()))


def with_file(manifest: Manifest, **changes: Any) -> Manifest:
    first, *rest = manifest.files
    return replace(manifest, files=(replace(first, **changes), *rest))


def with_tensor(manifest: Manifest, **changes: Any) -> Manifest:
    first, *rest = manifest.tensors
    return replace(manifest, tensors=(Tensor(first.file, replace(first.span, **changes)), *rest))


def with_blob(manifest: Manifest, change_bytes: int) -> Manifest:
    """Let the blob of the last file, and the file with it, be longer or shorter than it is."""
    *files, last = manifest.files
    [number] = last.blobs
    blobs = list(manifest.blobs)
    blobs[number] = BlobName(blobs[number].digest, blobs[number].length + change_bytes)
    return replace(manifest, files=(*files, replace(last, size=last.size + change_bytes)), blobs=tuple(blobs))


def with_directory(manifest: Manifest, path: str, file: str) -> Manifest:
    """Let the first file lie in a directory that the manifest names, as well-formed as it can be."""
    return replace(with_file(manifest, path=file), directories=(*manifest.directories, (path, 0o755)))


EVIL: dict[str, Callable[[Manifest], Manifest]] = {
    "up": lambda m: with_file(m, path="../evil"),
    "absolute": lambda m: with_file(m, path="/tmp/evil"),
    "through": lambda m: with_file(m, path="sub/../../evil"),
    "up by name": lambda m: with_directory(m, "..", "../evil"),
    "absolute by name": lambda m: with_directory(m, "/tmp", "/tmp/evil"),
    "through by name": lambda m: with_directory(m, "sub/../..", "sub/../../evil"),
    "dot": lambda m: with_file(m, path="./evil"),
    "empty part": lambda m: with_file(m, path="sub//evil"),
    "nothing": lambda m: with_file(m, path=""),
    "zero byte": lambda m: with_file(m, path="ev\0il"),
    "overlong": lambda m: with_file(m, path="e" * 256),
    "directory up": lambda m: replace(m, directories=(*m.directories, ("../evil", 0o755))),
    "directory absolute": lambda m: replace(m, directories=(*m.directories, ("/tmp/evil", 0o755))),
    "in no directory": lambda m: with_file(m, path="nowhere/evil"),
    "in a file": lambda m: with_file(m, path=f"{m.files[1].path}/evil"),
    "directory in no directory": lambda m: replace(m, directories=(*m.directories, ("no/where", 0o755))),
    "twice": lambda m: replace(m, files=(*m.files, m.files[0])),
    "file and directory": lambda m: replace(m, directories=(*m.directories, (m.files[0].path, 0o755))),
    "no such blob": lambda m: with_file(m, blobs=(10**6,)),
    "sum too small": lambda m: with_file(m, size=m.files[0].size + 1),
    "sum too large": lambda m: with_file(m, size=m.files[0].size - 1),
    "absurd size": lambda m: with_file(m, size=1 << 62),
    "absurd blob": lambda m: with_blob(m, 1 << 62),
    "longer blob": lambda m: with_blob(m, 1000),
    "shorter blob": lambda m: with_blob(m, -1000),
    "blob of nothing": lambda m: with_blob(m, -m.files[-1].size),
    "tensor past the end": lambda m: with_tensor(m, start=m.files[m.tensors[0].file].size),
    "tensor too long": lambda m: with_tensor(m, length=1 << 60),
    "tensor overflows": lambda m: with_tensor(m, start=(1 << 63) - 1, length=1),
    "tensor of no file": lambda m: replace(m, tensors=(Tensor(99, m.tensors[0].span), *m.tensors[1:])),
    "unknown kind": lambda m: replace(m, kind="program"),
    "single of many": lambda m: replace(m, single=True),
}


@pytest.fixture(scope="module")
def stained(pristine: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One store for all that is evil, each under a name of its own."""
    return pristine.copy(tmp_path_factory.mktemp("stained") / "world")


def check_evil(world: World, name: str) -> None:
    """Check that `name` is refused as corrupt, that nothing appeared anywhere, and that all else is as it was."""
    before = set(world.base.rglob("*"))
    refused = attempt(world, name)
    assert isinstance(refused, Corrupt)
    assert EXIT_CODES[type(refused)] == 13
    assert set(world.base.rglob("*")) == before
    assert not Path("/tmp/evil").exists()
    assert attempt(world, "model") is None


@pytest.mark.parametrize("trick", EVIL)
def test_a_hostile_manifest_writes_nothing(stained: World, trick: str) -> None:
    """Sealed with the store's own keys, as only a tenant can, or anybody where there is no encryption."""
    name = trick.replace(" ", "-")
    with stained.open() as store:
        evil = EVIL[trick](store.show("model")[1])
        # On the way in nothing parses a manifest: the store made it itself.
        tag_manifest(store._parts.put, evil, Wish(parse_ref(name), "weights", ()))
    check_evil(stained, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (64, 33)},
        {"shape": (1 << 40,)},
        {"shape": (64, 32), "stride": (1000, 1)},
        {"dtype": "F64"},
        {"length": 7},
    ],
    ids=str,
)
def test_a_hostile_tensor_table_is_refused(stained: World, changes: dict[str, Any]) -> None:
    """The files still come back; but no tensor is made of bytes that are not there."""
    name = "table-" + "".join(c if c.isalnum() else "." for c in str(changes))
    with stained.open() as store:
        evil = with_tensor(store.show("model")[1], **changes)
        first = evil.tensors[0].span.name
        tag_manifest(store._parts.put, evil, Wish(parse_ref(name), "weights", ()))
    with stained.open() as store, pytest.raises(Corrupt):
        store.get(name).tensors([first])


EVIL_BYTES = {
    "not JSON": b"{",
    "not text": b"\xff\xfe" * 100,
    "no manifest": b"{}",
    "a list": b"[1]",
    "a number": b"1",
    "manifest is null": b'{"manifest":null}',
    "later format": b'{"manifest":{"format":2}}',
    "key twice": b'{"manifest":{},"manifest":{}}',
    "not a number": b'{"manifest":{"format":NaN}}',
    "deep": b'{"manifest":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
}


@pytest.mark.parametrize("trick", EVIL_BYTES)
def test_a_hostile_version_record_writes_nothing(stained: World, trick: str) -> None:
    name = trick.replace(" ", "-")
    with stained.open() as store:
        plant_bytes(store, name, EVIL_BYTES[trick])
    check_evil(stained, name)
    assert listed(stained.verify(name, "model")) == {(f"{name}@1",)}


def test_a_link_in_the_destination_is_refused(world: World) -> None:
    outside, out = world.base / "outside", world.base / "place"
    outside.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(outside)
    ran = arstore("--store", world.root, "get", "model", out)
    assert ran.code == 2
    assert str(out / "sub") in ran.error
    assert list(outside.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["sub"]
