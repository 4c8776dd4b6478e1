"""Attach: what `arstore prefetch … -- CMD` staged, as tensors in CMD, with no copy, no key and no store to open."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..formats.tensor import TensorSpan
from .artifact import FILE_PREFIX
from .errors import BadInput, Corrupt, NotFound, StorageFailed
from .tiers.device import DeviceTier, OnDevice, parse_device
from .tiers.extent import Extent, attach_extent
from .tiers.tier import Held

if TYPE_CHECKING:
    import torch

SESSION_FORMAT = 1
_SESSION_MAX_BYTES = 1 << 24


class StagedTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of one staged object by name, made when asked for; `files` are those that hold no tensors."""

    def __init__(self, held: Held) -> None:
        """Take an object in the host tier or on a device; it stays in place while this or a tensor of it is used."""
        self._held = held
        self._spans = {span.name: span for span in held.spans if not span.name.startswith(FILE_PREFIX)}

    @property
    def files(self) -> dict[str, memoryview]:
        files = (span for span in self._held.spans if span.name.startswith(FILE_PREFIX))
        return {span.name.removeprefix(FILE_PREFIX): self._bytes(span) for span in files}

    def __getitem__(self, name: str) -> "torch.Tensor":
        from .tensors import shape_tensor, tensor_from

        span = self._spans[name]
        if isinstance(self._held, OnDevice):
            return shape_tensor(self._held.memory[span.place], span)
        return tensor_from(self._bytes(span), span)

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
    staged = {key: attach_extent(Path(given).parent / f"{key}.extent", key) for _, key in artifacts}
    target = to or said
    if target == "host":
        return {name: StagedTensors(staged[key]) for name, key in artifacts}
    device = DeviceTier(parse_device(target))
    device.make_room(sum(one.length_bytes for one in staged.values()), frozenset())
    return {name: StagedTensors(device.fill(key, staged[key])) for name, key in artifacts}


def _read_session(session: Path) -> tuple[str, list[tuple[str, str]]]:
    """Return the tier that a session was staged to, and the names and keys of what was."""
    try:
        with session.open("rb") as file:
            value = json.loads(file.read(_SESSION_MAX_BYTES))
        artifacts = [(str(one["name"]), str(one["key"])) for one in value["artifacts"]]
        if value["format"] != SESSION_FORMAT or not all(re.fullmatch(r"[0-9a-f]{64}", key) for _, key in artifacts):
            raise ValueError("its format is not known")
        return str(value.get("to", "host")), artifacts
    except FileNotFoundError:
        raise NotFound(str(session), "what was staged is released") from None
    except OSError as error:
        raise StorageFailed(str(session), (error.strerror or str(error)).lower()) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(str(session), f"is no session ({error})") from None
