"""The device tier: bytes into the memory of an accelerator, through pinned host buffers on a stream of their own.

Filling the next buffer (reading, decrypting, checking) overlaps with copying the last ones up. Without an accelerator
the device is `cpu` and takes the same way, with plain buffers and no stream. Device memory lives in one process: what
is staged there is gone with it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, NoRoom

if TYPE_CHECKING:
    import torch

# Large enough for a copy to run at full speed, few enough that they cost nothing beside what is staged.
BOUNCE_BYTES, BOUNCES = 32 << 20, 3

# Puts bytes [at, at + len(out)) of what is staged into `out`.
Fill = Callable[[int, memoryview], None]


def parse_device(tier: str) -> str:
    """Return the torch device of `device`, `device:cpu` or `device:cuda:N`; raise BadInput if it is not there.

    `device` alone is the first accelerator, or `cpu` where there is none.
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
    if kind != "cuda" or not (number or "0").isdecimal() or int(number or "0") >= count:
        raise BadInput(f"tier {tier}", f"is not here, there are {count} accelerators", hint="see 'arstore tiers'")
    return f"cuda:{int(number or '0')}"


def upload(length_bytes: int, fill: Fill, device: str, budget_bytes: int | None = None) -> "torch.Tensor":
    """Return device memory of exactly so many bytes, as uint8, filled.

    Raises NoRoom, before anything moves, if budget or device have less. What `fill` raises comes through.
    """
    import torch

    target = torch.device(device)
    check_room(length_bytes, device, budget_bytes)
    memory = torch.empty(length_bytes, dtype=torch.uint8, device=target)
    pinned = target.type == "cuda"
    stream: Any = torch.cuda.Stream(target) if pinned else None  # type: ignore[no-untyped-call]
    if stream is not None:  # what had this memory before may still be read by work that is queued
        stream.wait_stream(torch.cuda.current_stream(target))
    bounces = [
        torch.empty(min(BOUNCE_BYTES, length_bytes), dtype=torch.uint8, pin_memory=pinned) for _ in range(BOUNCES)
    ]
    busy: list[Any] = [None] * BOUNCES
    for turn, at in enumerate(range(0, length_bytes, BOUNCE_BYTES)):
        part = bounces[turn % BOUNCES][: min(BOUNCE_BYTES, length_bytes - at)]
        if busy[turn % BOUNCES] is not None:
            busy[turn % BOUNCES].synchronize()  # its last copy is still on its way up
        fill(at, part.numpy().data)
        busy[turn % BOUNCES] = _copy(part, memory[at : at + len(part)], stream)
    if stream is not None:
        stream.synchronize()
    return memory


def _copy(part: "torch.Tensor", target: "torch.Tensor", stream: Any) -> Any:
    """Start copying; return the event of its end, None where it is over already."""
    import torch

    if stream is None:
        target.copy_(part)
        return None
    with torch.cuda.stream(stream):
        target.copy_(part, non_blocking=True)
        return stream.record_event()


def check_room(length_bytes: int, device: str, budget_bytes: int | None) -> None:
    """Raise NoRoom if so many bytes do not fit into the budget or what the device has free."""
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device != "cpu" else None
    room = min((one for one in (free, budget_bytes) if one is not None), default=length_bytes)
    if length_bytes > room:
        why = f"{length_bytes} bytes do not fit into {room}"
        raise NoRoom(f"device {device}", why, hint="stage less, or raise --budget")
