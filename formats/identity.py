"""Identity: what an artifact is, in named fields that are known before its bytes; and the chain of prefix blocks.

A field that is not given is `unspecified`, which matches only itself. A field that is not known is refused by name: if
it were ignored, two different artifacts could have one key. Every value has one text.

KV is named by its inputs. The key id of its identity is the root of a hash chain. Block n of a sequence is named by
block n - 1 and its own tokens. So the id of a block stands for the identity and every token from the start.

    root      keyed("identity", "1", kind, name, value, …), fields by name; provenance only if the field strict is `yes`
    block     keyed BLAKE3 of the id before it (32), then its tokens, u32 LE each
The key of both is `derive(digest key, "identity")`, so equal identities of two tenants have different ids.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NewType

from blake3 import blake3

from .digest import derive, keyed_hash
from .errors import FormatError
from .kv_shape import LAYERS_MAX

UNSPECIFIED = "unspecified"
VALUE_MAX_BYTES = 4096
LIST_MAX = 256

KeyId = NewType("KeyId", bytes)
Identity = tuple[tuple[str, str], ...]


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise FormatError(f"holds {type(value).__name__}, wanted text or a whole number")
    return str(value)


def _count(value: object) -> str:
    text = _text(value)
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise FormatError(f"holds {text[:40]!r}, wanted a whole number of at most 19 digits")
    return str(int(text))


def _number(value: object) -> str:
    """Return the shortest decimal text of a number: 8, 8.0 and "8" are the same."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise FormatError(f"holds {str(value)[:40]!r}, wanted a number") from None
    return str(int(number)) if number.is_integer() and abs(number) < 1 << 53 else repr(number)


def _json(value: object) -> str:
    """Return canonical JSON of any small value; text is parsed as JSON."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        return json.dumps(parsed, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise FormatError(f"holds {str(value)[:40]!r}, wanted JSON") from None


def _names(value: object) -> str:
    """Return a set of names, sorted, with commas between them."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name and "," not in name for name in names):
        raise FormatError("holds something else than names, wanted a list of texts without commas")
    return ",".join(sorted(set(names)))


def _layers(value: object) -> str:
    """Return a set of layer numbers as its runs: 0-15,20."""
    parts = [str(layer) for layer in value] if isinstance(value, list) else _text(value).split(",")
    if len(parts) > LAYERS_MAX:
        raise FormatError(f"holds {len(parts)} layers or runs of them, wanted at most {LAYERS_MAX}")
    numbers: set[int] = set()
    for part in parts:
        run = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if not run or int(run[1]) > int(run[2] or run[1]) or int(run[2] or run[1]) >= LAYERS_MAX:
            raise FormatError(f"holds {part[:40]!r}, wanted layers as 0-15,20 below {LAYERS_MAX}")
        numbers.update(range(int(run[1]), int(run[2] or run[1]) + 1))
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n for n in numbers if n + 1 not in numbers)
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _contents(value: object) -> str:
    """Return the digests of what is at some token positions, by position: digest@7,digest@1031."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or len(parts) > LIST_MAX:
        raise FormatError(f"holds something else than a list of at most {LIST_MAX} digest@position")
    contents = []
    for part in parts:
        content = re.fullmatch(r"([0-9a-f]{32,128})@([0-9]{1,10})", str(part))
        if not content:
            raise FormatError(f"holds {str(part)[:80]!r}, wanted digest@position, 32 or more hex digits")
        contents.append((int(content[2]), content[1]))
    return ",".join(f"{digest}@{position}" for position, digest in sorted(contents))


def _positions(value: object) -> str:
    """Return token positions `A:B` (with A, without B) in canonical form."""
    first, colon, end = _text(value).partition(":")
    if not colon or not first.isdecimal() or not end.isdecimal():
        raise FormatError(f"holds {value!r}, wanted positions A:B")
    if max(len(first), len(end)) > 19 or int(first) > int(end):
        raise FormatError(f"holds {value!r}, wanted positions A:B with A <= B")
    return f"{int(first)}:{int(end)}"


def _yes(value: object) -> str:
    if value not in (True, "yes"):
        raise FormatError(f"holds {str(value)[:40]!r}, wanted yes or nothing")
    return "yes"


# `why-miss` names them in this order. First are those that differ most often and matter most.
FIELDS: dict[str, Callable[[object], str]] = {
    "model": _text, "revision": _text, "weights": _text, "precision": _text, "adapter": _text,
    "adapter_scale": _number, "adapter_targets": _names, "quantisation": _text, "scales": _text,
    "rope": _text, "rope_theta": _number, "rope_factor": _number, "rope_original_positions": _count,
    "rope_sections": _json, "rope_scaling": _json, "rope_partial": _number,
    "architecture": _text, "config": _text, "attention": _text, "window": _text, "attention_chunk": _count,
    "sinks": _count, "layer_kinds": _text, "layers": _layers, "layer": _text, "module": _text,
    "heads": _count, "kv_heads": _count, "head_dim": _count,
    "layout": _text, "page_tokens": _count, "block_tokens": _count, "shard": _text, "encoding": _text,
    "tokenizer": _text, "sequence": _text, "positions": _positions, "start": _count, "step": _count,
    "contents": _contents, "embeddings": _text, "draft": _text, "salt": _text, "strict": _yes,
    "engine": _text, "engine_version": _text, "attention_backend": _text, "chunk_schedule": _text,
    "hardware": _text, "framework": _text,
}  # fmt: skip

# Who computed it and how. These fields are recorded, but they tell identities apart only if the field strict is `yes`.
PROVENANCE = frozenset(("engine", "engine_version", "attention_backend", "chunk_schedule", "hardware", "framework"))


def make_identity(fields: Mapping[str, object]) -> Identity:
    """Return the identity of the given fields, sorted by name, every value in its one text.

    Numbers are taken as their decimal text. None means not given. Raises FormatError for an unknown field or a bad
    value, naming it.
    """
    given: dict[str, str] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise FormatError(f"identity field {name!r} is not known, wanted one of {', '.join(FIELDS)}")
        if value is None or (isinstance(value, str) and value == UNSPECIFIED):
            continue
        try:
            text = FIELDS[name](value)
            length = len(text.encode())
        except FormatError as error:
            raise FormatError(f"identity field {name!r} {error}") from None
        except ValueError:  # raised for a number of thousands of digits, and for a lone surrogate
            raise FormatError(f"identity field {name!r} holds no text that UTF-8 can write") from None
        if not text or "\0" in text or length > VALUE_MAX_BYTES:
            raise FormatError(f"identity field {name!r} is empty, holds a NUL or exceeds {VALUE_MAX_BYTES} bytes")
        if text != UNSPECIFIED:  # a list of this one name becomes that text
            given[name] = text
    return tuple(sorted(given.items()))


def identity_key(digest_key: bytes) -> bytes:
    """Return the key under which a tenant's identities are hashed."""
    return derive(digest_key, "identity")


def key_id(key: bytes, kind: str, identity: Identity) -> KeyId:
    """Return the id of an identity. Two have one id only if all fields that count are equal. `key`: `identity_key`."""
    strict = ("strict", "yes") in identity
    counted = [part for name, value in identity if strict or name not in PROVENANCE for part in (name, value)]
    return KeyId(keyed_hash(key, *(part.encode() for part in ("identity", "1", kind, *counted))))


def chain_blocks(key: bytes, root: KeyId, tokens: memoryview, block_tokens: int) -> Iterator[KeyId]:
    """Yield the id of every prefix block of a sequence. `tokens` are u32 LE. The last block may be short."""
    parent, block_bytes = root, 4 * block_tokens
    for at in range(0, len(tokens), block_bytes):
        hasher = blake3(parent, key=key, max_threads=1)
        hasher.update(tokens[at : at + block_bytes])
        parent = KeyId(hasher.digest())
        yield parent


def differing(wanted: Identity, stored: Identity) -> list[str]:
    """Return the names of the fields that tell two identities apart, in the order of FIELDS."""
    fields, other = dict(wanted), dict(stored)
    ignored = frozenset[str]() if "strict" in {**fields, **other} else PROVENANCE
    return [name for name in FIELDS if name not in ignored and fields.get(name) != other.get(name)]
