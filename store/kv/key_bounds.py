"""Key bounds: minimum and maximum of the keys of every page of tokens, by layer, head and dimension.

A query's inner product with any key of a page is at most the sum over dimensions of max(q x min, q x max) (Quest: Tang
et al., ICML 2024). So a reader can choose pages before it reads any KV, and read only those with `Prefix.select`.
"""

from typing import TYPE_CHECKING

from ...formats.kv_shape import KvShape
from ..errors import BadInput
from .prefix import Prefix

if TYPE_CHECKING:
    import torch

PAGE_TOKENS_MAX = 1 << 16
_DTYPES = ("BF16", "F16", "F32")


def bounds_name(name: str) -> str:
    """Return the name under which the key bounds of `name` are stored."""
    return f"{name}/key-bounds"


def check_bounds(shape: KvShape, page_tokens: int) -> None:
    """Raise BadInput unless the pages have an allowed length and the keys a dtype that can be compared."""
    if not 0 < page_tokens <= PAGE_TOKENS_MAX:
        raise BadInput(f"key bounds: pages of {page_tokens} tokens", f"wanted 1 to {PAGE_TOKENS_MAX}")
    if shape.dtype not in _DTYPES:
        raise BadInput(f"key bounds: {shape.dtype}", f"wanted {', '.join(_DTYPES)}")


def bound_keys(prefix: Prefix, page_tokens: int) -> "dict[str, torch.Tensor]":
    """Return `layers.{i}.key_min` and `.key_max` of a stored prefix, `[pages, kv_heads, head_dim]` in its dtype.

    The last page may be short. Reads a layer at a time.
    """
    import torch

    bounds: dict[str, torch.Tensor] = {}
    for number, tensors in prefix.stream(layout="NHD"):
        pages = torch.split(tensors[f"layers.{number}.key"], page_tokens)
        bounds[f"layers.{number}.key_min"] = torch.stack([page.amin(0) for page in pages])
        bounds[f"layers.{number}.key_max"] = torch.stack([page.amax(0) for page in pages])
    return bounds
