"""Golden vectors: segment headers."""

from typing import TYPE_CHECKING, Any

from arstore.formats import record

if TYPE_CHECKING:
    pass
from tests.support.vectors import each, refuses


def spread(pieces: Any) -> bytes:
    whole = bytearray(pieces["length"])
    for at, piece in pieces["pieces"].items():
        whole[int(at) : int(at) + len(piece) // 2] = bytes.fromhex(piece)
    return bytes(whole)


@each("segments", "good")
def test_good_segment_header(vector: Any) -> None:
    header = record.SegmentHeader(bytes.fromhex(vector["store_id"]), vector["segment"], vector["lifetime"])
    assert record.parse_segment_header(spread(vector["header"])) == header
    assert header.packed() == spread(vector["header"])


@each("segments", "bad", "why")
def test_bad_segment_header(vector: Any) -> None:
    refuses(record.parse_segment_header, spread(vector["header"]))
