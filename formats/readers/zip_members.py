"""Zip archives as ranges of their file: where each member's bytes lie, never what they expand to.

Invariant: every member lies whole between the start of the file and the central directory, no two overlap,
and the local header tells the same name and method as the directory, so two readers cannot see two archives.

    [local header + name + extra + bytes]*   [central directory]   [zip64 end + locator]?   end record
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import FormatError
from ..tensor import Source

_MAGIC = b"PK\x03\x04"
_EMPTY_MAGIC = b"PK\x05\x06"
MEMBERS_MAX_COUNT = 1_000_000
DIRECTORY_MAX_BYTES = 128 << 20

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_COMMENT_MAX_BYTES = 0xFFFF
_EXTRA_64 = 1
_STORED = 0
# Encrypted, patched, strongly encrypted, masked: the bytes in the file are not the bytes of the member.
_HIDDEN_FLAGS = 0x0001 | 0x0020 | 0x0040 | 0x2000
_UTF8_FLAG = 0x0800


@dataclass(frozen=True, slots=True)
class Member:
    """One member as `length` bytes from `start` of the file; readable in place only if `stored`."""

    name: str
    start: int
    length: int
    stored: bool


@dataclass(frozen=True, slots=True)
class _Directory:
    """The central directory: its range in the file and how many members it lists."""

    start: int
    length: int
    count: int


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the central directory says of one member; `start` is that of its local header."""

    name: bytes
    flags: int
    method: int
    start: int
    length: int
    expanded: int


def looks_zipped(source: Source) -> bool:
    """Tell whether a file starts as a zip archive does, with a member or, if it is empty, its end record."""
    return source.size >= 4 and source.read(0, 4) in (_MAGIC, _EMPTY_MAGIC)


def read_members(source: Source) -> tuple[Member, ...]:
    """Return the members of a zip archive by place in the file, compressed ones included.

    Zip64 is understood. Raises FormatError if the archive is malformed, spans several disks, tells a name
    twice, or is over the limits: 1,000,000 members, a directory of 128 MiB.
    """
    directory = _find_directory(source)
    listed = sorted(_read_directory(source, directory), key=lambda member: member.start)
    members, names, free = [], set(), 0
    for entry in listed:
        if entry.start < free:
            raise FormatError(f"zip members overlap at byte {entry.start}")
        member = _locate(source, entry, directory.start)
        if member.name in names:
            raise FormatError(f"zip member {member.name[:80]!r} is listed twice")
        names.add(member.name)
        members.append(member)
        free = member.start + member.length
    return tuple(members)


def _find_directory(source: Source) -> _Directory:
    """Find the end record, and the zip64 one if there is one; return the directory they describe."""
    tail_start = max(0, source.size - _END.size - _COMMENT_MAX_BYTES)
    tail = source.read(tail_start, source.size - tail_start)
    place = tail.rfind(_EMPTY_MAGIC)
    if place < 0 or len(tail) - place < _END.size:
        raise FormatError("zip end record is missing: the file is cut short or no zip archive")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, place)
    if place + _END.size + comment != len(tail):
        raise FormatError("zip end record does not end the file")
    end = tail_start + place
    found = _Directory(start, length, count)
    if end >= _LOCATOR.size and (raw := source.read(end - _LOCATOR.size, _LOCATOR.size))[:4] == b"PK\x06\x07":
        end, found = _read_end_64(source, end - _LOCATOR.size, raw, found)
    elif disk or first_disk or here != count:
        raise FormatError("zip archive spans several disks")
    if found.start + found.length != end:
        raise FormatError(f"zip directory ends at byte {found.start + found.length}, wanted {end}")
    if found.count > MEMBERS_MAX_COUNT or found.length > DIRECTORY_MAX_BYTES:
        raise FormatError(f"zip directory of {found.count} members, {found.length} bytes is over the limit")
    return found


def _read_end_64(source: Source, place: int, locator: bytes, plain: _Directory) -> tuple[int, _Directory]:
    """Return where the zip64 end record starts and its directory, which `plain` must not contradict."""
    _, _, start, disks = _LOCATOR.unpack(locator)
    if disks > 1 or start + _END_64.size > place:
        raise FormatError("zip64 locator points outside the file or to another disk")
    mark, size, _, _, disk, first_disk, here, count, length, offset = _END_64.unpack(source.read(start, _END_64.size))
    if mark != b"PK\x06\x06" or start + 12 + size != place or disk or first_disk or here != count:
        raise FormatError("zip64 end record is malformed")
    limits = (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFF)
    pairs = zip((plain.start, plain.length, plain.count), (offset, length, count), limits, strict=True)
    if any(told not in (large, limit) for told, large, limit in pairs):
        raise FormatError("zip end record and zip64 end record differ")
    return start, _Directory(offset, length, count)


def _read_directory(source: Source, directory: _Directory) -> Iterator[_Listed]:
    """Yield what the central directory lists; its bytes must hold exactly the promised count."""
    raw = source.read(directory.start, directory.length)
    place = 0
    for _ in range(directory.count):
        if len(raw) - place < _CENTRAL.size:
            raise FormatError("zip directory is shorter than its count of members")
        (
            mark,
            _,
            _,
            flags,
            method,
            _,
            _,
            _,
            packed,
            expanded,
            name_length,
            extra_length,
            comment_length,
            disk,
            _,
            _,
            start,
        ) = _CENTRAL.unpack_from(raw, place)
        name_start = place + _CENTRAL.size
        extra_start = name_start + name_length
        place = extra_start + extra_length + comment_length
        if mark != b"PK\x01\x02" or place > len(raw) or disk not in (0, 0xFFFF):
            raise FormatError("zip directory is malformed")
        extra = raw[extra_start : extra_start + extra_length]
        expanded, packed, start = _widen(extra, (expanded, packed, start))
        yield _Listed(raw[name_start:extra_start], flags, method, start, packed, expanded)
    if place != len(raw):
        raise FormatError("zip directory is longer than its count of members")


def _widen(extra: bytes, narrow: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return size, packed size and offset, each from the zip64 extra field where 32 bits were too few."""
    wide = b""
    while len(extra) >= 4:
        field, length = struct.unpack_from("<HH", extra)
        if field == _EXTRA_64:
            wide = extra[4 : 4 + length]
            break
        extra = extra[4 + length :]
    widened = []
    for value in narrow:
        if value != 0xFFFFFFFF:
            widened.append(value)
        elif len(wide) >= 8:
            widened.append(int.from_bytes(wide[:8], "little"))
            wide = wide[8:]
        else:
            raise FormatError("zip member lacks the zip64 field that it refers to")
    return widened[0], widened[1], widened[2]


def _locate(source: Source, entry: _Listed, bytes_end: int) -> Member:
    """Return the member that a directory line lists, its bytes found through its local header."""
    name_start = entry.start + _LOCAL.size
    if name_start + len(entry.name) > bytes_end:
        raise FormatError(f"zip member at byte {entry.start} lies outside the file")
    local = source.read(entry.start, _LOCAL.size + len(entry.name))
    mark, _, _, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(local)
    told = (mark, method, name_length, local[_LOCAL.size :])
    if told != (_MAGIC, entry.method, len(entry.name), entry.name):
        raise FormatError(f"zip member at byte {entry.start} differs from what the directory says")
    start = name_start + name_length + extra_length
    if start + entry.length > bytes_end:
        raise FormatError(f"zip member at byte {entry.start} lies outside the file")
    stored = entry.method == _STORED and not entry.flags & _HIDDEN_FLAGS
    if stored and entry.length != entry.expanded:
        raise FormatError(f"zip member at byte {entry.start} is stored, but its two sizes differ")
    try:
        name = entry.name.decode("utf-8" if entry.flags & _UTF8_FLAG else "cp437")
    except UnicodeDecodeError:
        raise FormatError(f"zip member at byte {entry.start} has a name that is not utf-8") from None
    if "\0" in name:
        raise FormatError(f"zip member at byte {entry.start} has a name with a zero byte")
    return Member(name, start, entry.length, stored)
