"""IPC: memory of an accelerator that one process filled, opened by others without a copy, by CUDA's handles for that.

The process that filled it keeps it, and outlives those that open it. A handle is what torch's own sharing of tensors
between processes uses, as plain values; nothing is unpickled.
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
    """Return a handle by which other processes open an object's memory; None where the device can't be shared."""
    if held.memory.device.type != "cuda" or not held.length_bytes:
        return None
    storage: Any = held.memory.untyped_storage()
    try:
        values = storage._share_cuda_()
    except RuntimeError:  # a driver or a container that has no such handles
        return None
    return [one.hex() if isinstance(one, bytes) else one for one in values]


def open_handle(handle: Handle, host: Held) -> OnDevice:
    """Return an object that another process has brought to a device; `host` is the same object in the host tier.

    Raises StorageFailed if it can't be opened, Corrupt if it does not begin and end as the host's does.
    """
    import torch

    device, memory, length, start, counter, counter_at, event, is_synced = handle
    raw = [bytes.fromhex(str(one)) for one in (memory, counter, event)]
    kind: Any = torch.UntypedStorage
    try:
        storage = kind._new_shared_cuda(device, raw[0], length, start, raw[1], counter_at, raw[2], is_synced)
    except RuntimeError as error:
        raise StorageFailed(f"device cuda:{device}", str(error).partition("\n")[0].lower()) from None
    found = torch.empty(0, dtype=torch.uint8, device=f"cuda:{device}").set_(storage)[: host.length_bytes]
    _check(found, host)
    return OnDevice(host.name, tuple(host.spans), found)


def _check(found: "torch.Tensor", host: Held) -> None:
    """Compare first and last page: that it is this object, and came there whole."""
    for at in {0, max(host.length_bytes - _CHECKED_BYTES, 0)}:
        wanted = memoryview(bytearray(min(_CHECKED_BYTES, host.length_bytes)))
        host.read(at, wanted)
        if bytes(found[at : at + len(wanted)].cpu().numpy().data) != wanted:
            raise Corrupt(host.name, "is not what another process brought to the device")
