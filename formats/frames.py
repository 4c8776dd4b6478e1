"""Frames: how the plaintext of one record is cut, sealed and opened.

Invariant: a frame opens only at its own place. Its nonce counts (STREAM: Hoang, Reyhanitabar, Rogaway, Vizár,
CRYPTO 2015) and its associated data bind tenant, instance, kind, codec, frame size and total length, so that
truncation, reordering, swapping and substitution all fail the tag. Every record has a fresh random key, made
the record's alone by its random instance id: the counter never repeats under a key.

A sealed frame is `len(encoded) + 16` bytes: ciphertext, then the tag. Without encryption the bytes stay
plain and the tag is a BLAKE3 of the frame and the same bindings.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .digest import derive, keyed_hash
from .errors import FormatError

TAG_BYTES = 16
KEY_BYTES = 32
WEIGHT_FRAME_BYTES = 4 << 20
FRAME_MAX_BYTES = 16 << 20
FRAMES_MAX_COUNT = 1 << 20
FOOTER_INDEX = 0xFFFF_FFFF

_MIDDLE, _LAST, _FOOTER = 0, 1, 2
_BINDING = struct.Struct("<16s16sBBIQ")

Bytes: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Binding:
    """What every frame of one record is bound to."""

    tenant: bytes
    instance: bytes
    kind: int
    codec: int
    frame_bytes: int
    plain_bytes: int

    @property
    def frames_count(self) -> int:
        return -(-self.plain_bytes // self.frame_bytes)

    def packed(self) -> bytes:
        return b"arstore frame 1" + _BINDING.pack(
            self.tenant, self.instance, self.kind, self.codec, self.frame_bytes, self.plain_bytes
        )

    def frame_length(self, index: int) -> int:
        """Return the plaintext bytes of frame `index`."""
        return min(self.frame_bytes, self.plain_bytes - index * self.frame_bytes)


class Frames(Protocol):
    """Seals and opens the frames of one record, from source to destination without a copy between."""

    commitment: bytes

    def seal_into(self, index: int, plain: Bytes, out: memoryview) -> None:
        """Write the sealed frame into `out`, which is 16 bytes longer than `plain`."""
        ...

    def open_into(self, index: int, sealed: Bytes, out: memoryview) -> None:
        """Write the frame's bytes into `out`; raise FormatError, with `out` zeroed, if the tag refuses."""
        ...

    def header_check(self, header: bytes) -> bytes:
        """Return the 32 bytes that authenticate a record header."""
        ...


class SealedFrames:
    """AES-256-GCM frames under one record's own key."""

    def __init__(self, key: bytes, binding: Binding) -> None:
        # The instance is part of it because a copied or restored store hands out its spare record keys once more:
        # one key over two records would give both the same key stream.
        keys = derive(key + binding.instance, "record keys", 32 + 32 + 32 + 7)
        self._aead = AESGCM(keys[:32])
        # GCM does not commit to its key: two keys can open one ciphertext. Comparing this first shuts that door.
        self.commitment = keys[32:64]
        self._header_key = keys[64:96]
        self._prefix = keys[96:]
        self._nonce = _nonces(self._prefix, binding)
        self._bound = binding.packed()

    def seal_into(self, index: int, plain: Bytes, out: memoryview) -> None:
        self._aead.encrypt_into(self._nonce(index), plain, self._bound, out)

    def open_into(self, index: int, sealed: Bytes, out: memoryview) -> None:
        try:
            self._aead.decrypt_into(self._nonce(index), sealed, self._bound, out)
        except (InvalidTag, ValueError):
            # decrypt_into leaves unverified plaintext behind when the tag refuses.
            out[:] = bytes(len(out))
            raise FormatError(f"{_frame_name(index)} fails its authentication tag") from None

    def header_check(self, header: bytes) -> bytes:
        return keyed_hash(self._header_key, header)


class PlainFrames:
    """Unencrypted frames with a BLAKE3 tag, for stores made with `--no-encryption`."""

    commitment = bytes(32)

    def __init__(self, binding: Binding) -> None:
        self._key = derive(binding.packed(), "plain frame tag")
        self._nonce = _nonces(self._key[:7], binding)

    def _tag(self, index: int, plain: Bytes) -> bytes:
        key = keyed_hash(self._key, self._nonce(index))
        return blake3(plain, key=key, max_threads=1).digest(length=TAG_BYTES)

    def seal_into(self, index: int, plain: Bytes, out: memoryview) -> None:
        out[:-TAG_BYTES] = plain
        out[-TAG_BYTES:] = self._tag(index, plain)

    def open_into(self, index: int, sealed: Bytes, out: memoryview) -> None:
        view = memoryview(sealed)
        if len(view) == len(out) + TAG_BYTES:
            # Copy first and hash the copy: the bytes that were checked are the bytes that are used.
            out[:] = view[:-TAG_BYTES]
            from hmac import compare_digest  # loaded here: it brings OpenSSL's hashes, and plain stores are few

            if compare_digest(self._tag(index, out), bytes(view[-TAG_BYTES:])):
                return
        out[:] = bytes(len(out))
        raise FormatError(f"{_frame_name(index)} fails its BLAKE3 tag")

    def header_check(self, header: bytes) -> bytes:
        return keyed_hash(self._key, header)


def frames_of(key: bytes | None, binding: Binding) -> Frames:
    """Return the frames of one record: sealed under `key`, or plain where there is none."""
    return PlainFrames(binding) if key is None else SealedFrames(key, binding)


def seal(key: bytes, context: str, plain: bytes, nonce: bytes) -> bytes:
    """Return a small text sealed under `key` for one purpose: 12-byte nonce, ciphertext, 16-byte tag."""
    return nonce + AESGCM(key).encrypt(nonce, plain, context.encode())


def unseal(key: bytes, context: str, sealed: bytes) -> bytes:
    """Return what `seal` sealed; raise FormatError if key, context or bytes differ."""
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], context.encode())
    except (InvalidTag, ValueError):
        raise FormatError(f"{context} does not open with this key") from None


def _nonces(prefix: bytes, binding: Binding) -> Callable[[int], bytes]:
    last = binding.frames_count - 1

    def nonce(index: int) -> bytes:
        flag = _FOOTER if index == FOOTER_INDEX else _LAST if index == last else _MIDDLE
        return prefix + index.to_bytes(4, "big") + bytes([flag])

    return nonce


def _frame_name(index: int) -> str:
    return "footer" if index == FOOTER_INDEX else f"frame {index}"
