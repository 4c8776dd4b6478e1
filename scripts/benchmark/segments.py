"""Segments as a stranger sees them: which records lie whole in the files, told without a key or the catalog."""

import os
from pathlib import Path

from arstore.formats.errors import FormatError
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES, Header, parse_header


def whole_record_bytes(folder: Path) -> int:
    """Return the bytes of the records that were written to their end, in all segment files of a folder."""
    return sum(_whole_in(path) for path in folder.iterdir())


def _whole_in(path: Path) -> int:
    total, at = 0, ALIGN_BYTES
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while at + ALIGN_BYTES <= size:
            header = _header(os.pread(file.fileno(), HEADER_BYTES, at))
            if header and at + header.record_bytes <= size and _is_whole(file.fileno(), at, header):
                total += header.record_bytes
                at += header.record_bytes
            else:
                at += ALIGN_BYTES
    return total


def _is_whole(fd: int, at: int, header: Header) -> bool:
    """Return whether the record's footer is there: it is written last, and what never was written reads as zeros."""
    footer = os.pread(fd, header.footer_bytes, at + header.used_bytes - header.footer_bytes)
    return any(footer)


def _header(packed: bytes) -> Header | None:
    try:
        return parse_header(packed)
    except FormatError:
        return None
