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

# The dtypes that arrays of a precision may have, by safetensors' names. Unsigned words of the same size are taken for
# dtypes that NumPy lacks. Precisions of other names are taken at their word.
_HALF, _BRAIN, _FP8 = ("F16",), ("BF16", "U16"), ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U8")
_DTYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bf16", "bfloat16"), _BRAIN),
    **dict.fromkeys(("fp16", "f16", "float16", "half"), _HALF),
    **dict.fromkeys(("fp32", "f32", "float32", "float"), ("F32",)),
    **dict.fromkeys(("fp64", "f64", "float64", "double"), ("F64",)),
    **dict.fromkeys(("fp8", "f8", "float8"), _FP8),
    **dict.fromkeys(("fp8_e4m3", "f8_e4m3", "float8_e4m3fn", "float8_e4m3"), ("F8_E4M3", "U8")),
    **dict.fromkeys(("fp8_e5m2", "f8_e5m2", "float8_e5m2"), ("F8_E5M2", "U8")),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", "U8"),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", "U8"),
    **dict.fromkeys(("int8", "i8"), ("I8",)),
    **dict.fromkeys(("uint8", "u8"), ("U8",)),
    **dict.fromkeys(("int4", "uint4", "fp4", "f4"), ("U8", "I8", "F4")),
}


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
    if dict(identity)["precision"].lower() == "auto":
        hint = "say what it stands for, such as bf16"
        raise BadInput("precision auto", "means another dtype in another process", hint=hint)
    return identity


def check_precision(precision: str, dtype: str) -> None:
    """Raise BadInput if arrays of this dtype are not what an identity's precision says."""
    allowed = _DTYPES.get(precision.lower())
    if allowed and dtype not in allowed:
        hint = "name the precision that the arrays have, or convert them"
        raise BadInput("kv", f"holds {dtype}, the identity says precision {precision}", hint=hint)


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
