"""Identities and KV, as formats/FORMAT.md says (section 8)."""

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.support.spec_records import Refused, digest, keyed, need

Named = tuple[int, int, list[bytes], bytes]  # refs, tokens, digests and about


def is_count(text: str, digits: int = 19) -> bool:
    return re.fullmatch(f"0|[1-9][0-9]{{0,{digits - 1}}}", text) is not None


def number_text(text: str) -> str:
    """Return the one text of a number that this text spells."""
    number = float(text)
    need(math.isfinite(number), "a finite number")
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def json_text(text: str) -> str:
    value = json.loads(text)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def names_text(text: str) -> str:
    names = text.split(",")
    need(all(names), "no empty name")
    return ",".join(sorted(set(names)))


def layers_text(text: str) -> str:
    runs = [part.partition("-") for part in text.split(",")]
    need(all(is_count(first) and (is_count(last) or not dash) for first, dash, last in runs), "layers are numbers")
    bounds = [(int(first), int(last if dash else first)) for first, dash, last in runs]
    need(all(0 <= first <= last <= 4095 for first, last in bounds), "layers from 0 to 4,095")
    layers = sorted({layer for first, last in bounds for layer in range(first, last + 1)})
    cuts = [0, *(n for n in range(1, len(layers)) if layers[n] != layers[n - 1] + 1), len(layers)]
    found = [(layers[a], layers[b - 1]) for a, b in pairwise(cuts)]
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in found)


def contents_text(text: str) -> str:
    found = [part.partition("@") for part in text.split(",")]
    need(len(found) <= 256, "256 contents")
    need(all(re.fullmatch("[0-9a-f]{32,128}", name) and is_count(at, 10) for name, _, at in found), "digest@position")
    return ",".join(f"{name}@{at}" for name, _, at in sorted(found, key=lambda one: (int(one[2]), one[0])))


def positions_text(text: str) -> str:
    first, _, end = text.partition(":")
    need(is_count(first) and is_count(end) and int(first) <= int(end), "positions A:B")
    return f"{first}:{end}"


def count_text(text: str) -> str:
    need(is_count(text), "a count")
    return text


PROVENANCE = ("engine", "engine_version", "attention_backend", "chunk_schedule", "hardware", "framework")


KINDS_OF_FIELDS: tuple[tuple[Callable[[str], str], str], ...] = (
    (str, "model revision weights precision adapter quantisation scales rope architecture config attention window"),
    (str, "layer_kinds layer module layout shard encoding tokenizer sequence embeddings draft salt"),
    (str, " ".join(PROVENANCE)),
    (count_text, "rope_original_positions attention_chunk sinks heads kv_heads head_dim page_tokens block_tokens"),
    (count_text, "start step"),
    (number_text, "adapter_scale rope_theta rope_factor rope_partial"),
    (json_text, "rope_sections rope_scaling"),
    (names_text, "adapter_targets"),
    (layers_text, "layers"),
    (contents_text, "contents"),
    (positions_text, "positions"),
    (lambda text: "yes", "strict"),
)


FIELDS = {name: text for text, names in KINDS_OF_FIELDS for name in names.split()}


def check_identity(identity: Mapping[str, Any]) -> None:
    for name, text in identity.items():
        need(name in FIELDS, "field is known")
        need(isinstance(text, str) and text != "unspecified" and "\0" not in text, "text that says something")
        try:
            need(1 <= len(text.encode()) <= 4096, "1 to 4,096 bytes")
            canonical = FIELDS[name](text)
        except (ValueError, RecursionError):
            raise Refused("text of its kind") from None
        need(canonical == text, "canonical text")


def key_id(identity_key: bytes, kind: str, identity: Mapping[str, str]) -> bytes:
    check_identity(identity)
    counted = [name for name in sorted(identity) if "strict" in identity or name not in PROVENANCE]
    parts = ["identity", "1", kind, *(part for name in counted for part in (name, identity[name]))]
    return keyed(identity_key, *(part.encode() for part in parts))


def block_ids(identity_key: bytes, root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    found = [root]
    for at in range(0, len(tokens), block_tokens):
        block = tokens[at : at + block_tokens]
        found.append(digest(identity_key, found[-1] + struct.pack(f"<{len(block)}I", *block)))
    return found[1:]


SIZES = {
    1: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    2: "I16 U16 F16 BF16",
    4: "I32 U32 F32",
    8: "C64 F64 I64 U64",
    16: "C128",
}


ELEMENT_BYTES = {dtype: size for size, dtypes in SIZES.items() for dtype in dtypes.split()}


class Shape:
    """A KV shape: the sides of every layer, in the order of a block, as (name, heads, bytes of dim elements)."""

    def __init__(self, shape: Any) -> None:
        need(isinstance(shape, dict) and set(shape) == {"dtype", "layers"}, "keys of a shape")
        need(isinstance(shape["dtype"], str) and shape["dtype"] in ELEMENT_BYTES, "dtype")
        need(isinstance(shape["layers"], list) and shape["layers"], "layers")
        element, self.sides, end, before = ELEMENT_BYTES[shape["dtype"]], [], 0, None
        for run in shape["layers"]:
            need(isinstance(run, list) and len(run) == 6 and all(type(part) is int for part in run), "6 integers")
            first, count, *extents = run
            need(count >= 1 and end <= first <= 4096 - count, "layers ascend")
            need(first != end or extents != before, "equal neighbours are one run")
            key, value = extents[:2], extents[2:]
            need(all(1 <= part <= 65536 for part in key), "extents of keys")
            need(value == [0, 0] or all(1 <= part <= 65536 for part in value), "extents of values")
            sides = [("key", *key), ("value", *value)][: 2 if any(value) else 1]
            for layer in range(first, first + count):
                self.sides += [(f"layers.{layer}.{side}", heads, dim * element) for side, heads, dim in sides]
            end, before = first + count, extents
        self.token_bytes = sum(heads * row for _, heads, row in self.sides)
        need(self.token_bytes <= 4 << 30, "a token has at most 4 GiB")

    def cut(self, block: bytes, tokens: int) -> dict[tuple[str, int], bytes]:
        """Return what a block holds of each head of each side, [tokens, dim]."""
        need(tokens >= 1 and len(block) == tokens * self.token_bytes, "length of a block")
        found, at = {}, 0
        for name, heads, row in self.sides:
            for head in range(heads):
                found[name, head] = block[at : at + tokens * row]
                at += tokens * row
        return found


def parse_identity(value: bytes, id_: bytes) -> Named:
    """Return refs, tokens, digests and what is said about them."""
    need(len(value) >= 14, "length of an identity")
    mask = keyed(id_, b"identity row", length=len(value) - 4)
    plain = bytes(one ^ other for one, other in zip(value[4:], mask, strict=True))
    tokens, count, about = struct.unpack_from("<IHI", plain)
    end = 10 + 32 * count
    need(len(plain) == end + about, "length of an identity")
    return struct.unpack_from("<I", value)[0], tokens, [plain[at : at + 32] for at in range(10, end, 32)], plain[end:]


def claimed(manifest: Any) -> list[tuple[bytes, int, list[bytes], bytes]]:
    """Return what each claim of a manifest puts into its row: id, tokens, digests and about."""
    blobs = [bytes.fromhex(name) for name, _ in manifest["blobs"]]
    about = keyed(bytes(32), *blobs)
    if "shape" in manifest:
        Shape(manifest["shape"])
        about = json_text(json.dumps(manifest["shape"])).encode()
    return [
        (bytes.fromhex(id_), tokens, [blobs[number] for number in numbers], b"" if tokens else about)
        for id_, tokens, numbers in manifest.get("claims", [])
    ]
