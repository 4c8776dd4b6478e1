"""What somebody finds who has old copies of a store, its key file, and this page of the format."""

import itertools
import json
import secrets
import threading
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from arstore import Store
from arstore.formats.codec import Codec, decode
from arstore.formats.digest import derive
from arstore.formats.errors import FormatError
from arstore.formats.frames import TAG_BYTES, Frames, frames_of, unseal
from arstore.formats.keypage import (
    LEAF_SLOTS,
    PAGE_BYTES,
    PageRef,
    Root,
    open_page,
    open_root,
    parse_children,
    parse_tenant,
    slot_key,
)
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, Header, open_footer, parse_header
from arstore.store.disk import Disk
from arstore.store.init import init_store
from arstore.store.keys.unlock import Secrets


@dataclass(frozen=True, slots=True)
class Haul:
    """Files by name, each in every version the attacker has, contents of the root, and the key file's secret."""

    files: dict[str, list[bytes]]
    roots: list[bytes]
    secret: bytes

    def named(self, ending: str) -> Iterator[bytes]:
        for name, versions in self.files.items():
            if name.endswith(ending):
                yield from versions


def plunder(haul: Haul) -> list[bytes]:
    """Return everything that can be read: raw bytes, and all that opens under any key that any root leads to."""
    store_id = bytes.fromhex(tomllib.loads(next(haul.named("config.toml")).decode())["store_id"])
    roots = list(_roots(haul, store_id))
    pages = {v[at : at + PAGE_BYTES] for v in haul.named("keys/pages") for at in range(0, len(v), PAGE_BYTES)}
    opened: list[bytes] = []
    record_keys: set[bytes] = set()
    for root in roots:
        for leaf in _leaves(pages, root.directory):
            tenant = parse_tenant(leaf)
            opened.append(leaf)
            for body in _leaves(pages, tenant.keys):
                record_keys |= {key for slot in range(LEAF_SLOTS) if (key := slot_key(body, slot))}
    seen: set[bytes] = set()
    for version in haul.named(".seg"):
        for at in range(0, len(version), ALIGN_BYTES):
            opened += _record(version, at, record_keys, seen)
    rows = {v[at : at + 4096] for v in haul.named("data.mdb") for at in range(0, len(v), 4096)}
    for page in rows:
        opened += _summaries(page, record_keys)
    return opened + list(itertools.chain.from_iterable(haul.files.values()))


def _roots(haul: Haul, store_id: bytes) -> Iterator[Root]:
    """Every root slot in every version of the root, under every master key that any stanza ever held."""
    ways = [way for version in haul.named("stanzas.json") for way in json.loads(version)["stanzas"]]
    masters = {haul.secret}
    for _ in range(2):  # the second time for the master key before, which lies under the one after it
        for way, secret in itertools.product(ways, set(masters)):
            key = derive(bytes.fromhex(way["salt"]) + secret, "stanza key")
            with_context = f"master key {store_id.hex()}"
            try:
                masters.add(unseal(key, with_context, bytes.fromhex(way["sealed"])))
            except FormatError:
                continue
    for content, master in itertools.product(haul.roots, masters - {haul.secret}):
        for at in range(0, len(content), PAGE_BYTES):
            try:
                yield open_root(master, store_id, content[at : at + PAGE_BYTES])
            except FormatError:
                continue


def _leaves(pages: set[bytes], ref: PageRef) -> Iterator[bytes]:
    """The leaves under a reference. Its key is tried on every page that was ever at any position."""
    for page in pages if ref.position else ():
        try:
            body = open_page(ref.key, page)
        except FormatError:
            continue
        if not ref.depth:
            yield body
        for child in parse_children(body, ref.depth).values() if ref.depth else ():
            yield from _leaves(pages, child)


def _record(content: bytes, at: int, keys: set[bytes], seen: set[bytes]) -> Iterator[bytes]:
    try:
        header = parse_header(content[at : at + HEADER_BYTES])
    except FormatError:
        return
    record = content[at : at + header.record_bytes]
    mark = blake3(record).digest()
    if mark in seen:
        return
    seen.add(mark)
    for key in keys:
        frames = frames_of(key, header.binding)
        if frames.commitment == header.commitment:
            yield from _plaintexts(record, header, frames)


def _plaintexts(record: bytes, header: Header, frames: Frames) -> Iterator[bytes]:
    bound = header.binding
    start = HEADER_BYTES + header.payload_bytes
    try:
        footer = open_footer(header, frames, record[start : start + header.footer_bytes])
        yield footer.digest
        offsets = list(footer.offsets)
    except FormatError:
        sizes = (bound.frame_length(index) + TAG_BYTES for index in range(bound.frames_count))
        offsets = [0, *itertools.accumulate(sizes)]
    for index, (first, last) in enumerate(itertools.pairwise(offsets)):
        sealed = record[HEADER_BYTES + first : HEADER_BYTES + last]
        out = bytearray(max(len(sealed) - TAG_BYTES, 0))
        plain = bytearray(bound.frame_length(index))
        try:
            frames.open_into(index, sealed, memoryview(out))
            decode(Codec(bound.codec), memoryview(out), memoryview(plain))
        except FormatError:
            continue
        yield bytes(plain)


def _summaries(page: bytes, keys: set[bytes]) -> Iterator[bytes]:
    """Version rows are known by their frame size, which stands 56 bytes into them; their sealed summary follows."""
    at = page.find((1 << 20).to_bytes(4, "little"))
    while at >= 0:
        length = int.from_bytes(page[at + 19 : at + 23], "little")
        sealed = page[at + 23 : at + 23 + length]
        for key in keys if 28 < length == len(sealed) else ():
            try:
                yield unseal(key, "version summary", sealed)
            except FormatError:
                continue
        at = page.find((1 << 20).to_bytes(4, "little"), at + 1)


def found(haul: Haul, canaries: Iterable[str | bytes]) -> set[str | bytes]:
    """Return the canaries that the attacker gets to see."""
    loot = plunder(haul)
    wanted = {one: one.encode() if isinstance(one, str) else one for one in canaries}
    return {one for one, text in wanted.items() if any(text in piece for piece in loot)}


def canary(what: str) -> str:
    return f"canary-{what}-{secrets.token_hex(12)}"


class Recorder(Disk):
    """A disk that keeps every version of every file it was pointed at, looked at after every operation."""

    def __init__(self, *watched: Path) -> None:
        self._watched, self._guard = watched, threading.Lock()
        self._seen: set[tuple[Path, bytes]] = set()
        self.versions: dict[Path, list[bytes]] = {}

    def look(self) -> None:
        with self._guard:
            for path in itertools.chain.from_iterable((one, *one.rglob("*")) for one in self._watched):
                try:
                    content = path.read_bytes()
                except OSError:  # a directory, or gone since it was listed
                    continue
                mark = path, blake3(content).digest()
                if mark not in self._seen:
                    self._seen.add(mark)
                    self.versions.setdefault(path, []).append(content)

    def write_at(self, fd: int, source: bytes | memoryview, offset: int) -> None:
        super().write_at(fd, source, offset)
        self.look()

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.look()

    def sync_dir(self, path: Path) -> None:
        super().sync_dir(path)
        self.look()

    def truncate(self, fd: int, length: int) -> None:
        self.look()
        super().truncate(fd, length)


@dataclass
class Scene:
    """A store whose every write is recorded, with its root inside or outside."""

    root: Path
    root_file: Path
    disk: Recorder = field(init=False)
    key_file: Path = field(init=False)
    outside: bool = True

    def __post_init__(self) -> None:
        self.disk = Recorder(self.root, self.root_file)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        config = init_store(self.root, self.disk, Secrets(), root_file=self.root_file if self.outside else None)
        assert config.key_file
        self.key_file = config.key_file

    def open(self, tenant: str = "default") -> Store:
        self.disk.look()
        return Store(self.root, tenant=tenant, disk=self.disk)

    def now(self) -> Haul:
        """What lies there now, the root and the key file."""
        files = {str(p.relative_to(self.root)): [p.read_bytes()] for p in self.root.rglob("*") if p.is_file()}
        return Haul(files, [self._root_path.read_bytes()], self._secret)

    def ever(self, *, old_roots: bool = False) -> Haul:
        """Every version of every file of the store, the root as it is now, and the key file."""
        self.disk.look()
        ever = self.disk.versions
        files = {str(path.relative_to(self.root)): ever[path] for path in ever if path != self._root_path}
        roots = ever[self._root_path] if old_roots else [self._root_path.read_bytes()]
        return Haul(files, roots, self._secret)

    def worst(self) -> Haul:
        """The strongest attacker that erase promises to stop: with the root inside, only what is there now."""
        return self.ever() if self.outside else self.now()

    @property
    def _root_path(self) -> Path:
        return self.root_file if self.outside else self.root / "keys" / "root"

    @property
    def _secret(self) -> bytes:
        return self.key_file.read_bytes().strip()
