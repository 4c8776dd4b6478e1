"""Two values for each identity field."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from arstore.formats.identity import FIELDS, PROVENANCE

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]


BASE: dict[str, object] = {"model": "m", "revision": "r", "precision": "fp16"}


TOKENS = [5, 0, 2**32 - 1, 7, 8, 9, 10, 11, 12, 13]


# Two values of every field, near to each other: what a key that is cut, folded or joined carelessly takes for one.
VALUES: dict[str, tuple[object, object]] = dict.fromkeys(FIELDS, ("one", "One")) | {
    "revision": ("r2", "r\u0332"), "precision": ("f16", "float16"), "adapter": ("sql", "sql "),
    "adapter_scale": (1, 1.0000000000000002), "adapter_targets": (["q_proj"], ["q_proj", "v", "o", "up", "k", "down"]),
    "rope_theta": (10000, 1000000), "rope_factor": (4, "4.5"), "rope_partial": ("0.5", "0.25"),
    "rope_original_positions": (4096, 8192), "rope_sections": ([16, 24], [24, 16]),
    "rope_scaling": ({"type": "yarn", "factor": 4}, {"type": "yarn", "factor": 8}), "attention_chunk": (0, 8192),
    "sinks": (0, 4), "window": ("4096", "0:4096"), "layers": ("0", "0-2"), "heads": (32, 33), "kv_heads": (1, 2),
    "head_dim": (3, 6), "layout": ("HND", "packed"), "page_tokens": (5, 10), "block_tokens": (3, 4),
    "positions": ("0:10", "10:20"), "start": (0, 1), "step": (1, 2), "strict": (True, None),
    "contents": (f"{'ab' * 16}@2", f"{'ab' * 16}@3"), "layer": (1, "01"), "weights": ("a,b", "a, b"),
}  # fmt: skip


def variants() -> Iterator[dict[str, object]]:
    """Yield identities that differ from the base in one field (pages need a layout that has them too)."""
    for name, values in VALUES.items():
        for value in values:
            if value is not None:
                yield {**BASE, **({"layout": "paged-NHD"} if name == "page_tokens" else {}), name: value}


def is_counted(identity: Mapping[str, object]) -> bool:
    return PROVENANCE.isdisjoint(identity) or "strict" in identity
