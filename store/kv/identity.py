"""The identity of KV: the fields that a caller gives are checked, and the number of tokens of a block is added."""

from collections.abc import Mapping

from ...formats.errors import FormatError
from ...formats.identity import Identity, make_identity
from ...formats.kv_layout import has_pages
from ..artifacts.identity import take_identity
from ..errors import BadInput

BLOCK_TOKENS = 256
BLOCK_TOKENS_MAX = 1 << 16
REQUIRED = ("model", "revision", "precision")


def make_kv_identity(fields: Mapping[str, object]) -> Identity:
    """Return the identity of KV; raise BadInput for a field that is unknown, bad, or missing and required."""
    identity = take_identity(fields)
    missing = [name for name in REQUIRED if name not in dict(identity)]
    if missing:
        raise BadInput(
            "identity",
            f"lacks {', '.join(missing)}, which KV always depends on",
            hint="say them by --identity, or in a JOB by [identity]",
        )
    return identity


def complete(identity: Identity) -> Identity:
    """Return an identity with `block_tokens`: what it says already, or BLOCK_TOKENS.

    Raises BadInput for a layout that is not known, or one with pages in an identity without `page_tokens`.
    """
    fields = {"block_tokens": str(BLOCK_TOKENS), **dict(identity)}
    if not 0 < int(fields["block_tokens"]) <= BLOCK_TOKENS_MAX:
        raise BadInput(f"block_tokens {fields['block_tokens']}", f"wanted 1 to {BLOCK_TOKENS_MAX}")
    layout = fields.get("layout", "NHD")
    try:
        paged = has_pages(layout)
    except FormatError as error:
        raise BadInput("layout", str(error)) from None
    if paged and "page_tokens" not in fields:
        raise BadInput(f"layout {layout}", "has pages; say page_tokens beside it")
    return make_identity(fields)
