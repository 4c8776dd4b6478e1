"""Staged objects as tensors: over shared memory without a copy, or in the memory of a device."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ...formats.tensor import TensorSpan
from ..artifacts.artifact import FILE_PREFIX
from .device import OnDevice
from .extent import Extent
from .tier import Held

if TYPE_CHECKING:
    import torch


class StagedTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of one staged object by name, each made when asked for. `files` are its files without tensors."""

    def __init__(self, held: Held) -> None:
        """Take an object in the host tier or on a device. It stays while this or one of its tensors is referenced."""
        self._held = held
        self._spans = {span.name: span for span in held.spans if not span.name.startswith(FILE_PREFIX)}

    @property
    def files(self) -> dict[str, memoryview]:
        files = (span for span in self._held.spans if span.name.startswith(FILE_PREFIX))
        return {span.name.removeprefix(FILE_PREFIX): self._bytes(span) for span in files}

    def __getitem__(self, name: str) -> "torch.Tensor":
        from ..artifacts.tensors import shape_tensor, tensor_from

        span = self._spans.get(name)
        if span is None:
            raise KeyError(self._why_not(name))
        if isinstance(self._held, OnDevice):
            return shape_tensor(self._held.memory[span.place], span)
        return tensor_from(self._bytes(span), span)

    def _why_not(self, name: str) -> str:
        placed = [other for other in self._spans if other.endswith(f":{name}")]
        if placed:
            return f"{name} stands in several files with different bytes; ask for one of {', '.join(placed[:8])}"
        return name

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def _bytes(self, span: TensorSpan) -> memoryview:
        if isinstance(self._held, Extent):
            return self._held.view[span.place]
        copy = memoryview(bytearray(span.length))
        self._held.read(span.start, copy)
        return copy
