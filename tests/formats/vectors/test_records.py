"""Golden vectors: records, read as the store reads them and written again byte by byte."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arstore.formats import catalog, digest, record
from arstore.formats.frames import TAG_BYTES, Binding, frames_of
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt
from arstore.store.keys.keyring import Keyring
from arstore.store.keys.tenant_keys import TenantKeys
from arstore.store.segments.reader import SegmentReader
from arstore.store.segments.records import OpenRecord
from tests.support import spec_records
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    pass
from tests.support.vectors import VECTORS, WAYS, each, golden, refuses, sheet, spec_store

__all__ = ["golden"]  # fixtures


class Shelf:
    """A golden store's keys, and segments of one record each."""

    def __init__(self, way: str, home: Path) -> None:
        told = sheet(f"{way}-store")
        shutil.copytree(VECTORS / f"{way}-store" / "keys", home / "keys")
        header = record.parse_segment_header((VECTORS / f"{way}-store" / "segments" / f"{1:016x}.seg").read_bytes())
        self.store_id, self._home = header.store_id, home
        master = bytes.fromhex(told["master"])
        self.keyring = Keyring(home / "keys", home / "keys" / "root", [master], self.store_id, Disk())
        number, tenant = self.keyring.tenant("default")
        self.keys = TenantKeys(number, tenant, self.keyring, encrypted=way == "sealed")

    def opened(self, whole: bytes) -> OpenRecord:
        """Write a record to a segment and return it opened, not yet checked."""
        header = record.parse_header(whole)
        (self._home / f"{1:016x}.seg").write_bytes(record.SegmentHeader(self.store_id, 1, 1).packed() + whole)
        place = catalog.place_of(1, 4096, header)
        return OpenRecord(SegmentReader(self._home, self.store_id), self.keys, place, header.binding.kind)


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shelf]]:
    made = {way: Shelf(way, tmp_path_factory.mktemp(way)) for way in WAYS}
    yield made
    for shelf in made.values():
        shelf.keyring.close()


def padded(text: str) -> bytes:
    return bytes.fromhex(text).ljust(4096, b"\0")


@each("records", "good", "name")
def test_good_record(vector: Any, shelves: dict[str, Shelf]) -> None:
    shelf, owner = shelves[vector["store"]], sheet("records")["owners"][vector["store"]]
    whole, plain, named = padded(vector["record"]), bytes.fromhex(vector["plain"]), bytes.fromhex(vector["digest"])
    digest_key, key = bytes.fromhex(owner["digest_key"]), bytes.fromhex(vector["key"]) if vector["key"] else None
    opened = shelf.opened(whole)
    assert shelf.keys.tenant.digest_key == digest_key
    assert shelf.keys.key(opened.place) == key
    opened.check(digest.Digest(named), digest_key)
    assert opened.footer().digest == named
    assert opened.read_all() == plain
    assert spec_records.Record(whole, key).read(digest_key) == (named, plain)


@each("records", "good", "name")
def test_good_record_is_written_again_byte_by_byte(vector: Any) -> None:
    owner = sheet("records")["owners"][vector["store"]]
    plain, frame_bytes = bytes.fromhex(vector["plain"]), vector["frame_bytes"]
    binding = Binding(
        bytes.fromhex(owner["tenant"]), bytes.fromhex(vector["instance"]), vector["kind"], vector["codec"],
        frame_bytes, len(plain),
    )  # fmt: skip
    assert binding.packed().hex() == vector["binding"]
    frames = frames_of(bytes.fromhex(vector["key"]) if vector["key"] else None, binding)
    assert frames.commitment.hex() == vector["commitment"]
    cut = [plain[at : at + frame_bytes] for at in range(0, len(plain), frame_bytes)]
    encoded = [bytes.fromhex(frame) for frame in vector["encoded"]] if vector["codec"] else cut
    payload = b""
    for index, frame in enumerate(encoded):
        sealed = bytearray(len(frame) + TAG_BYTES)
        frames.seal_into(index, frame, memoryview(sealed))
        payload += sealed
    header = record.Header(binding, int(vector["key"] is not None), len(payload), vector["slot"], frames.commitment)
    named = digest.Digest(bytes.fromhex(vector["digest"]))
    footer = record.seal_footer(frames, named, [len(frame) for frame in encoded] if vector["codec"] else None)
    assert header.packed(frames) + payload + footer == padded(vector["record"])[: header.used_bytes]
    assert header.record_bytes == 4096


RECORD_RULES = {
    "form": r"no record starts here|does not know|exceeds the limits|contradict each other",
    "header": r"header is not the one that was written",
    "footer": r"footer fails its",
    "lengths": r"footer contradicts its header",
    "digest": r"holds another blob",
    "padding": r"padding is not zero",
    "frame": r"frame \d+ fails its",
    "codec": r"codec",
    "plaintext": r"another digest",
}


def damaged(vector: Any) -> tuple[Any, bytes]:
    """Return the good record that a bad one was made of, and the bad one."""
    of = next(one for one in sheet("records")["good"] if one["name"] == vector["of"])
    whole = bytearray(padded(of["record"]))
    for at, put in vector["puts"]:
        piece = bytes(put) if isinstance(put, int) else bytes.fromhex(put)
        whole[at : at + len(piece)] = piece
    assert whole != padded(of["record"])
    return of, bytes(whole)


@each("records", "bad", "of", "why")
def test_bad_record(vector: Any, shelves: dict[str, Shelf]) -> None:
    of, whole = damaged(vector)
    shelf = shelves[of["store"]]

    def read() -> bytes:
        opened = shelf.opened(whole)
        opened.check(digest.Digest(bytes.fromhex(of["digest"])), shelf.keys.tenant.digest_key)
        return opened.read_all()

    if vector["refused"] == "key":  # there is no key to try, so the store says which record it is
        with pytest.raises(Corrupt):
            read()
        return
    said = refuses(read)
    assert re.search(RECORD_RULES[vector["refused"]], said), said
    if vector["refused"] == "form":
        refuses(record.parse_header, whole)
    else:
        record.parse_header(whole)


@each("records", "bad", "of", "why")
def test_rules_of_the_specification_refuse_a_bad_record(vector: Any) -> None:
    of, whole = damaged(vector)
    told = sheet(f"{of['store']}-store")
    store = spec_store(of["store"], VECTORS / f"{of['store']}-store", told)
    try:
        _, found, plain = store.record(whole, 0)
    except Refused:
        return
    assert vector["refused"] == "digest", "only a record of another blob is one that opens"
    assert found.hex() != of["digest"]
    assert plain.hex() != of["plain"]
