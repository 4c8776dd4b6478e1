"""A store with three artifacts, every spot in it that can be damaged, and the damage."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore.formats.frames import TAG_BYTES
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, KIND_BLOB, Header, parse_header
from arstore.store.access import create_store
from arstore.store.artifacts.select import Selection
from arstore.store.errors import Corrupt, KeyRefused, NotFound
from arstore.store.keys.unlock import Secrets
from arstore.store.maintenance.scrub import Scrubbed
from arstore.store.store import Store
from arstore.store.tiers.local import StoredObject, stored_artifact

Tree = dict[str, bytes]


FRAME_BYTES = 4 << 20


# The fields of a record header, by the byte table of formats/FORMAT.md and not by the code that is tested.
HEADER_FIELDS = {
    "magic": (0, 4), "kind": (4, 5), "codec": (5, 6), "protection": (6, 7), "zero": (7, 8), "frame_bytes": (8, 12),
    "more zeros": (12, 16), "plain_bytes": (16, 24), "payload_bytes": (24, 32), "slot": (32, 40), "tenant": (40, 56),
    "instance": (56, 72), "commitment": (72, 104), "last zeros": (104, 128), "check": (128, 160),
}  # fmt: skip


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


def swap(first: Spot, second: Spot) -> None:
    one, two = first.bytes(), second.bytes()
    write_at(first.path, first.offset, two)
    write_at(second.path, second.offset, one)


def of_size(spots: list[Spot], artifact: str, plain_bytes: int) -> list[Spot]:
    return [s for s in spots if s.artifact == artifact and s.is_blob and s.header.binding.plain_bytes == plain_bytes]


def three_frames(world: World, *, encoded: bool) -> Spot:
    """Return the record of one of the two large tensors: `rows` is stored as it is, `flat` is encoded."""
    large = [spot for spot in world.spots() if spot.header.binding.frames_count == 3]
    [found] = [spot for spot in large if bool(spot.header.binding.codec) == encoded]
    return found


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
