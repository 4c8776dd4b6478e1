"""Whole stores, byte by byte: FORMAT.md section 2."""

import json
import struct
from typing import Any

from golden.codecs import BF16, F32
from golden.keys import Pages, Ref, root_file, root_plain, stanza, tenant_body
from golden.kv import SEQUENCES, Sequence
from golden.primitives import Json, canonical, derive, digest, fixed, keyed, packed_json, seal
from golden.records import BLOB, PAGE, VERSION, Owner, Record, padded, segment_header
from golden.rows import NOON, TABLES, Place, close, identity_row, lease
from golden.sheets import Built


class Store:
    """A store built byte by byte: `golden/note`, two sequences of KV and, where it is sealed, `golden/model`.

    Of the sealed one, version 1 of the model was erased and collected: a hole is where its record was, its slot (7)
    is empty. A put and an erase were killed in it: slots 5 and 6 are lent, the key of slot 10 is doomed and there.
    """

    def __init__(self, name: str) -> None:
        self.name, self.sealed = name, name == "sealed"
        self.id, self.master = fixed(f"{name} store", 16), fixed(f"{name} master")
        self.pages = Pages(name)
        seed = fixed("sealed tenant", 80) if self.sealed else derive(self.id + b"default", "open tenant", 80)
        slots = [*range(1, 7), *range(8, 18), 130] if self.sealed else []
        record_keys = {slot: fixed(f"record key {slot}") for slot in slots}
        self.owner = Owner(seed[:16], seed[16:48], seed[48:], record_keys)
        self.catalog_key = fixed(f"{name} catalog key")
        self.holds: dict[int, str] = {}
        self.directory, self.next_tenant = self._grow_tree()
        self._segment = bytearray(segment_header(self.id, 1, 1))
        self._places: dict[bytes, Place] = {}
        self._refs: dict[bytes, int] = {}
        self._claims: dict[bytes, list[Any]] = {}  # refs, tokens, blobs, about
        self._next_slot = 1
        self.rows: dict[str, dict[bytes, bytes]] = {table: {} for table in TABLES}
        self.artifacts = {"golden/model": self._put_model()} if self.sealed else {}
        self.artifacts["golden/note"] = self._put_note()
        self._next_slot = 12
        self.kv = [self._put_kv(sequence, slot) for sequence, slot in zip(SEQUENCES, (16, 17), strict=True)]
        self._finish_rows()

    def _grow_tree(self) -> tuple[Ref, int]:
        """Return the directory: one page in the plain store, two levels and a tree of keys in the sealed one."""
        if not self.sealed:
            return self.pages.add(tenant_body(self.owner, b"default", 0, 1, Ref())), 1
        low = {slot: key for slot, key in self.owner.keys.items() if slot < 127}
        leaves = {0: self.pages.leaf(low), 1: self.pages.leaf({130: self.owner.keys[130]})}
        tree = self.pages.inner(leaves, 1)
        first = self.pages.add(tenant_body(self.owner, b"default", 1 << 40, 131, tree))
        seed = fixed("other tenant", 80)
        other = Owner(seed[:16], seed[16:48], seed[48:], {})
        second = self.pages.add(tenant_body(other, "zweite-Mieterin-é".encode(), 0, 1, Ref()))
        self.holds = {1: "leaf", 2: "leaf", 3: "inner", 4: "tenant", 5: "tenant", 6: "inner"}
        return self.pages.inner({0: first, 1: second}, 1), 2

    def _append(self, plain: bytes, codec: int, kind: int, slot: int, frame_bytes: int) -> Place:
        place = Place(
            1, len(self._segment), Record(self.owner, slot if self.sealed else 0, plain, codec, kind, frame_bytes)
        )
        self._segment += padded(place.record.packed())
        return place

    def _blob(self, plain: bytes, codec: int, frame_bytes: int = 64) -> list[Any]:
        """Return the manifest line of a blob, stored if it is new."""
        name = digest(self.owner.digest_key, plain)
        if name not in self._places:
            self._places[name] = self._append(plain, codec, BLOB, self._next_slot, frame_bytes)
            self._next_slot += 1
        return [name.hex(), len(plain)]

    def _row(self, table: str, key: bytes, value: bytes) -> None:
        self.rows[table][key] = close(self.catalog_key, table, key, value)

    def _put_model(self) -> Json:
        header = {
            "a": {"dtype": "BF16", "shape": [3, 8], "data_offsets": [0, 48]},
            "b": {"dtype": "F32", "shape": [17], "data_offsets": [48, 116]},
        }
        text = canonical(header).encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        config = b'{"hidden_size": 8}\n'.ljust(120, b"\n")
        blobs = [self._blob(config, 1)]
        self._segment += bytes(PAGE)  # the hole
        blobs += [self._blob(head, 0), self._blob(BF16, 2), self._blob(F32, 3)]
        size, start = len(head) + 116, len(head)
        manifest = {
            "format": 1,
            "kind": "weights",
            "identity": {"model": "golden"},
            "single": False,
            "directories": [["shards", 0o750]],
            "blobs": blobs,
            "files": [
                ["config.json", 0o640, len(config), "bytes", [0]],
                ["shards/model.safetensors", 0o644, size, "safetensors", [1, 2, 3]],
            ],
            "tensors": [["a", "BF16", [3, 8], 1, start, 48], ["b", "F32", [17], 1, start + 48, 68]],
        }
        self._version("golden/model", 2, "v2", manifest, 130)
        files = {
            "config.json": {"mode": 0o640, "bytes": config.hex()},
            "shards/model.safetensors": {"mode": 0o644, "bytes": (head + BF16 + F32).hex()},
        }
        return {"version": 2, "label": "v2", "pinned": True, "files": files}

    def _put_note(self) -> Json:
        note = F32  # the bytes of a tensor that is stored already
        manifest = {
            "format": 1,
            "kind": "file",
            "identity": {},
            "single": True,
            "directories": [],
            "blobs": [self._blob(note, 0)],
            "files": [["note.txt", 0o600, len(note), "bytes", [0]]],
            "tensors": [],
        }
        self._version("golden/note", 1, None, manifest, 11)
        files = {"note.txt": {"mode": 0o600, "bytes": note.hex()}}
        return {"version": 1, "label": None, "pinned": False, "files": files}

    def _put_kv(self, sequence: Sequence, slot: int) -> Json:
        blobs = [self._blob(block, 0) for block in sequence.blocks()]
        manifest = sequence.manifest(self.owner.digest_key, blobs)
        self._version(sequence.name, 1, None, manifest, slot)
        for id_, tokens, numbers in manifest["claims"]:
            about = b"" if tokens else canonical(manifest["shape"]).encode()
            row = [0, tokens, [bytes.fromhex(blobs[number][0]) for number in numbers], about]
            self._claims.setdefault(bytes.fromhex(id_), row)[0] += 1
        return sequence.described()

    def _version(self, name: str, version: int, label: str | None, manifest: Json, slot: int) -> None:
        created = "2026-11-24T12:00:00Z"
        inner = canonical(manifest)
        head = canonical({"name": name})[:-1] + f',"version":{version},"label":{canonical(label)},"created":"{created}"'
        record = self._append(f'{head},"manifest":{inner}}}'.encode(), 1, VERSION, slot, 512)
        size = sum(file[2] for file in manifest["files"])
        model, kind = manifest["identity"].get("model"), manifest["kind"]
        id_ = digest(self.owner.digest_key, inner.encode()).hex()
        summary = json.dumps([name, label, id_, kind, model, size, created], separators=(",", ":")).encode()
        if record.record.key:
            summary = seal(record.record.key, "version summary", summary, f"summary {name}")
        key = self._name_key(name)
        pinned = label is not None
        told = struct.pack("<BQII", pinned, NOON + 60 if pinned else 0, len(manifest.get("claims", ())), len(summary))
        self._row("versions", key + struct.pack(">I", version), record.packed() + told + summary)
        self._row("names", key, struct.pack(">I", version))
        for blob, _ in manifest["blobs"]:
            self._refs[bytes.fromhex(blob)] = self._refs.get(bytes.fromhex(blob), 0) + 1

    def _name_key(self, name: str) -> bytes:
        return bytes(4) + keyed(self.owner.index_key, b"name", name.encode(), length=20)

    def _id_key(self, id_: bytes) -> bytes:
        return bytes(4) + keyed(self.owner.index_key, b"identity", id_, length=20)

    def _finish_rows(self) -> None:
        for number, (name, place) in enumerate(self._places.items()):
            key = bytes(4) + keyed(self.owner.index_key, b"blob", name, length=20)
            checked = 0 if number else NOON + 30
            self._row("blobs", key, place.packed() + struct.pack("<IBIQQ", self._refs[name], 0, 0, 0, checked))
        for id_, row in self._claims.items():
            self._row("identities", self._id_key(id_), identity_row(id_, *row))
        live = len(self._segment) - (2 if self.sealed else 1) * PAGE  # but for the header, and the hole
        self._row("segments", struct.pack(">Q", 1), struct.pack("<BQQ", 1, len(self._segment), live))
        self._row("counters", b"next-segment", struct.pack("<Q", 1))
        self._row("counters", b"usage" + bytes(4), struct.pack("<Q", live))
        self._row("counters", b"gc-cycle", struct.pack("<Q", 3))
        self._row("counters", b"quarantines" + bytes(4), struct.pack("<Q", 1))
        self._row("leases", b"name" + self._name_key("golden/note"), lease(2, bytes(16), b"put"))
        self._row("leases", b"gc", lease(3, fixed("owner", 16), b"gc"))
        if self.sealed:
            self._row("loans", bytes(4) + fixed("loan", 8), struct.pack(">2Q", 5, 6))
            self._row("spare", bytes(4), struct.pack(">2Q", 8, 9))
            self._row("doomed", bytes(4) + struct.pack(">Q", 10), struct.pack(">Q", 10))

    def built(self) -> Built:
        """Return what the sheets of keys and of rows say of this store."""
        return Built(self.id, self.master, self.catalog_key, self.owner, self.pages.bodies, self.holds, self.rows)

    def directory_files(self) -> dict[str, bytes]:
        """Return every file of the store but the catalog, and the sheet that says what is in it."""
        secret = b"the secret of the golden key file"
        way = stanza("key-file" if self.sealed else "open", secret, self.master, self.id)
        epoch = 5 if self.sealed else 2
        root = root_file(
            self.master, self.id, epoch, root_plain(epoch, self.directory, self.next_tenant, self.catalog_key)
        )
        sheet = {
            "key_file": (secret + b"\n").hex() if self.sealed else None,
            "epoch": epoch,
            "master": self.master.hex(),
            "catalog_key": self.catalog_key.hex(),
            "slots_without_a_key": [7] if self.sealed else [],
            "artifacts": self.artifacts,
            "kv": self.kv,
            "ids": {self._id_key(id_).hex(): id_.hex() for id_ in self._claims},
            "catalog": {
                table: {key.hex(): value.hex() for key, value in rows.items()} for table, rows in self.rows.items()
            },
        }
        config = f'format = 1\nstore_id = "{self.id.hex()}"\nencrypted = {str(self.sealed).lower()}\n'
        top = f"{self.name}-store"
        return {
            f"{top}.json": packed_json(sheet),
            f"{top}/config.toml": config.encode(),
            f"{top}/keys/stanzas.json": json.dumps({"format": 1, "stanzas": [way]}, indent=1).encode(),
            f"{top}/keys/root": root,
            f"{top}/keys/pages": self.pages.packed(),
            f"{top}/keys/lock": b"",
            f"{top}/segments/0000000000000001.seg": bytes(self._segment),
        }
