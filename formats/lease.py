"""The row of a lease: who owns a scope, in which epoch, and until when.

0    8   epoch: counts the ownerships of the scope and never goes back
8    8   expires, nanoseconds of CLOCK_BOOTTIME in the owner's boot
16   16  owner: random for each acquisition (all zero: released)
32   16  boot id
48   4   process id
52   8   start of the process, clock ticks after boot (proc(5), stat field 22)
60   8   process id namespace (inode of /proc/self/ns/pid)
68   8   wall clock of the acquisition, seconds: for people only, never compared
76   ..  purpose, UTF-8, at most 64 bytes
"""

import struct
from dataclasses import dataclass, replace

from .errors import FormatError

PURPOSE_MAX_BYTES = 64
PROCESS_BYTES = 36
NOBODY = bytes(16)
_PROCESS = struct.Struct("<16sIQQ")
_ROW = struct.Struct(f"<QQ16s{_PROCESS.size}sQ")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of one boot. Its start tells it apart from every other process that had its number."""

    boot_id: bytes
    pid: int
    start: int
    pid_namespace: int

    def packed(self) -> bytes:
        return _PROCESS.pack(self.boot_id, self.pid, self.start, self.pid_namespace)


def parse_process(packed: bytes) -> ProcessId:
    """Return the process in 36 bytes; raise FormatError if there are more or fewer."""
    if len(packed) != PROCESS_BYTES:
        raise FormatError(f"process is {len(packed)} bytes, wanted {PROCESS_BYTES}")
    return ProcessId(*_PROCESS.unpack(packed))


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """One ownership of one scope."""

    epoch: int
    expires_ns: int
    owner: bytes
    process: ProcessId
    acquired_s: int
    purpose: str

    @property
    def held(self) -> bool:
        return self.owner != NOBODY

    def released(self) -> "LeaseRow":
        """Return the row without an owner. The epoch stays, so an owner that wakes up late is fenced for ever."""
        return replace(self, owner=NOBODY)

    def packed(self) -> bytes:
        head = _ROW.pack(self.epoch, self.expires_ns, self.owner, self.process.packed(), self.acquired_s)
        return head + self.purpose.encode()


def parse_lease(packed: bytes) -> LeaseRow:
    """Return the lease in a row's value; raise FormatError if it holds none."""
    if not _ROW.size <= len(packed) <= _ROW.size + PURPOSE_MAX_BYTES:
        raise FormatError("lease row has a wrong length")
    try:
        epoch, expires, owner, process, acquired = _ROW.unpack_from(packed)
        return LeaseRow(epoch, expires, owner, parse_process(process), acquired, packed[_ROW.size :].decode())
    except UnicodeDecodeError:
        raise FormatError("lease row holds bytes that are not text") from None
