"""Attach: what `arstore prefetch … -- CMD` staged, as tensors in CMD, with no copy, no key and no store to open."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .artifact import FILE_PREFIX
from .errors import BadInput, Corrupt, NotFound, StorageFailed
from .tiers.device import parse_device, upload
from .tiers.extent import Extent, attach_extent

if TYPE_CHECKING:
    import torch

_SESSION_MAX_BYTES = 1 << 24


class StagedTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of one staged artifact by name, made when asked for; `files` are those that hold no tensors."""

    def __init__(self, extent: Extent, memory: "torch.Tensor | None" = None) -> None:
        """Take a mapped extent and, where it was brought to a device, the memory there."""
        self._extent, self._memory = extent, memory
        self._spans = {span.name: span for span in extent.spans if not span.name.startswith(FILE_PREFIX)}
        self.files = {
            span.name.removeprefix(FILE_PREFIX): extent.view[span.place]
            for span in extent.spans
            if span.name.startswith(FILE_PREFIX)
        }

    def brought_to(self, device: str) -> "StagedTensors":
        """Return the same with every tensor in the memory of a device; raise NoRoom if it has too little."""

        def fill(at: int, out: memoryview) -> None:
            out[:] = self._extent.view[at : at + len(out)]

        return StagedTensors(self._extent, upload(len(self._extent.view), fill, device))

    def __getitem__(self, name: str) -> "torch.Tensor":
        from .tensors import shape_tensor, tensor_from

        span = self._spans[name]
        if self._memory is not None:
            return shape_tensor(self._memory[span.place], span)
        return tensor_from(self._extent.view[span.place], span)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def attach(path: str | Path | None = None, *, to: str | None = None) -> dict[str, StagedTensors]:
    """Return what is staged for this process, by name; by default what `$ARSTORE_STAGED` says.

    In the host tier nothing is copied. Tensors are writable: writes go to private copies. Everything stays in place
    while one of them is alive, whatever becomes of the stager. Where the run was staged `to` a device, everything is
    brought up to it now. Raises BadInput where nothing is staged, NotFound if it was released already, NoRoom.
    """
    given = path or os.environ.get("ARSTORE_STAGED")
    if not given:
        raise BadInput("ARSTORE_STAGED", "is not set", hint="run this by 'arstore prefetch NAMES -- CMD'")
    said, artifacts = _read_session(Path(given))
    staged = {name: StagedTensors(attach_extent(Path(given).parent / f"{key}.extent", key)) for name, key in artifacts}
    target = to or said
    if target == "host":
        return staged
    device = parse_device(target)
    return {name: one.brought_to(device) for name, one in staged.items()}


def _read_session(session: Path) -> tuple[str, list[tuple[str, str]]]:
    """Return the tier that a session was staged to, and the names and keys of what was."""
    try:
        with session.open("rb") as file:
            value = json.loads(file.read(_SESSION_MAX_BYTES))
        artifacts = [(str(one["name"]), str(one["key"])) for one in value["artifacts"]]
        if value["format"] != 1 or not all(re.fullmatch(r"[0-9a-f]{64}", key) for _, key in artifacts):
            raise ValueError("its format is not known")
        return str(value.get("to", "host")), artifacts
    except FileNotFoundError:
        raise NotFound(str(session), "what was staged is released") from None
    except OSError as error:
        raise StorageFailed(str(session), (error.strerror or str(error)).lower()) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(str(session), f"is no session ({error})") from None
