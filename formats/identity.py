"""Identity: what an artifact is, said in named fields before any byte of it exists.

A field that is not given is `unspecified`, which matches only itself; a field that is not known is refused by
name, because a key that ignores what it does not understand serves one thing for another.
"""

from collections.abc import Mapping

from .errors import FormatError

UNSPECIFIED = "unspecified"
VALUE_MAX_BYTES = 4096

FIELDS = (
    "model", "revision", "weights", "adapter", "layer", "layout", "precision", "quantisation",
    "rope", "window", "sequence", "positions",
)  # fmt: skip

Identity = tuple[tuple[str, str], ...]


def make_identity(fields: Mapping[str, object]) -> Identity:
    """Return the identity of the given fields, sorted; raise FormatError for an unknown field or a bad value.

    Numbers are taken as their decimal text. None means not given.
    """
    given: dict[str, str] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise FormatError(f"identity field {name!r} is not known, wanted one of {', '.join(FIELDS)}")
        if value is None or value == UNSPECIFIED:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise FormatError(f"identity field {name!r} holds {type(value).__name__}, wanted text or a whole number")
        try:
            text = str(value)
            length = len(text.encode())
        except ValueError:  # a number of thousands of digits, a lone surrogate
            raise FormatError(f"identity field {name!r} holds no text that UTF-8 can write") from None
        if not text or "\0" in text or length > VALUE_MAX_BYTES:
            raise FormatError(f"identity field {name!r} is empty, holds a NUL or exceeds {VALUE_MAX_BYTES} bytes")
        given[name] = _positions(text) if name == "positions" else text
    return tuple(sorted(given.items()))


def _positions(text: str) -> str:
    """Return `A:B` (token positions, A included, B not) in canonical form."""
    first, colon, end = text.partition(":")
    if not colon or not first.isdecimal() or not end.isdecimal() or int(first) > int(end):
        raise FormatError(f"positions {text!r} are not A:B with A <= B")
    return f"{int(first)}:{int(end)}"
