"""Digest: the 32-byte name of immutable bytes, keyed BLAKE3 so that names never compare across tenants."""

import contextlib
from typing import NewType

from blake3 import blake3

from .errors import FormatError

DIGEST_BYTES = 32
Digest = NewType("Digest", bytes)


def digest_bytes(key: bytes, plain: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of `plain` under a tenant's 32-byte digest key.

    One thread on purpose: callers hash several blobs at once, and BLAKE3's own pool would fight them.
    """
    return Digest(blake3(plain, key=key, max_threads=1).digest())


def parse_digest(text: object) -> Digest:
    """Return the digest written as 64 lower-case hex digits; raise FormatError for anything else."""
    if isinstance(text, str) and len(text) == 2 * DIGEST_BYTES:
        with contextlib.suppress(ValueError):
            # fromhex takes capitals and skips blanks: a digest has one text, the one that it gives back.
            if (digest := bytes.fromhex(text)).hex() == text:
                return Digest(digest)
    raise FormatError(f"{str(text)[:80]!r} is not a digest of {2 * DIGEST_BYTES} hex digits")


def derive(secret: bytes, context: str, length: int = 32) -> bytes:
    """Return `length` bytes derived from `secret` for one purpose (BLAKE3 key derivation, its spec section 6.2)."""
    return blake3(secret, derive_key_context=f"arstore 2026-11 {context}").digest(length=length)


def keyed_hash(key: bytes, *parts: bytes, length: int = 32) -> bytes:
    """Return a keyed BLAKE3 of parts, each led by its length so that no two lists of parts collide."""
    framed = b"".join([piece for part in parts for piece in (len(part).to_bytes(8, "little"), part)])
    return blake3(framed, key=key, max_threads=1).digest(length=length)
