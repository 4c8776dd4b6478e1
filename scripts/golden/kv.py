"""Two sequences of KV that begin alike: arrays as a user has them, cut into prefix blocks, FORMAT.md section 8."""

from collections.abc import Iterator
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any

from golden.identities import block_ids, key_id
from golden.primitives import Json, fixed

IDENTITY = {
    "model": "golden/kv",
    "revision": "1",
    "precision": "bf16",
    "layout": "HND",
    "block_tokens": "4",
    "rope_theta": "500000",
    "engine": "golden",
}
BLOCK_TOKENS, ELEMENT_BYTES = 4, 2
LAYERS = {0: (2, 3, 2, 2), 1: (1, 4, 1, 1)}  # key heads, key dim, value heads, value dim
SHAPE = {"dtype": "BF16", "layers": [[number, 1, *extents] for number, extents in LAYERS.items()]}


@dataclass(frozen=True)
class Sequence:
    """The KV of some tokens; what stands at a token depends on all tokens up to it, as a model computes it."""

    name: str
    tokens: tuple[int, ...]

    def _row(self, layer: int, side: str, head: int, at: int, dim: int) -> bytes:
        return fixed(f"{layer} {side} {head} {self.tokens[: at + 1]}", dim * ELEMENT_BYTES)

    def _sides(self) -> Iterator[tuple[int, str, int, int]]:
        for layer, (key_heads, key_dim, value_heads, value_dim) in LAYERS.items():
            yield layer, "key", key_heads, key_dim
            yield layer, "value", value_heads, value_dim

    def side(self, layer: int, side: str, heads: int, dim: int, tokens: Listed[int]) -> bytes:
        """Return the bytes of one side of one layer, [heads, tokens, dim], of these token positions."""
        return b"".join(self._row(layer, side, head, at, dim) for head in range(heads) for at in tokens)

    def blocks(self) -> list[bytes]:
        positions = range(len(self.tokens))
        cut = [positions[at : at + BLOCK_TOKENS] for at in positions[::BLOCK_TOKENS]]
        return [b"".join(self.side(*side, block) for side in self._sides()) for block in cut]

    def manifest(self, digest_key: bytes, blobs: list[list[Any]]) -> Json:
        """Return the manifest; `blobs` are the lines of the blocks, no two of which are alike."""
        root = key_id(digest_key, "kv", IDENTITY)
        ids = block_ids(digest_key, root, self.tokens, BLOCK_TOKENS)
        lengths = [min(BLOCK_TOKENS, len(self.tokens) - BLOCK_TOKENS * number) for number in range(len(ids))]
        claims = [[id_.hex(), length, [number]] for number, (id_, length) in enumerate(zip(ids, lengths, strict=True))]
        numbers, size = list(range(len(blobs))), sum(length for _, length in blobs)
        return {
            "format": 1,
            "kind": "kv",
            "identity": IDENTITY,
            "single": True,
            "directories": [],
            "tensors": [],
            "files": [["kv", 0o644, size, "kv", numbers]],
            "blobs": blobs,
            "shape": SHAPE,
            "claims": [[root.hex(), 0, []], *claims],
        }

    def described(self) -> Json:
        """Return what was put: the arrays are [heads, tokens, dim], which is what the layout HND says."""
        arrays = {
            f"layers.{layer}.{side}": {
                "shape": [heads, len(self.tokens), dim],
                "bytes": self.side(layer, side, heads, dim, range(len(self.tokens))).hex(),
            }
            for layer, side, heads, dim in self._sides()
        }
        return {"name": self.name, "tokens": list(self.tokens), "identity": IDENTITY, "arrays": arrays}


SEQUENCES = (
    Sequence("golden/kv-long", (1, 2, 0, 2**32 - 1, 5, 6, 7, 8, 9, 10)),
    Sequence("golden/kv-short", (1, 2, 0, 2**32 - 1, 5, 77)),
)
