"""Quantities: sizes, times and ranges as people write them."""

import re

from .errors import BadInput

_SIZES = {
    "b": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Return the bytes of `500GiB` or `10GB`; raise BadInput for anything else, also a number without a unit."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:([kmgt]i?)b?|(b))", text.strip().lower())
    if not match:
        raise BadInput(f"size {text!r}", "wanted a number and a unit, as 500GiB or 10GB")
    return int(float(match[1]) * _SIZES[match[2] or match[3]])


def parse_duration(text: str) -> int:
    """Return the seconds of `90s`, `24h` or `30d`; raise BadInput for anything else, also a number without a unit."""
    match = re.fullmatch(r"([0-9]{1,9})\s*([smhdw])", text.strip().lower())
    if not match:
        raise BadInput(f"time {text!r}", "wanted a number and a unit, as 90s, 24h or 30d")
    return int(match[1]) * _SECONDS[match[2]]


def parse_range(flag: str, text: str) -> tuple[int, int]:
    """Return (A, B) of `A:B`; raise BadInput for anything else."""
    match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)
    if not match:
        raise BadInput(f"{flag} {text[:80]!r}", "wanted A:B")
    return int(match[1]), int(match[2])
