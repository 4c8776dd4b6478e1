"""IPC: opens memory of an accelerator that another process filled, without a copy, by CUDA's handles.

The process that filled the memory keeps it, and must outlive those that open it. A handle has the values that torch
uses to share tensors between processes. They are plain values; nothing is unpickled.
"""

from typing import TYPE_CHECKING, Any

from ..errors import Corrupt, StorageFailed
from .device import OnDevice
from .tier import Held

if TYPE_CHECKING:
    import torch

Handle = list[str | int | bool]
_CHECKED_BYTES = 4096


def share(held: OnDevice) -> Handle | None:
    """Return a handle by which other processes open an object's memory; None if the device can't share it."""
    if held.memory.device.type != "cuda" or not held.length_bytes:
        return None
    storage: Any = held.memory.untyped_storage()
    try:
        values = storage._share_cuda_()
    except RuntimeError:  # some drivers and containers have no such handles
        return None
    return [value.hex() if isinstance(value, bytes) else value for value in values]


def open_handle(handle: Handle, host: Held) -> OnDevice:
    """Return an object that another process has brought to a device; `host` is the same object in the host tier.

    Raises StorageFailed if it can't be opened, Corrupt if its first or last page differs from the host's.
    """
    import torch

    device, memory, length, start, counter, counter_at, event, is_synced = handle
    raw = [bytes.fromhex(str(value)) for value in (memory, counter, event)]
    kind: Any = torch.UntypedStorage
    try:
        storage = kind._new_shared_cuda(device, raw[0], length, start, raw[1], counter_at, raw[2], is_synced)
    except RuntimeError as error:
        raise StorageFailed(f"device cuda:{device}", str(error).partition("\n")[0].lower()) from None
    opened = torch.empty(0, dtype=torch.uint8, device=f"cuda:{device}").set_(storage)[: host.length_bytes]
    _check_ends(opened, host)
    return OnDevice(host.name, tuple(host.spans), opened)


def _check_ends(opened: "torch.Tensor", host: Held) -> None:
    """Raise Corrupt unless the first and the last page are the object's: another object, or half of one, differs."""
    for at in {0, max(host.length_bytes - _CHECKED_BYTES, 0)}:
        wanted = memoryview(bytearray(min(_CHECKED_BYTES, host.length_bytes)))
        host.read(at, wanted)
        if bytes(opened[at : at + len(wanted)].cpu().numpy().data) != wanted:
            raise Corrupt(host.name, "is not what another process brought to the device")
