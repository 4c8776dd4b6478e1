"""Prefetch to a device: artifacts staged in the memory of an accelerator, of this process."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..formats.tensor import TensorSpan
from .artifact import FILE_PREFIX
from .prefetch import Wanted
from .progress import Progress
from .refs import label_artifacts
from .tiers.device import check_room, upload

if TYPE_CHECKING:
    import torch


class DeviceStage(Mapping[str, "Mapping[str, torch.Tensor]"]):
    """What is staged on a device, by name; its memory is free again when the last tensor of it is gone."""

    def __init__(self, held: "dict[str, dict[str, torch.Tensor]]") -> None:
        self._held = held

    def __getitem__(self, name: str) -> "Mapping[str, torch.Tensor]":
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __enter__(self) -> "DeviceStage":
        return self

    def __exit__(self, *failure: object) -> None:
        self.release()

    def release(self) -> None:
        self._held.clear()


def stage_device(wanted: Sequence[Wanted], device: str, budget_bytes: int | None, progress: Progress) -> DeviceStage:
    """Stage artifacts in the memory of a device, each byte verified on its way up.

    Raises NoRoom, before anything moves, if they do not fit together; Corrupt if a blob is bad.
    """
    total = sum(one.length_bytes for one in wanted)
    check_room(total, device, budget_bytes)
    held = {}
    labels = label_artifacts([(one.artifact.summary.name, one.artifact.summary.version, one.key) for one in wanted])
    for one in wanted:
        memory = upload(one.length_bytes, one.fill, device)
        held[labels[one.key]] = _place_tensors(memory, one.spans)
        progress(one.length_bytes, total)
    return DeviceStage(held)


def _place_tensors(memory: "torch.Tensor", spans: Sequence[TensorSpan]) -> "dict[str, torch.Tensor]":
    """Return the tensors that lie in memory of a device."""
    from .tensors import shape_tensor

    return {
        span.name: shape_tensor(memory[span.place], span) for span in spans if not span.name.startswith(FILE_PREFIX)
    }
