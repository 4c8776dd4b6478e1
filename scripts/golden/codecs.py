"""Encoded frames, FORMAT.md section 5. Zstd frames are written by hand, so that no library's version shows in them."""

import struct

from golden.primitives import Json, changed


def zstd(*pieces: bytes | tuple[int, int]) -> bytes:
    """Return a zstd frame written by hand: raw blocks for bytes, a repeating block for (byte, count)."""
    size = sum(len(piece) if isinstance(piece, bytes) else piece[1] for piece in pieces)
    frame = b"\x28\xb5\x2f\xfd" + (bytes([0x20, size]) if size < 256 else b"\x60" + struct.pack("<H", size - 256))
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        kind, length, body = (0, len(piece), piece) if isinstance(piece, bytes) else (1, piece[1], bytes([piece[0]]))
        frame += (length << 3 | kind << 1 | last).to_bytes(3, "little") + body
    return frame


def part(plain: bytes) -> bytes:
    """Return a part: a zstd frame where one byte repeats, else the bytes as they are."""
    short = len(plain) > 12 and len(set(plain)) == 1
    return zstd((plain[0], len(plain))) if short else plain


def planes(width: int, plain: bytes) -> bytes:
    whole = len(plain) // width * width
    parts = [part(plain[k:whole:width]) for k in range(width)]
    return struct.pack(f"<{width}I", *map(len, parts)) + b"".join(parts) + plain[whole:]


def encoded(codec: int, plain: bytes) -> bytes:
    return planes({2: 2, 3: 4}[codec], plain) if codec in (2, 3) else part(plain) if codec == 1 else plain


BF16 = b"".join(bytes([number * 37 % 256, 0x3D]) for number in range(24))
F32 = b"".join(bytes([number * 91 % 256, number * 7 % 256, number % 3, 0xBC]) for number in range(17))
# libzstd 1.5.7 at level 3: literals in Huffman code, and sequences.
TEXT = b"".join(b"layers.%d.mlp.weight=%d " % (i, i * i * 7919 % 10007) for i in range(14))
TEXT_ZSTD = bytes.fromhex(
    "28b52ffd605e0005040062851116a0276d50ccdf439c6d9d000c395b668aecde64eaef3084f47e89b98697afe355d5eeda684dff5755b4a1"
    "3ec96c34b3cb74d9d6be081185c3001843119c40a14218984371021a00800b5010e0171404f8ed2948ffe72a0d31805f4010e0171004f805"
    "04017e0141805f4010e0171003ce0504017e791204f895d96c02"
)


def codecs() -> Json:
    zeros = zstd((0, 64))
    good = [
        ("stored", 0, b"plaintext", b"plaintext"),
        ("zstd: one byte, repeated", 1, bytes(64), zeros),
        ("zstd: raw block and repeating block", 1, b"head" + b"a" * 50, zstd(b"head", (0x61, 50))),
        ("zstd: content size of two bytes", 1, b"z" * 300, zstd((0x7A, 300))),
        ("zstd: as libzstd writes it", 1, TEXT, TEXT_ZSTD),
        ("zstd: a part as long as the plaintext is the plaintext", 1, BF16, BF16),
        ("plane16", 2, BF16, planes(2, BF16)),
        ("plane16: a byte over", 2, BF16 + b"!", planes(2, BF16 + b"!")),
        ("plane16: less than one element", 2, b"!", planes(2, b"!")),
        ("plane32", 3, F32, planes(4, F32)),
        ("plane32: three bytes over", 3, F32 + b"abc", planes(4, F32 + b"abc")),
    ]
    skippable = bytes.fromhex("502a4d18") + struct.pack("<I", 4) + b"skip"
    with_checksum = changed(zeros, 4, 0x04) + bytes(4)
    sum_off = struct.pack("<2I", 24, 25) + planes(2, BF16)[8:]
    bad = [
        ("length", "stored: a byte short", 0, 9, b"plaintex"),
        ("length", "stored: a byte long", 0, 9, b"plaintext!"),
        ("length", "zstd: longer than the plaintext", 1, 63, bytes(64)),
        ("zstd", "zstd: states another content size", 1, 65, zeros),
        ("zstd", "zstd: cut inside a block", 1, 54, zstd(b"head", (0x61, 50))[:-1]),
        ("zstd", "zstd: a byte after its last block", 1, 64, zeros + b"\0"),
        ("zstd", "zstd: a second frame after the first", 1, 64, zeros + zeros),
        ("zstd", "zstd: a skippable frame in front", 1, 64, skippable + zeros),
        ("zstd", "zstd: wrong magic", 1, 64, changed(zeros, 0)),
        ("zstd", "zstd: has a checksum", 1, 64, with_checksum),
        ("zstd", "zstd: names a dictionary", 1, 64, zeros[:4] + b"\x21\x07" + zeros[5:]),
        ("zstd", "zstd: a block of the reserved kind", 1, 64, changed(zeros, 6, 0x04)),
        (
            "zstd",
            "zstd: blocks give less than the content size",
            1,
            64,
            zstd((0, 63)).replace(b"\x20\x3f", b"\x20\x40"),
        ),
        ("zstd", "zstd: empty", 1, 64, b""),
        ("planes", "plane16: no room for the lengths", 2, 48, bytes(7)),
        ("planes", "plane16: lengths do not add up", 2, 48, sum_off),
        ("planes", "plane16: cut by a byte", 2, 48, planes(2, BF16)[:-1]),
        ("planes", "plane16: a byte too many", 2, 48, planes(2, BF16) + b"\0"),
        ("length", "plane16: a part longer than its plane", 2, 48, struct.pack("<2I", 25, 24) + bytes(49)),
        ("planes", "plane32: read as if it were plane16", 2, len(F32), planes(4, F32)),
        ("limits", "zstd: a frame above 4 MiB", 1, (4 << 20) + 1, zstd((0, 64))),
        ("codec", "codec 4 does not exist", 4, 9, b"plaintext"),
        ("codec", "codec 255 does not exist", 255, 9, b"plaintext"),
    ]
    return {
        "good": [
            {"name": name, "codec": codec, "plain": plain.hex(), "encoded": frame.hex()}
            for name, codec, plain, frame in good
        ],
        "bad": [
            {"why": why, "refused": refused, "codec": codec, "plain_bytes": size, "encoded": frame.hex()}
            for refused, why, codec, size, frame in bad
        ],
    }
