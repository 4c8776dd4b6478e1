"""Primitives of FORMAT.md, section 1, written from it, and their vectors."""

import json
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Json = dict[str, Any]


def fixed(name: str, length: int = 32) -> bytes:
    """Return bytes that look random and are the same in every run."""
    return blake3(name.encode()).digest(length=length)


def derive(secret: bytes, context: str, length: int = 32) -> bytes:
    return blake3(secret, derive_key_context=f"arstore 2026-11 {context}").digest(length=length)


def keyed(key: bytes, *parts: bytes, length: int = 32) -> bytes:
    return blake3(b"".join(len(part).to_bytes(8, "little") + part for part in parts), key=key).digest(length=length)


def digest(key: bytes, plain: bytes) -> bytes:
    return blake3(plain, key=key).digest()


def seal(key: bytes, context: str, plain: bytes, name: str) -> bytes:
    nonce = fixed(f"nonce {name}", 12)
    return nonce + AESGCM(key).encrypt(nonce, plain, context.encode())


def changed(whole: bytes, at: int, mask: int = 1) -> bytes:
    """Return bytes in which the bits of `mask` are flipped in one byte."""
    return whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :]


def trimmed(whole: bytes) -> str:
    return whole.rstrip(b"\0").hex()


def digests() -> Json:
    key, plain = fixed("a digest key"), b"arstore"
    good = [
        {"key": key.hex(), "plain": text.hex(), "digest": digest(key, text).hex()}
        for text in (b"", b"\0", plain, bytes(range(256)))
    ]
    derived = [
        {"secret": plain.hex(), "context": context, "length": length, "derived": derive(plain, context, length).hex()}
        for context, length in (("record keys", 103), ("stanza key", 32), ("open tenant", 80), ("master key name", 8))
    ]
    hashed = [
        {
            "key": key.hex(),
            "parts": [part.hex() for part in parts],
            "length": length,
            "keyed": keyed(key, *parts, length=length).hex(),
        }
        for parts, length in (((), 32), ((b"ab", b"c"), 32), ((b"a", b"bc"), 32), ((b"name", b"golden/model"), 20))
    ]
    text = digest(key, plain).hex()
    bad = [
        {"text": text.upper(), "why": "capitals"},
        {"text": text[:-1], "why": "63 digits"},
        {"text": text + "00", "why": "66 digits"},
        {"text": text[:-2] + "  ", "why": "blanks"},
        {"text": text[:-1] + "g", "why": "not a hex digit"},
        {"text": 7, "why": "not text"},
        {"text": None, "why": "not text"},
    ]
    return {"digests": good, "derived": derived, "keyed": hashed, "bad_texts": bad}


def canonical(value: Any) -> str:
    """Return the one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def packed_json(value: Json) -> bytes:
    """Return JSON with one vector a line."""

    def dense(part: Any) -> str:
        return json.dumps(part, separators=(",", ":"))

    def lines(part: Any) -> str:
        return "[\n  " + ",\n  ".join(map(dense, part)) + "\n ]" if isinstance(part, list) and part else dense(part)

    return ("{\n " + ",\n ".join(f"{json.dumps(key)}: {lines(part)}" for key, part in value.items()) + "\n}\n").encode()
