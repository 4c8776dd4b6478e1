"""A second reader of stores, written from formats/FORMAT.md alone: it knows not a name of the product.

It checks what that page says must be checked and raises Refused for the rest; numbers in comments are its sections.
"""

import json
import struct
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from tests.support.spec_identity import Named, Shape, block_ids, claimed, key_id, parse_identity
from tests.support.spec_keys import Tenant, leaves, open_root, open_stanzas
from tests.support.spec_records import Header, Record, Refused, derive, digest, keyed, need, parse_header, unseal

Rows = Mapping[str, Mapping[bytes, bytes]]
Identities = tuple[dict[bytes, Named], dict[bytes, int]]
TABLES = ("blobs", "versions", "names", "segments", "counters", "loans", "spare", "doomed", "leases", "identities")


# --- 9. rows of slots and leases


@dataclass(frozen=True)
class Lease:
    """The fields of a lease row."""

    epoch: int
    expires_ns: int
    owner: bytes
    process: bytes
    acquired_s: int
    purpose: str


def parse_lease(value: bytes) -> Lease:
    need(76 <= len(value) <= 76 + 64, "length of a lease")
    epoch, expires_ns, owner, process, acquired_s = struct.unpack_from("<QQ16s36sQ", value)
    return Lease(epoch, expires_ns, owner, process, acquired_s, value[76:].decode())


def parse_slots(value: bytes) -> list[int]:
    need(len(value) % 8 == 0, "length of slots")
    return [slot for (slot,) in struct.iter_unpack(">Q", value)]


# --- 2., 3. and 9. the store


class Store:
    """A store directory, opened to read."""

    def __init__(self, root: Path, secrets: Mapping[str, bytes], tenant: str = "default") -> None:
        config = tomllib.loads((root / "config.toml").read_text("utf-8"))
        need(config["format"] == 1, "format")
        self._root, self.id, self.encrypted = root, bytes.fromhex(config["store_id"]), config["encrypted"]
        self._segments: dict[int, bytes] = {}
        document = json.loads((root / "keys" / "stanzas.json").read_bytes())
        masters = open_stanzas(document, self.encrypted, secrets, self.id)
        roots = Path(config.get("root_file", root / "keys" / "root")).read_bytes()
        pages = (root / "keys" / "pages").read_bytes()
        self.top = open_root(masters, self.id, roots)
        tenants = leaves(pages, self.top.directory, self.top.next_tenant).items()
        found = {number: one for number, body in tenants if (one := Tenant(body, pages)).name == tenant}
        need(len(found) == 1, "tenant is known")
        [(self.number, self.tenant)] = found.items()
        if not self.encrypted:
            seed = derive(self.id + tenant.encode(), "open tenant", 80)
            need(self.tenant.id + self.tenant.digest_key + self.tenant.index_key == seed, "keys of an open tenant")

    def catalog(self) -> Rows:
        """Return the tables of the catalog as they are."""
        environment = lmdb.open(str(self._root / "catalog"), readonly=True, lock=False, max_dbs=16)
        try:
            with environment.begin() as view:
                tables = {name: environment.open_db(name.encode(), view, create=False) for name in TABLES}
                return {name: dict(view.cursor(table)) for name, table in tables.items()}
        finally:
            environment.close()

    def row(self, rows: Rows, table: str, key: bytes) -> bytes:
        value = rows[table][key]
        check = keyed(self.top.catalog_key, table.encode(), key, value[:-8], length=8)
        need(value[-8:] == check, "check of the row")
        return value[:-8]

    def segment(self, segment: int) -> bytes:
        if segment in self._segments:
            return self._segments[segment]
        whole = (self._root / "segments" / f"{segment:016x}.seg").read_bytes()
        need(whole[:8] == b"ARSEGMT1" and whole[8:24] == self.id, "segment of this store")
        need(whole[24:32] == struct.pack("<Q", segment) and not any(whole[33:4064]), "segment of this name")
        need(whole[4064:4096] == derive(whole[:4064], "segment header"), "check of the segment header")
        self._segments[segment] = whole
        return whole

    def record(self, whole: bytes, offset: int) -> tuple[Header, bytes, bytes]:
        """Return header, digest and plaintext of the record at an offset of a segment."""
        header = parse_header(whole[offset : offset + 160])
        need(header.tenant == self.tenant.id, "tenant")
        need((header.protection == 1) == self.encrypted, "protection is the store's")
        key = self.tenant.key(header.slot) if header.protection else None
        return header, *Record(whole[offset : offset + header.record_bytes], key).read(self.tenant.digest_key)

    def at(self, place: bytes, kind: int) -> tuple[bytes, bytes]:
        """Return digest and plaintext of the record at a place of the catalog."""
        need(len(place) == 62, "length of a place")
        segment, offset, slot, plain, payload = struct.unpack_from("<QQQQQ", place)
        header, name, content = self.record(self.segment(segment), offset)
        told = (slot, plain, payload, place[40:56], *struct.unpack("<IBB", place[56:]), kind)
        found = (header.slot, header.plain_bytes, header.payload_bytes, header.instance, header.frame_bytes,
                 header.codec, header.protection, header.kind)  # fmt: skip
        need(told == found, "place and header agree")
        return name, content

    # --- 11. reading a file back

    def files(self, name: str, version: int | None = None, rows: Rows | None = None) -> dict[str, tuple[int, bytes]]:
        """Return mode and bytes of every file of a version, the newest by default, by way of the catalog."""
        rows = rows or self.catalog()
        hashed = self.hashed("name", name.encode())
        given = struct.unpack(">I", self.row(rows, "names", hashed))[0]
        value = self.row(rows, "versions", hashed + struct.pack(">I", version or given))
        pinned, _, _, length = struct.unpack_from("<BQII", value, 62)
        need(pinned in (0, 1) and len(value) == 79 + length, "version row")
        slot = struct.unpack_from("<Q", value, 16)[0]
        summary = unseal(self.tenant.key(slot), "version summary", value[79:]) if self.encrypted else value[79:]
        _, packed = self.at(value[:62], kind=2)
        body = json.loads(packed)
        self._check_version(body, json.loads(summary), (name, version or given))

        return self._assembled(body["manifest"], lambda wanted: self.blob(rows, wanted))

    def blob(self, rows: Rows, wanted: bytes) -> bytes:
        value = self.row(rows, "blobs", self.hashed("blob", wanted))
        need(len(value) == 87 and value[66] == 0, "blob row is live")
        found, plain = self.at(value[:62], kind=1)
        need(found == wanted, "blob is the one that was asked for")
        return plain

    def hashed(self, what: str, name: bytes) -> bytes:
        """Return the row key of a blob, name or identity."""
        return struct.pack(">I", self.number) + keyed(self.tenant.index_key, what.encode(), name, length=20)

    def named(self, rows: Rows, id_: bytes) -> Named | None:
        key = self.hashed("identity", id_)
        return parse_identity(self.row(rows, "identities", key), id_) if key in rows["identities"] else None

    def kv(self, tokens: Sequence[int], identity: Mapping[str, str]) -> tuple[int, dict[str, bytes]]:
        """Return how many of the tokens are stored, and their `layers.{i}.key` and `.value`, [heads, tokens, dim]."""
        rows, key = self.catalog(), derive(self.tenant.digest_key, "identity")
        root = key_id(key, "kv", identity)
        top = self.named(rows, root)
        if top is None:
            return 0, {}
        need(top[1:3] == (0, []), "row of a key id")
        shape, matched = Shape(json.loads(top[3])), 0
        found: dict[tuple[str, int], bytes] = {}
        for id_ in block_ids(key, root, tokens, int(identity["block_tokens"])):
            row = self.named(rows, id_)
            if row is None or any(self.row(rows, "blobs", self.hashed("blob", name))[66] for name in row[2]):
                break
            _, count, blobs, about = row
            need(about == b"", "row of a block")
            for head, part in shape.cut(b"".join(self.blob(rows, name) for name in blobs), count).items():
                found[head] = found.get(head, b"") + part
            matched += count
        sides = {name: b"".join(found[name, head] for head in range(heads)) for name, heads, _ in shape.sides if found}
        return matched, sides

    def _check_version(self, body: Any, summary: Any, wanted: tuple[str, int]) -> None:
        need(list(body) == ["name", "version", "label", "created", "manifest"], "keys of a version record")
        need((body["name"], body["version"]) == wanted, "name and version")
        manifest = body["manifest"]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        size = sum(file[2] for file in manifest["files"])
        need(summary == [
            body["name"], body["label"], digest(self.tenant.digest_key, text.encode()).hex(), manifest["kind"],
            manifest["identity"].get("model"), size, body["created"],
        ], "summary")  # fmt: skip

    def _assembled(self, manifest: Any, blob: Any) -> dict[str, tuple[int, bytes]]:
        need(manifest["format"] == 1, "manifest format")
        found = {}
        for path, mode, size, _, numbers in manifest["files"]:
            content = b"".join(blob(bytes.fromhex(manifest["blobs"][number][0])) for number in numbers)
            need(len(content) == size, "size")
            found[path] = (mode, content)
        return found

    def scan(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield kind, digest and plaintext of every record of this tenant in every segment: no catalog is needed."""
        for path in sorted((self._root / "segments").glob("[!.]*.seg")):
            try:
                whole = self.segment(int(path.name.removesuffix(".seg"), 16))
            except Refused:
                continue
            at = 4096
            while at < len(whole):
                try:
                    header, name, plain = self.record(whole, at)
                except Refused:
                    at += 4096
                    continue
                yield header.kind, name, plain
                at += header.record_bytes

    def scanned_files(self) -> dict[tuple[str, int], dict[str, tuple[int, bytes]]]:
        """Return the files of every version by name and number, from segments and keys alone: what a rebuild finds."""
        records = list(self.scan())
        blobs = {name: plain for kind, name, plain in records if kind == 1}
        bodies = [json.loads(plain) for kind, _, plain in records if kind == 2]
        return {
            (body["name"], body["version"]): self._assembled(body["manifest"], blobs.__getitem__)
            for body in sorted(bodies, key=lambda body: str(body["created"]))
            if all(bytes.fromhex(blob) in blobs for blob, _ in body["manifest"]["blobs"])
        }

    def version_bodies(self) -> list[Any]:
        """Return every version record, the first that was created first."""
        return sorted(
            (json.loads(plain) for kind, _, plain in self.scan() if kind == 2), key=lambda one: one["created"]
        )

    def identities(self, rows: Rows) -> Identities:
        """Return what the catalog says of every identity, by its id, and how many claims versions hold, by row key."""
        ids = {id_ for body in self.version_bodies() for id_, *_ in claimed(body["manifest"])}
        found = {id_: row for id_ in ids if (row := self.named(rows, id_))}
        need(len(found) == len(rows["identities"]), "every identity is claimed")
        return found, {
            key: struct.unpack_from("<I", self.row(rows, "versions", key), 71)[0] for key in rows["versions"]
        }

    def scanned_identities(self) -> Identities:
        """Return the same as a rebuild makes it: what was created first wins."""
        found: dict[bytes, Named] = {}
        held: dict[bytes, int] = {}
        for body in self.version_bodies():
            key = self.hashed("name", body["name"].encode()) + struct.pack(">I", body["version"])
            held[key] = 0
            for id_, tokens, blobs, about in claimed(body["manifest"]):
                row = found.get(id_, (0, tokens, blobs, about))
                if row[1:] != (tokens, blobs, about):
                    break
                found[id_] = (row[0] + 1, tokens, blobs, about)
                held[key] += 1
        return found, held
