"""Objects and tiers that fail, wait or vanish on demand, in the place of real ones.

`Between` stands between a tier and who asks, `Met` between an object and who reads it; both let a fate act first.
"""

import contextlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from arstore.formats.tensor import TensorSpan
from arstore.store.disk import Out
from arstore.store.errors import StorageFailed
from arstore.store.progress import BytesTold, ignore_bytes
from arstore.store.tiers.tier import Held, Resident, Tier

# ---- objects


@dataclass(frozen=True, slots=True)
class Given:
    """An object that a test made up."""

    name: str
    spans: Sequence[TensorSpan]
    content: bytes

    @property
    def length_bytes(self) -> int:
        return len(self.content)

    def read(self, at: int, out: Out) -> None:
        out[:] = self.content[at : at + len(out)]


def given(length: int = 20_000, name: str = "m@1") -> Given:
    return Given(name, (TensorSpan("f", "U8", (length,), 0, length),), secrets.token_bytes(length))


# ---- what may come between


class Faulty:
    """The `at`-th reading fills half of what is asked for, with something, and raises."""

    def __init__(self, error: BaseException, at: int = 1) -> None:
        self._error, self._left = error, at

    def __call__(self, out: Out | None) -> None:
        self._left -= out is not None
        if out is not None and not self._left:
            out[: len(out) // 2] = b"\xee" * (len(out) // 2)
            raise self._error


class Slow:
    """Every reading waits first, so that whoever races has time to."""

    def __call__(self, out: Out | None) -> None:
        time.sleep(0.002 if out is not None else 0)


class Nothing(Exception):
    """Instead of an error there is nothing."""


class Vanishing:
    """From the `at`-th operation on everything raises, or, if it goes silently, there is nothing."""

    def __init__(self, at: int, *, silently: bool = False) -> None:
        self._left, self._silently = at, silently

    def __call__(self, out: Out | None) -> None:
        self._left -= 1
        if self._left <= 0:
            raise Nothing if self._silently and out is None else StorageFailed("tier", "is gone")


Fate = Faulty | Slow | Vanishing


class Met:
    """An object whose every reading meets a fate first."""

    def __init__(self, held: Held, fate: Fate) -> None:
        self._held, self._fate = held, fate
        self.name, self.spans, self.length_bytes = held.name, held.spans, held.length_bytes

    def read(self, at: int, out: Out) -> None:
        self._fate(out)
        self._held.read(at, out)


class Between:
    """A tier of which every operation, and every reading, meets a fate first."""

    def __init__(self, inner: Tier, fate: Fate) -> None:
        self._inner, self._fate, self.tier = inner, fate, inner.tier

    @property
    def capacity_bytes(self) -> int:
        return self._inner.capacity_bytes

    def find(self, key: str) -> bool:
        with contextlib.suppress(Nothing):
            self._fate(None)
            return self._inner.find(key)
        return False

    def residents(self) -> list[Resident]:
        with contextlib.suppress(Nothing):
            self._fate(None)
            return self._inner.residents()
        return []

    def hold(self, key: str, until_s: float = 0.0) -> Met | None:
        with contextlib.suppress(Nothing):
            self._fate(None)
            if held := self._inner.hold(key, until_s):
                return Met(held, self._fate)
        return None

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        self._fate(None)
        self._inner.make_room(length_bytes, keep)

    def filling(self, key: str, *, wait: bool) -> contextlib.AbstractContextManager[None]:
        self._fate(None)
        return self._inner.filling(key, wait=wait)

    def fill(self, key: str, source: Held, until_s: float = 0.0, on_bytes: BytesTold = ignore_bytes) -> Met:
        return Met(self._inner.fill(key, Met(source, self._fate), until_s, on_bytes), self._fate)

    def remove(self, key: str, *, expired_only: bool = False) -> bool:
        with contextlib.suppress(Nothing):
            self._fate(None)
            return self._inner.remove(key, expired_only=expired_only)
        return True

    def sweep(self) -> None:
        with contextlib.suppress(Nothing):
            self._fate(None)
            self._inner.sweep()
