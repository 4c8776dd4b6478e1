"""Planes: elements of two or four bytes, split so that plane k holds byte k of each element, and merged again."""

_BLOCK_ELEMENTS = 1 << 17  # a block and its planes stay in the L2 cache between passes


def split(plain: memoryview, planes: list[memoryview]) -> None:
    """Write byte k of each little-endian element to plane k, by shifts: strided copies are half as fast."""
    import numpy as np

    words = np.frombuffer(plain, np.dtype(f"<u{len(planes)}"))
    for start in range(0, len(words), _BLOCK_ELEMENTS):
        block = slice(start, start + _BLOCK_ELEMENTS)
        for k, plane in enumerate(planes):
            np.right_shift(words[block], 8 * k, out=np.frombuffer(plane[block], np.uint8), casting="unsafe")


def merge(planes: list[memoryview], plain: memoryview) -> None:
    """Undo `split`: shift the planes into each element, highest first."""
    import numpy as np

    words = np.frombuffer(plain, np.dtype(f"<u{len(planes)}"))
    for start in range(0, len(words), _BLOCK_ELEMENTS):
        block = slice(start, start + _BLOCK_ELEMENTS)
        word = words[block]
        lowest, *middle, highest = (np.frombuffer(plane[block], np.uint8) for plane in planes)
        np.left_shift(highest, 8, out=word, dtype=word.dtype)
        for plane in reversed(middle):
            np.bitwise_or(word, plane, out=word)
            np.left_shift(word, 8, out=word)
        np.bitwise_or(word, lowest, out=word)
