"""The device tier: the memory of an accelerator. Bytes go up through pinned host buffers, on a stream of their own.

Filling one buffer (reading, decrypting, checking) overlaps with copying the buffers before it up. Without an
accelerator the device is `cpu`; the way is the same, with plain buffers and no stream. Device memory belongs to one
process. It is free again when the process ends, or when the last tensor that uses it is gone.
"""

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...formats.tensor import TensorSpan
from ..disk import Out
from ..errors import BadInput, Fenced, NoRoom
from ..progress import BytesTold, ignore_bytes
from .tier import Held, Resident

if TYPE_CHECKING:
    import torch

# A copy of this size runs at full speed. So few buffers take little memory beside the objects that are staged.
BOUNCE_BYTES, BOUNCES = 32 << 20, 3
_MEMORY = Path("/proc/meminfo")


def kind_of(tier: str) -> str:
    """Return the kind of a tier: `device` for `device:cuda:0`."""
    return tier.partition(":")[0]


def parse_device(tier: str) -> str:
    """Return the torch device that `device`, `device:cpu` or `device:cuda:N` names; raise BadInput if there is none.

    `device` alone means the first accelerator, or `cpu` if there is no accelerator.
    """
    import torch

    kind, _, name = tier.partition(":")
    if kind != "device":
        raise BadInput(f"tier {tier}", "can't be staged to, wanted host, device or device:cuda:0")
    if not name:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal() or len(number) > 9 or int(number or "0") >= count:
        raise BadInput(f"tier {tier}", f"is not here, there are {count} accelerators", hint="see 'arstore tiers'")
    return f"cuda:{int(number or '0')}"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class OnDevice:
    """An object in the memory of a device."""

    name: str
    spans: tuple[TensorSpan, ...]
    memory: "torch.Tensor"  # of all its bytes, uint8

    @property
    def length_bytes(self) -> int:
        return len(self.memory)

    def read(self, at: int, out: Out) -> None:
        """Fill `out` with the bytes from `at` on."""
        for start in range(0, len(out), BOUNCE_BYTES):
            stop = min(start + BOUNCE_BYTES, len(out))
            out[start:stop] = self.memory[at + start : at + stop].cpu().numpy().data


class DeviceTier:
    """The objects that this process has brought to one device; see tier.py. Removing one does not overwrite it."""

    tier = "device"

    def __init__(self, device: str, budget_bytes: int | None = None) -> None:
        """Take a torch device, as `parse_device` returns it, and the most bytes that may lie there, if limited."""
        self.device, self._budget_bytes = device, budget_bytes
        self._kept: dict[str, tuple[OnDevice, float]] = {}
        self._handed: dict[str, weakref.ref[OnDevice]] = {}
        self._alive: list[tuple[Any, int]] = []  # memory that tensors may still use, and its bytes
        self._guard = threading.RLock()  # held while one of these three is read or changed
        self._coming: dict[str, threading.Lock] = {}

    @property
    def capacity_bytes(self) -> int:
        """The budget, or what the device has free beside these objects, if that is less."""
        free = _free_bytes(self.device) + self.used_bytes
        return free if self._budget_bytes is None else min(self._budget_bytes, free)

    @property
    def used_bytes(self) -> int:
        """Bytes of the memory that was filled here and is not free again."""
        with self._guard:
            self._alive = [(memory, length) for memory, length in self._alive if not memory.expired()]
            return sum(length for _, length in self._alive)

    def residents(self) -> list[Resident]:
        with self._guard:
            return [
                Resident(key, kept.name, kept.length_bytes, until_s)
                for key, (kept, until_s) in sorted(self._kept.items())
            ]

    def find(self, key: str) -> bool:
        return key in self._kept

    def hold(self, key: str, until_s: float = 0.0) -> OnDevice | None:
        with self._guard:
            if key not in self._kept:
                return None
            kept, before_s = self._kept[key]
            self._kept[key] = kept, max(before_s, until_s)
            return self._hand_out(key)

    def make_room(self, length_bytes: int, keep: frozenset[str]) -> None:
        with self._guard:
            residents = sorted(self.residents(), key=lambda resident: resident.expires_s)
            free = [
                resident
                for resident in residents
                if resident.key not in keep and self._is_freed_by_removal(resident.key)
            ]
            kept = self.used_bytes - sum(resident.length_bytes for resident in free)
            if kept + length_bytes > self.capacity_bytes:
                why = f"{length_bytes} bytes do not fit beside {kept} in use, of {self.capacity_bytes}"
                raise NoRoom(f"device {self.device}", why, hint="stage less, or raise --budget")
            for resident in free:
                if self.used_bytes + length_bytes > self.capacity_bytes:
                    self.remove(resident.key)

    @contextlib.contextmanager
    def filling(self, key: str, *, wait: bool) -> Iterator[None]:
        coming = self._coming.setdefault(key, threading.Lock())  # threads are enough: no other process fills this tier
        if not coming.acquire(blocking=wait):
            raise Fenced(key[:16], "another thread is staging it", hint="wait for it")
        try:
            yield
        finally:
            coming.release()

    def fill(self, key: str, source: Held, until_s: float = 0.0, on_bytes: BytesTold = ignore_bytes) -> OnDevice:
        from torch.multiprocessing.reductions import StorageWeakRef

        if held := self.hold(key, until_s):
            return held
        memory = upload(source, self.device, on_bytes)
        alive = StorageWeakRef(memory.untyped_storage())  # type: ignore[no-untyped-call]
        with self._guard:
            if held := self.hold(key, until_s):
                return held  # another thread was faster
            self._alive = [row for row in self._alive if not row[0].expired()]
            self._alive.append((alive, len(memory)))
            self._kept[key] = OnDevice(source.name, tuple(source.spans), memory), until_s
            return self._hand_out(key)

    def remove(self, key: str, *, expired_only: bool = False) -> bool:
        with self._guard:
            if key in self._kept:
                if self._is_used(key) or (expired_only and self._kept[key][1] > time.time()):
                    return False
                del self._kept[key]
            return True

    def sweep(self) -> None:
        for key in list(self._kept):
            self.remove(key, expired_only=True)

    def _is_used(self, key: str) -> bool:
        handed = self._handed.get(key)
        return handed is not None and handed() is not None

    def _is_freed_by_removal(self, key: str) -> bool:
        return not self._is_used(key) and not _is_viewed(self._kept[key][0].memory)

    def _hand_out(self, key: str) -> OnDevice:
        """Return the object that all users share. It stays while one of them references it."""
        handed = self._handed.get(key)
        if handed is None or (held := handed()) is None:
            held = replace(self._kept[key][0])
            self._handed[key] = weakref.ref(held)
        return held


def _free_bytes(device: str) -> int:
    """Return the bytes that a device has free; for `cpu` the memory that the kernel says is available."""
    import torch

    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = (line.split() for line in _MEMORY.read_text().splitlines())
    return next((int(line[1]) << 10 for line in lines if line[0] == "MemAvailable:"), 1 << 62)


def _is_viewed(memory: "torch.Tensor") -> bool:
    """Say whether other tensors use the same memory."""
    import torch

    def uses(tensor: torch.Tensor) -> int:
        return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)

    return uses(memory) > uses(torch.empty(1, dtype=torch.uint8))


def upload(source: Held, device: str, on_bytes: BytesTold = ignore_bytes) -> "torch.Tensor":
    """Return an object's bytes in the memory of a device, as uint8.

    Raises NoRoom if the device is full, and what reading the object raises.
    """
    import torch

    target, length_bytes = torch.device(device), source.length_bytes
    try:
        memory = torch.empty(length_bytes, dtype=torch.uint8, device=target)
    except RuntimeError as error:  # the base of torch.OutOfMemoryError
        raise NoRoom(f"device {device}", str(error).partition(".")[0].lower()) from None
    pinned = target.type == "cuda"
    stream: Any = torch.cuda.Stream(target) if pinned else None  # type: ignore[no-untyped-call]
    if stream is not None:  # work that is queued may still read what had this memory before
        stream.wait_stream(torch.cuda.current_stream(target))
    bounces = [
        torch.empty(min(BOUNCE_BYTES, length_bytes), dtype=torch.uint8, pin_memory=pinned) for _ in range(BOUNCES)
    ]
    busy: list[Any] = [None] * BOUNCES
    try:
        for turn, at in enumerate(range(0, length_bytes, BOUNCE_BYTES)):
            part = bounces[turn % BOUNCES][: min(BOUNCE_BYTES, length_bytes - at)]
            if busy[turn % BOUNCES] is not None:
                busy[turn % BOUNCES].synchronize()  # until its last copy has arrived
            source.read(at, part.numpy().data)
            busy[turn % BOUNCES] = _copy(part, memory[at : at + len(part)], stream)
            on_bytes(len(part))
    finally:  # after a failure too: the memory then goes to others, and no copy may still write to it
        if stream is not None:
            stream.synchronize()
    return memory


def _copy(part: "torch.Tensor", target: "torch.Tensor", stream: Any) -> Any:
    """Start copying; return the event of its end, or None if the copy is complete."""
    import torch

    if stream is None:
        target.copy_(part)
        return None
    with torch.cuda.stream(stream):
        target.copy_(part, non_blocking=True)
        return stream.record_event()
