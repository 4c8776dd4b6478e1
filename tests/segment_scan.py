"""What lies in segment files, read from the records' headers alone: no keys, no catalog."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from arstore.formats.errors import FormatError
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, Header, parse_header


def records(store: Path) -> Iterator[tuple[Header, bool]]:
    """Yield every record that was begun, and whether it was written to its end.

    The footer is written last and is never zero; what a segment holds before it is written is.
    """
    for path in sorted((store / "segments").iterdir()):
        content = path.read_bytes()
        at = ALIGN_BYTES
        while at + ALIGN_BYTES <= len(content):
            try:
                header = parse_header(content[at : at + HEADER_BYTES])
            except FormatError:
                at += ALIGN_BYTES
                continue
            footer = content[at + header.used_bytes - header.footer_bytes : at + header.used_bytes]
            whole = at + header.record_bytes <= len(content) and any(footer)
            yield header, whole
            at += header.record_bytes if whole else ALIGN_BYTES


def check_keys_are_used_once(store: Path) -> None:
    """Assert that no key of an encrypted store sealed two records, dead ones and torn ones included."""
    slots = Counter((header.binding.tenant, header.slot) for header, _ in records(store))
    assert [slot for slot, times in slots.items() if times > 1] == [], "a key sealed two records"
