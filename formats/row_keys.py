"""The keys of the rows in LMDB. formats/catalog.py has the values.

    blobs        T, keyed hash of the digest (20)
    identities   T, keyed hash of the id (20)
    names        T, keyed hash of the name (20)
    versions     T, keyed hash of the name (20), version u32
    segments     segment id u64
    loans        T, random (8)
    spare        T
    doomed       T, first slot u64
    leases       "name", key of the row in `names`
    counters     "next-segment"; "gc-cycle"; "usage", "leftovers" or "quarantines", then T

T is the number of a tenant, u32. Numbers in keys are big-endian, so LMDB keeps rows in the order of the numbers.
"""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .digest import Digest, keyed_hash

if TYPE_CHECKING:
    from .identity import KeyId

NEXT_SEGMENT, GC_CYCLE = b"next-segment", b"gc-cycle"
_HASH_BYTES = 20
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The row keys of one tenant. They hold names, digests and ids as hashes under the tenant's index key."""

    tenant: int
    index_key: bytes

    @property
    def prefix(self) -> bytes:
        """The bytes that start every row key of this tenant."""
        return tenant_key(self.tenant)

    def blob(self, digest: Digest) -> bytes:
        return self._hashed(b"blob", digest)

    def identity(self, id_: "KeyId") -> bytes:
        return self._hashed(b"identity", id_)

    def name(self, name: str) -> bytes:
        return self._hashed(b"name", name.encode())

    def version(self, name: str, version: int) -> bytes:
        return self.name(name) + _U32.pack(version)

    def lease(self, name: str) -> bytes:
        """Return the scope of the lease on publishing under a name. The scope is the row key in `leases`."""
        return b"name" + self.name(name)

    def _hashed(self, kind: bytes, subject: bytes) -> bytes:
        return self.prefix + keyed_hash(self.index_key, kind, subject, length=_HASH_BYTES)


def tenant_key(tenant: int) -> bytes:
    """Return the key of a tenant's row in `spare`. It also starts the keys of all its other rows."""
    return _U32.pack(tenant)


def tenant_of(key: bytes) -> int:
    """Return the number of the tenant that a row key starts with."""
    return int(_U32.unpack_from(key)[0])


def version_of(key: bytes) -> int:
    """Return the version number that a key of `versions` ends with."""
    return int(_U32.unpack(key[-_U32.size :])[0])


def segment_key(segment: int) -> bytes:
    return _U64.pack(segment)


def segment_of(key: bytes) -> int:
    """Return the segment id in a key of `segments`."""
    return int(_U64.unpack(key)[0])


def loan_key(tenant: int, random: bytes) -> bytes:
    """Return the key of a loan from 8 random bytes."""
    return tenant_key(tenant) + random


def loan_lock_offset(loan: bytes) -> int:
    """Return the byte of the locks file that stands for a loan. Half of a u64 fits the signed offset of a lock."""
    return int(_U64.unpack(loan[-_U64.size :])[0]) >> 1


def doomed_key(tenant: int, first_slot: int) -> bytes:
    return tenant_key(tenant) + _U64.pack(first_slot)


def usage_key(tenant: int) -> bytes:
    """Return the key of the counter of bytes that a tenant's records take."""
    return b"usage" + tenant_key(tenant)


def leftovers_key(tenant: int) -> bytes:
    """Return the key of the counter of times that blobs left by an ended put were taken in."""
    return b"leftovers" + tenant_key(tenant)


def quarantines_key(tenant: int) -> bytes:
    """Return the key of the counter of times that a blob was found bad."""
    return b"quarantines" + tenant_key(tenant)
