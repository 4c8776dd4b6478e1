"""One frame, sealed on its own."""

from arstore.formats.frames import TAG_BYTES, Frames


def sealed_frame(frames: Frames, index: int, plain: bytes) -> bytes:
    out = bytearray(len(plain) + TAG_BYTES)
    frames.seal_into(index, plain, memoryview(out))
    return bytes(out)
