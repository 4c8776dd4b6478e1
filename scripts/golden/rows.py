"""Rows of the catalog, FORMAT.md section 9: what good ones say, and bad ones."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from golden.primitives import Json, changed, fixed, keyed
from golden.records import Record
from golden.sheets import Built

TABLES = ("blobs", "versions", "names", "segments", "counters", "loans", "spare", "doomed", "leases", "identities")
NOON = 1795521600  # 2026-11-24T12:00:00Z


@dataclass(frozen=True)
class Place:
    segment: int
    offset: int
    record: Record

    def packed(self) -> bytes:
        one = self.record
        payload = sum(len(frame) + 16 for frame in one.frames)
        return struct.pack(
            "<QQQQQ16sIBB", self.segment, self.offset, one.slot, len(one.plain), payload, one.instance,
            one.frame_bytes, one.codec, int(one.key is not None),
        )  # fmt: skip


@dataclass(frozen=True)
class Process:
    """A process of a boot long ago."""

    boot_id: bytes = fixed("boot", 16)
    pid: int = 4321
    start: int = 8765
    pid_namespace: int = 4026531836

    def packed(self) -> bytes:
        return struct.pack("<16sIQQ", self.boot_id, self.pid, self.start, self.pid_namespace)

    def described(self) -> Json:
        return {"boot_id": self.boot_id.hex(), "pid": self.pid, "start": self.start,
                "pid_namespace": self.pid_namespace}  # fmt: skip


def lease(epoch: int, owner: bytes, purpose: bytes) -> bytes:
    return struct.pack("<QQ16s", epoch, 77_000_000_000, owner) + Process().packed() + struct.pack("<Q", NOON) + purpose


def close(check_key: bytes, table: str, key: bytes, value: bytes) -> bytes:
    """Return a row's value with its check."""
    return value + keyed(check_key, table.encode(), key, value, length=8)


def identity_row(id_: bytes, refs: int, tokens: int, blobs: Sequence[bytes], about: bytes = b"") -> bytes:
    return struct.pack("<I", refs) + masked(id_, identity_plain(tokens, blobs, about))


def identity_plain(tokens: int, blobs: Sequence[bytes], about: bytes = b"") -> bytes:
    return struct.pack("<IHI", tokens, len(blobs), len(about)) + b"".join(blobs) + about


def masked(id_: bytes, plain: bytes) -> bytes:
    mask = keyed(id_, b"identity row", length=len(plain))
    return bytes(one ^ other for one, other in zip(plain, mask, strict=True))


def good_rows(place: bytes, id_: bytes, owner: bytes, blobs: Sequence[bytes]) -> Json:
    """Return rows and what each of them says."""
    summary, shape = b"as it stands", b'{"dtype":"BF16","layers":[[0,2,8,128,8,128]]}'
    held = lease(9, owner, "für später".encode())
    owned = {"epoch": 9, "expires_ns": 77_000_000_000, "acquired_s": NOON, **Process().described()}
    good = [
        ("blob", "condemned", place + struct.pack("<IBIQQ", 0, 0, 7, NOON, NOON + 1),
         {"refs": 0, "state": 0, "condemned_cycle": 7, "condemned_s": NOON, "checked_s": NOON + 1}),
        ("blob", "in quarantine", place + struct.pack("<IBIQQ", 2**32 - 1, 1, 0, 0, 2**64 - 1),
         {"refs": 2**32 - 1, "state": 1, "condemned_cycle": 0, "condemned_s": 0, "checked_s": 2**64 - 1}),
        ("version", "pinned and read", place + struct.pack("<BQII", 1, NOON, 0, len(summary)) + summary,
         {"pinned": True, "used_s": NOON, "claimed": 0, "summary": summary.hex()}),
        ("version", "of KV", place + struct.pack("<BQII", 0, 0, 65536, len(summary)) + summary,
         {"pinned": False, "used_s": 0, "claimed": 65536, "summary": summary.hex()}),
        ("segment", "of KV", struct.pack("<BQQ", 2, 1 << 30, 4096),
         {"lifetime": 2, "durable_bytes": 1 << 30, "live_bytes": 4096}),
        ("identity", "a key id of KV", identity_row(id_, 3, 0, [], shape),
         {"refs": 3, "tokens": 0, "blobs": [], "about": shape.hex()}),
        ("identity", "a prefix block", identity_row(id_, 1, 256, blobs),
         {"refs": 1, "tokens": 256, "blobs": [one.hex() for one in blobs], "about": ""}),
        ("identity", "with the largest numbers", identity_row(id_, 2**32 - 1, 2**32 - 1, []),
         {"refs": 2**32 - 1, "tokens": 2**32 - 1, "blobs": [], "about": ""}),
        ("lease", "held", held, {"owner": owner.hex(), "purpose": "für später", **owned}),
        ("lease", "released, without a purpose", lease(9, bytes(16), b""),
         {"owner": bytes(16).hex(), "purpose": "", **owned}),
        ("lease", "with a purpose of 64 bytes", lease(9, owner, b"p" * 64),
         {"owner": owner.hex(), "purpose": "p" * 64, **owned}),
        ("process", "of a loan", Process().packed(), Process().described()),
    ]  # fmt: skip
    return [{"row": row, "name": name, "says": fields, "value": put.hex()} for row, name, put, fields in good]


def bad_checks(check_key: bytes, key: bytes, value: bytes, other: bytes) -> Json:
    """Return rows whose check does not fit: what is wrong with the row of a blob, or where it lies."""
    bad = [
        ("a bit of the place flipped", "blobs", key, changed(value, 9)),
        ("a bit of the time of its check flipped", "blobs", key, changed(value, len(value) - 9)),
        ("a bit of the check flipped", "blobs", key, changed(value, len(value) - 8)),
        ("under the key of another row", "blobs", other, value),
        ("in another table", "versions", key, value),
        ("cut by a byte", "blobs", key, value[:-1]),
        ("shorter than a check", "blobs", key, bytes(7)),
        ("empty", "blobs", key, b""),
        ("a check that holds without a table", "blobs", key, value[:-8] + keyed(check_key, key, value[:-8], length=8)),
    ]
    return [{"why": why, "table": table, "key": at.hex(), "value": put.hex()} for why, table, at, put in bad]


def bad_rows(value: bytes, version: bytes, id_: bytes, owner: bytes, blobs: Sequence[bytes]) -> Json:
    """Return rows that say what can't be, whatever their check says; `value` and `version` are good ones."""
    place, block, refs = value[:62], identity_plain(256, blobs), struct.pack("<I", 1)
    said = [
        ("blob", "state 2", place + struct.pack("<IBIQQ", 1, 2, 0, 0, 0)),
        ("blob", "a byte too many", value[:-8] + b"\0"),
        ("blob", "cut by a byte", value[:-9]),
        ("blob", "without condemnation and check", place + struct.pack("<IB", 1, 0)),
        ("blob", "a place alone", place),
        ("blob", "empty", b""),
        ("blob", "frame_bytes 0", place[:56] + bytes(4) + value[60:-8]),
        ("blob", "frames above 16 MiB", place[:56] + b"\xff" * 4 + value[60:-8]),
        ("version", "pinned 2", version[:62] + b"\2" + version[63:]),
        ("version", "a summary cut short", version[:-1]),
        ("version", "a summary of 4 GiB", version[:75] + b"\xff" * 4 + version[79:]),
        ("version", "a place alone", version[:62]),
        ("version", "without a count of claims", version[:71] + version[75:]),
        ("segment", "cut by a byte", bytes(16)),
        ("segment", "a byte too many", bytes(18)),
        ("identity", "empty", b""),
        ("identity", "cut within its counts", refs + masked(id_, block[:9])),
        ("identity", "cut by a byte", refs + masked(id_, block[:-1])),
        ("identity", "a byte too many", refs + masked(id_, block + b"\0")),
        ("identity", "a blob more than there is", refs + masked(id_, block[:4] + b"\3" + block[5:])),
        ("identity", "4 GiB about it", refs + masked(id_, block[:6] + b"\xff" * 4 + block[10:])),
        ("identity", "without a mask", refs + block),
        ("identity", "masked by another id", refs + masked(fixed("another id"), block)),
        ("identity", "its count masked too", masked(id_, refs + block)),
        ("lease", "cut by a byte", lease(9, owner, b"")[:-1]),
        ("lease", "a purpose of 65 bytes", lease(9, owner, b"p" * 65)),
        ("lease", "a purpose that is not UTF-8", lease(9, owner, b"\xff")),
        ("lease", "empty", b""),
        ("process", "cut by a byte", Process().packed()[:-1]),
        ("process", "a byte too many", Process().packed() + b"\0"),
    ]
    return [{"row": row, "why": why, "value": put.hex()} for row, why, put in said]


def catalog(store: Built) -> Json:
    """Return what rows say, and rows that must be refused: by their check, or, where that fits, by what they say."""
    check_key = store.catalog_key
    key, value = next(iter(store.rows["blobs"].items()))
    version = next(iter(store.rows["versions"].values()))[:-8]
    other = list(store.rows["blobs"])[1]
    id_, owner, blobs = fixed("an id"), fixed("owner", 16), [fixed("one blob"), fixed("another blob")]
    return {
        "check_key": check_key.hex(),
        "id": id_.hex(),
        "good_rows": good_rows(value[:62], id_, owner, blobs),
        "bad_checks": bad_checks(check_key, key, value, other),
        "bad_rows": bad_rows(value, version, id_, owner, blobs),
    }
