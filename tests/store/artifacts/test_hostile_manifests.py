"""Hostile manifests: a record made to do harm writes nothing outside the destination."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arstore.cli.main import EXIT_CODES
from arstore.formats.catalog import VersionRow
from arstore.formats.codec import Codec
from arstore.formats.digest import digest_bytes
from arstore.formats.manifest import BlobName, Manifest, Needs, Tensor
from arstore.formats.record import KIND_VERSION
from arstore.store.artifacts.commit import Wish
from arstore.store.artifacts.names import Summary
from arstore.store.artifacts.put import tag_manifest
from arstore.store.artifacts.refs import parse_ref
from arstore.store.catalog.changes import NewVersion
from arstore.store.disk import make_buffer
from arstore.store.errors import Corrupt
from arstore.store.segments.records import draft_record
from arstore.store.segments.writer import WRITE_BUFFER_BYTES
from arstore.store.store import Store
from tests.support.command import arstore
from tests.support.damage import World, attempt, listed, pristine, sources, world

__all__ = ["pristine", "sources", "world"]  # fixtures


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
