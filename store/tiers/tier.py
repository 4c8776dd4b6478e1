"""Tier: the promise that every place for objects keeps. One suite of tests runs over all of them.

    device  memory of an accelerator, of one process        arena: none, tensors of torch
    host    shared memory, mapped by this user's processes  arena of extents, verified once
    shared  memory that a user names, perhaps of many       arena of sealed extents, verified at each reading
    local   the store itself                                the truth; put and gc fill and empty it
    remote  a bucket, to come; it is to be one more `ObjectSource`

The promise:
1. A tier gives the bytes that were stored, to the last bit, or an error. Nobody finds a half-filled object.
2. A held object does not change until its last reference is gone, whatever other processes do to the tier.
3. `fill` publishes in one step. If it fails, it leaves nothing behind. Filling a key twice gives the same object.
4. Room is made before anything moves. If there is not enough, NoRoom is raised and only expired objects are gone.
5. A tier may fail or vanish at any moment. It then raises StorageFailed or has nothing; it never gives other bytes.
   The caller goes on with the tier below, see `sources`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ...formats.tensor import TensorSpan
from ..disk import Out
from ..progress import BytesTold, ignore_bytes


@dataclass(frozen=True, slots=True)
class Resident:
    """One object in a tier: its key, the name it came with, its bytes, and when it expires, in seconds since 1970."""

    key: str
    name: str
    length_bytes: int
    expires_s: float


class Held(Protocol):
    """An object that stays in its place: tensors side by side. `spans` says where each one lies."""

    @property
    def name(self) -> str: ...

    @property
    def spans(self) -> Sequence[TensorSpan]: ...

    @property
    def length_bytes(self) -> int: ...

    def read(self, at: int, out: Out) -> None:
        """Fill `out` with verified bytes, from byte `at` on.

        Raises Corrupt or StorageFailed. The content of `out` is then undefined.
        """
        ...


class ObjectSource(Protocol):
    """A tier that objects come from. A key has 64 hex digits: it is the id of a version, or of a prefix block."""

    @property
    def tier(self) -> str:
        """The name of the tier, as users know it."""
        ...

    def hold(self, key: str, until_s: float = 0.0) -> Held | None:
        """Return an object, held in place; None if the whole object is not there. It expires at `until_s` or later.

        Raises StorageFailed if the tier is gone, Corrupt if the object is bad and can't be removed.
        """
        ...


class Tier(ObjectSource, Protocol):
    """A tier that objects are brought into."""

    @property
    def capacity_bytes(self) -> int: ...

    def find(self, key: str) -> bool:
        """Say whether the whole object is there."""
        ...

    def residents(self) -> list[Resident]:
        """Return the objects that are there."""
        ...

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        """Remove objects until so many bytes fit, those that expire first before others.

        Objects in use and the keys in `keep` stay. Raises NoRoom, with nothing removed, if the bytes can't fit.
        """
        ...

    def filling(self, key: str, *, wait: bool) -> AbstractContextManager[None]:
        """Keep others from bringing this key while the body runs; raise Fenced if one does already, unless `wait`."""
        ...

    def fill(self, key: str, source: Held, until_s: float = 0.0, on_bytes: BytesTold = ignore_bytes) -> Held:
        """Bring an object in; return it, held in place. `on_bytes` is called as its bytes come.

        The caller has made room, or its plan has; the capacity is not checked again. Raises what `source` raises, and
        NoRoom if there is no memory after all.
        """
        ...

    def remove(self, key: str, *, expired_only: bool = False) -> bool:
        """Remove an object if it is there. Return False if it stays: it is in use, or not expired (`expired_only`)."""
        ...

    def sweep(self) -> None:
        """Remove what killed processes left, and expired objects that nobody uses."""
        ...
