"""Zip: members of any kind are located, and contradictions are refused."""

import io
import struct
import warnings
import zipfile

import numpy as np

from arstore.formats.errors import FormatError
from arstore.formats.readers import numpy_file, zip_members
from tests.support.readers import BytesSource, npy_bytes, npy_header, refused, zip_bytes


class HollowSource:
    """A file of a head, a hole of zeros that is never materialised, and a tail."""

    def __init__(self, head: bytes, hole: int, tail: bytes) -> None:
        self._head, self._tail, self._tail_start = head, tail, len(head) + hole
        self.size = self._tail_start + len(tail)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= length < 1 << 20
        if offset + length > self.size:
            raise FormatError("file is cut short")
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        if offset >= self._tail_start:
            return self._tail[offset - self._tail_start :][:length]
        head, tail = self._head[offset:], self._tail[: max(0, offset + length - self._tail_start)]
        return head + bytes(length - len(head) - len(tail)) + tail


def test_zip64_archive_over_four_gigabytes() -> None:
    array = npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (5368709120,), }")
    length = len(array) + (5 << 30)
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 5, 20)
    local += b"a.npy" + struct.pack("<HHQQ", 1, 16, length, length) + array
    second = len(local) + (5 << 30)
    scalar = npy_bytes(np.array(7, "u1"))
    tail = (
        struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(scalar), len(scalar), 5, 0) + b"b.npy" + scalar
    )
    directory = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, 0, told, told, 5, len(extra), 0, 0, 0, 0, start)
        + name + extra
        for name, told, start, extra in (
            (b"a.npy", 0xFFFFFFFF, 0, struct.pack("<HH2xHHQQ", 0x9999, 2, 1, 16, length, length)),
            (b"b.npy", len(scalar), 0xFFFFFFFF, struct.pack("<HHQ", 1, 8, second)),
        )
    )  # fmt: skip
    place = second + len(tail)
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(directory), place)
    end += struct.pack("<4sIQI", b"PK\x06\x07", 0, place + len(directory), 1)
    end += struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), 0xFFFFFFFF, 0)
    large, small = numpy_file.read_table(HollowSource(local, 5 << 30, tail + directory + end))
    assert (large.name, large.start, large.length) == ("a", len(local), 5 << 30)
    assert (small.name, small.start, small.length) == ("b", place - 1, 1)


def test_zip_members_of_any_kind_are_located() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("stored", b"x" * 10)
        archive.writestr("packed", b"x" * 1000, zipfile.ZIP_DEFLATED)
        archive.mkdir("folder")
        archive.comment = b"PK\x05\x06 in a comment is no end record" + bytes(30)
    content = file.getvalue()
    stored, packed, folder = zip_members.read_members(BytesSource(content[: -len(archive.comment) - 2] + b"\0\0"))
    assert content[stored.start : stored.start + stored.length] == b"x" * 10
    assert (stored.stored, packed.stored, folder.name, folder.length) == (True, False, "folder/", 0)


def test_zip_refuses_contradictions() -> None:
    content = zip_bytes({"a": b"12345", "b": b"12345"})
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 1)
    end = content.index(b"PK\x05\x06")

    def patched(place: int, value: bytes) -> bytes:
        return content[:place] + value + content[place + len(value) :]

    for broken, wanted in (
        (patched(30, b"c"), "differs from what the directory says"),
        (patched(8, b"\x08"), "differs from what the directory says"),
        (patched(second + 46, b"a"), "differs from what the directory says"),
        (patched(second + 42, bytes(4)), "overlap"),
        (patched(directory + 20, struct.pack("<II", 40, 40)), "overlap"),
        (patched(second + 20, struct.pack("<II", 99, 99)), "outside the file"),
        (patched(directory + 24, bytes(4)), "two sizes differ"),
        (patched(directory + 42, b"\xff\xff\xff\x7f"), "outside the file"),
        (patched(directory + 42, b"\xff\xff\xff\xff"), "lacks the zip64 field"),
        (patched(end + 4, b"\1"), "several disks"),
        (patched(end + 10, b"\3"), "several disks"),
        (patched(end + 8, b"\3\0\3"), "shorter than its count"),
        (patched(end + 8, b"\1\0\1"), "longer than its count"),
        (patched(end + 16, bytes(4)), "zip directory ends at"),
        (patched(end + 20, b"\1"), "does not end the file"),
        (b"stub" + content, "zip directory ends at"),
        (b"", "missing"),
    ):
        assert wanted in refused(zip_members.read_members, broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a", b"1")
            archive.writestr("a", b"2")
    assert "listed twice" in refused(zip_members.read_members, file.getvalue())
