"""Golden vectors: catalog rows."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from arstore.formats import catalog, lease
from tests.support import spec_identity, spec_reader
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    pass
from tests.support.vectors import WAYS, each, refuses, sheet

PARSERS: dict[str, Callable[..., Any]] = {
    "blobs": catalog.parse_blob, "versions": catalog.parse_version, "segments": catalog.parse_segment,
    "blob": catalog.parse_blob, "version": catalog.parse_version, "segment": catalog.parse_segment,
    "identities": catalog.parse_named, "identity": catalog.parse_named,
    "leases": lease.parse_lease, "lease": lease.parse_lease, "process": lease.parse_process,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_good_catalog_rows(way: str) -> None:
    told = sheet(f"{way}-store")
    check_key = bytes.fromhex(told["catalog_key"])
    assert set(told["catalog"]) == set(spec_reader.TABLES)
    for table, rows in told["catalog"].items():
        assert rows or (way == "plain" and table in ("loans", "spare", "doomed")), table
        for key_text, value_text in rows.items():
            key, value = bytes.fromhex(key_text), bytes.fromhex(value_text)
            packed = catalog.open_row(check_key, table, key, value)
            if table in PARSERS:
                ids = [bytes.fromhex(told["ids"][key_text])] if table == "identities" else []
                packed = PARSERS[table](packed, *ids).packed(*ids)
            assert catalog.close_row(check_key, table, key, packed) == value


def ids_for(row: str) -> list[bytes]:
    """Return what a row of the sheet is masked by, besides its bytes."""
    return [bytes.fromhex(sheet("catalog")["id"])] if row == "identity" else []


@each("catalog", "good_rows", "row", "name")
def test_good_catalog_row_says_what_it_says(vector: Any) -> None:
    packed = bytes.fromhex(vector["value"])
    parsed = PARSERS[vector["row"]](packed, *ids_for(vector["row"]))
    assert parsed.packed(*ids_for(vector["row"])) == packed
    said = {**asdict(parsed), **asdict(getattr(parsed, "process", getattr(parsed, "named", parsed)))}
    said = {name: value.hex() if isinstance(value, bytes) else value for name, value in said.items()}
    said["blobs"] = [blob.hex() for blob in said.get("blobs", ())]
    assert {name: said[name] for name in vector["says"]} == vector["says"]
    if vector["row"] == "lease":
        held = spec_reader.parse_lease(packed)
        assert (held.epoch, held.owner.hex(), held.purpose) == (said["epoch"], said["owner"], said["purpose"])
    if vector["row"] == "identity":
        refs, tokens, blobs, about = spec_identity.parse_identity(packed, *ids_for("identity"))
        found = {"refs": refs, "tokens": tokens, "blobs": [blob.hex() for blob in blobs], "about": about.hex()}
        assert found == vector["says"]


@each("catalog", "bad_checks", "why")
def test_catalog_row_with_a_bad_check(vector: Any) -> None:
    check_key = bytes.fromhex(sheet("catalog")["check_key"])
    key, value = bytes.fromhex(vector["key"]), bytes.fromhex(vector["value"])
    refuses(catalog.open_row, check_key, vector["table"], key, value)


@each("catalog", "bad_rows", "row", "why")
def test_catalog_row_that_says_too_much(vector: Any) -> None:
    refuses(PARSERS[vector["row"]], bytes.fromhex(vector["value"]), *ids_for(vector["row"]))
    if vector["row"] == "identity":
        with pytest.raises(Refused):
            spec_identity.parse_identity(bytes.fromhex(vector["value"]), *ids_for("identity"))
