"""Strict JSON: one value, of which two readers can't have two opinions.

Valid iff: it is UTF-8, no key of an object stands twice, there is no NaN or Infinity, and it is not nested too deeply.
"""

import json
from typing import Any

from .errors import FormatError


def parse_json(packed: bytes) -> Any:
    """Return the JSON value in `packed`; raise FormatError for anything malformed, deep or doubled."""
    try:
        return _DECODER.decode(packed.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise FormatError("a key stands twice")
    return value


def _refuse(constant: str) -> None:
    raise FormatError(f"{constant} is not a JSON number")


# Made once: a listing decodes thousands of small values.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
