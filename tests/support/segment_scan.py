"""What lies in segment files, read from the records' headers alone: no keys, no catalog."""

from collections import Counter
from collections.abc import Iterator, Mapping
from mmap import PROT_READ, mmap
from pathlib import Path

from arstore.formats.errors import FormatError
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, Header, parse_header


def records(store: Path) -> Iterator[tuple[Header, bool]]:
    """Yield every record that was begun, and whether it was written to its end."""
    for path in sorted((store / "segments").iterdir()):
        for header, _, whole in _records(path, ALIGN_BYTES):
            yield header, whole


def records_since(store: Path, lengths: Mapping[int, int]) -> Iterator[tuple[Header, tuple[int, int]]]:
    """Yield what was begun past these lengths of segments, and in which segment and where it lies."""
    for path in sorted((store / "segments").iterdir()):
        segment = int(path.stem, 16)
        for header, at, _ in _records(path, lengths.get(segment, ALIGN_BYTES)):
            yield header, (segment, at)


def _records(path: Path, start: int) -> Iterator[tuple[Header, int, bool]]:
    """Yield header, place, and whether the footer is there: it is written last and is never zero; what a segment holds
    before it is written is.
    """
    if not path.stat().st_size:
        return  # made by a writer that was killed then
    with path.open("rb") as file:
        content = mmap(file.fileno(), 0, prot=PROT_READ)
    at = max(start, ALIGN_BYTES)
    while at + ALIGN_BYTES <= len(content):
        try:
            header = parse_header(content[at : at + HEADER_BYTES])
        except FormatError:
            at += ALIGN_BYTES
            continue
        footer = content[at + header.used_bytes - header.footer_bytes : at + header.used_bytes]
        whole = at + header.record_bytes <= len(content) and any(footer)
        yield header, at, whole
        at += header.record_bytes if whole else ALIGN_BYTES


def check_keys_are_used_once(store: Path) -> None:
    """Assert that no key of an encrypted store sealed two records, dead ones and torn ones included."""
    slots = Counter((header.binding.tenant, header.slot) for header, _ in records(store))
    assert [slot for slot, times in slots.items() if times > 1] == [], "a key sealed two records"
