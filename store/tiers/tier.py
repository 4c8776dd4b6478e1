"""Tier: what every place keeps to that holds objects, whichever it is; one suite of tests runs over all of them.

    device  memory of an accelerator, of one process        arena: none, tensors of torch
    host    shared memory, mapped by this user's processes  arena of extents, verified once
    shared  memory that a user names, perhaps of many       arena of sealed extents, verified at each reading
    local   the store itself                                the truth; put and gc fill and empty it
    remote  a bucket, to come; it is to be one more `ObjectSource`

The promise:
1. What a tier gives is what was stored, to the last bit, or an error. A half-filled object is never found.
2. An object that is held stays as it is until the last reference to it is gone, whatever others do to the tier.
3. `fill` publishes in one step, and what fails leaves nothing behind. Twice the same key is the same object.
4. Room is made before anything moves, or NoRoom is raised and nothing has changed but what was over time.
5. A tier may fail or vanish at any moment: then it raises StorageFailed or has nothing; it never gives other bytes.
   Whoever asks goes on from the tier below (fallback.py).
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
    """One object in a tier: its key, its name when it came, its bytes, and when it may go, seconds since 1970."""

    key: str
    name: str
    length_bytes: int
    expires_s: float


class Held(Protocol):
    """An object in its place: tensors side by side, `spans` saying where each one lies."""

    @property
    def name(self) -> str: ...

    @property
    def spans(self) -> Sequence[TensorSpan]: ...

    @property
    def length_bytes(self) -> int: ...

    def read(self, at: int, out: Out) -> None:
        """Fill `out` with the bytes from `at` on, verified; raise Corrupt or StorageFailed, and then `out` is noise."""
        ...


class ObjectSource(Protocol):
    """A tier that objects come from. Keys are 64 hex digits: the id of a version, or of a prefix block."""

    @property
    def tier(self) -> str:
        """Its name, as users know it."""
        ...

    def hold(self, key: str, until_s: float = 0.0) -> Held | None:
        """Return an object, held in place, and kept until then unless asked for; None if it is not there whole.

        Raises StorageFailed if the tier is gone, Corrupt if the object is bad and can't be taken away.
        """
        ...


class Tier(ObjectSource, Protocol):
    """A tier that objects are brought into."""

    @property
    def capacity_bytes(self) -> int: ...

    def find(self, key: str) -> bool:
        """Say whether an object is there whole."""
        ...

    def residents(self) -> list[Resident]:
        """Return what is there."""
        ...

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        """Remove what is over time first, until so many bytes fit; never what is in use.

        Raises NoRoom, with nothing removed, if they can't.
        """
        ...

    def filling(self, key: str, *, wait: bool) -> AbstractContextManager[None]:
        """Be the one who brings this key while the body runs; raise Fenced if another does, unless `wait`."""
        ...

    def fill(self, key: str, source: Held, until_s: float = 0.0, told: BytesTold = ignore_bytes) -> Held:
        """Bring an object in; return it, held in place. What `source` raises comes through; `told` hears of its bytes.

        Room was made for it, or a plan has room for it: the capacity is not asked again. Raises NoRoom where there is
        no memory after all.
        """
        ...

    def remove(self, key: str, *, over: bool = False) -> bool:
        """Remove an object if it is there, with `over` only if its time is; False if it is in use and stays."""
        ...

    def sweep(self) -> None:
        """Remove what killed processes left, and what is over time and nobody uses."""
        ...
