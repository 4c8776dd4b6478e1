"""Golden vectors: digests and codecs."""

import re
from typing import TYPE_CHECKING, Any

import pytest

from arstore.formats import codec, digest
from tests.support import spec_records
from tests.support.spec_records import Refused

if TYPE_CHECKING:
    pass
from tests.support.vectors import each, refuses, sheet


def test_digests() -> None:
    for one in sheet("digests")["digests"]:
        assert digest.digest_bytes(bytes.fromhex(one["key"]), bytes.fromhex(one["plain"])).hex() == one["digest"]
        assert digest.parse_digest(one["digest"]).hex() == one["digest"]
    for one in sheet("digests")["derived"]:
        assert digest.derive(bytes.fromhex(one["secret"]), one["context"], one["length"]).hex() == one["derived"]
    for one in sheet("digests")["keyed"]:
        parts = [bytes.fromhex(part) for part in one["parts"]]
        assert digest.keyed_hash(bytes.fromhex(one["key"]), *parts, length=one["length"]).hex() == one["keyed"]
    for one in sheet("digests")["bad_texts"]:
        refuses(digest.parse_digest, one["text"])


def decoded(number: int, encoded: bytes, length: int) -> bytes:
    plain = bytearray(length)
    codec.decode(number, memoryview(encoded), memoryview(plain))
    return bytes(plain)


@each("codecs", "good", "name")
def test_good_frame(vector: Any) -> None:
    encoded, plain = bytes.fromhex(vector["encoded"]), bytes.fromhex(vector["plain"])
    assert decoded(vector["codec"], encoded, len(plain)) == plain
    assert spec_records.decode(vector["codec"], encoded, len(plain)) == plain
    again = codec.encode(codec.Codec(vector["codec"]), memoryview(plain))  # zstd may find other bytes for the same
    assert decoded(vector["codec"], again, len(plain)) == plain
    if vector["codec"] == codec.Codec.STORED:
        assert again == encoded


CODEC_RULES = {
    "length": r"stored frame is \d+ bytes|codec part is \d+ bytes, want at most",
    "zstd": r"codec part|zstd frame",
    "planes": r"plane frame is|plane parts are",
    "limits": r"exceeds the limit",
    "codec": r"codec \d+ is not known",
}


@each("codecs", "bad", "why")
def test_bad_frame(vector: Any) -> None:
    encoded = bytes.fromhex(vector["encoded"])
    said = refuses(decoded, vector["codec"], encoded, vector["plain_bytes"])
    assert re.search(CODEC_RULES[vector["refused"]], said), said
    with pytest.raises(Refused):
        spec_records.decode(vector["codec"], encoded, vector["plain_bytes"])
