"""Identity: the fields that a caller gives are checked."""

from collections.abc import Mapping

from ...formats.errors import FormatError
from ...formats.identity import Identity, make_identity
from ..errors import BadInput


def take_identity(fields: Mapping[str, object], where: str = "identity") -> Identity:
    """Return the identity of the given fields; raise BadInput for a field that is unknown or bad."""
    try:
        return make_identity(fields)
    except FormatError as error:
        raise BadInput(where, str(error)) from None
