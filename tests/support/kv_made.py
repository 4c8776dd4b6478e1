"""KV as a model would give it: every row follows from all tokens up to its own, so equal prefixes have equal KV."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

IDENTITY = {"model": "llama", "revision": "r1", "precision": "fp16", "block_tokens": 16}
FLAGS = [word for name, value in IDENTITY.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def made(
    tokens: Sequence[int], *, layers: int = 3, heads: int = 2, dim: int = 8, layout: str = "NHD", page: int = 4,
    salt: int = 0,
) -> Arrays:  # fmt: skip
    """Return `layers.N.key` and the like as F16 in a layout, any bits, NaN among them; `salt` is another run."""
    states, state = np.empty(len(tokens), np.uint64), salt
    for n, token in enumerate(tokens):
        state = (state * 0x9E3779B97F4A7C15 + token + 1) % (1 << 64)
        states[n] = state
    chance = np.random.default_rng(7)
    found: Arrays = {}
    for number in range(layers):
        odd = chance.integers(0, 1 << 63, (2, heads, dim), np.uint64) * np.uint64(2) + np.uint64(1)
        with np.errstate(over="ignore"):
            rows = ((states[:, None, None, None] * odd) >> np.uint64(48)).astype(np.uint16).view(np.float16)
        found |= arranged(number, rows[:, 0], rows[:, 1], layout, page)
    return found


def arranged(number: int, key: Array, value: Array, layout: str, page: int) -> Arrays:
    """Return one layer, given as [tokens, heads, dim], in a layout; what a last page has left is zero."""
    sides = [key, value]
    if "paged" in layout:
        pages = -(-len(key) // page)
        sides = [np.concatenate([one, np.zeros((pages * page - len(one), *one.shape[1:]), one.dtype)]) for one in sides]
        sides = [one.reshape(pages, page, *one.shape[1:]) for one in sides]
    if layout.endswith("HND"):
        sides = [one.swapaxes(-2, -3) for one in sides]
    if "packed" in layout:
        return {f"layers.{number}.kv": np.ascontiguousarray(np.stack(sides, axis=int(layout.startswith("paged"))))}
    names = (f"layers.{number}.key", f"layers.{number}.value")
    return {name: np.ascontiguousarray(one) for name, one in zip(names, sides, strict=True)}


def raw(tensors: Any) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Return the shape and the very bytes of every tensor, torch's or numpy's: equal where NaN is, too."""
    return {name: (tuple(one.shape), np.asarray(one).tobytes()) for name, one in tensors.items()}
