"""Tensor names: what the tensors of an artifact are called, and which ones a name or a glob means.

A tensor goes by its own name. If several files have tensors of one name, and their bytes are the same, the name means
all of them. If the bytes differ, each goes by PATH:NAME.
"""

import fnmatch
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set

from ...formats.manifest import Manifest, Tensor
from ..errors import BadInput, NotFound

_SHOWN_MAX = 8


class TensorNames(Mapping[str, Tensor]):
    """The tensors of one artifact by name, in its order. Of tensors that are the same in all ways the first counts."""

    def __init__(self, manifest: Manifest) -> None:
        same: dict[str, set[object]] = defaultdict(set)
        for tensor in manifest.tensors:
            same[tensor.span.name].add(_content(manifest, tensor))
        self._tensors: dict[str, Tensor] = {}
        self._named: dict[str, str] = {}  # from PATH:NAME
        self._apart: dict[str, list[str]] = defaultdict(list)  # from the own name of tensors that differ
        self.of_each: list[str] = []  # the name of every tensor of the manifest
        self.unread: dict[str, str] = {}  # why tensors can't be read, by name
        for tensor in manifest.tensors:
            own, placed = tensor.span.name, f"{manifest.files[tensor.file].path}:{tensor.span.name}"
            name = own if len(same[own]) == 1 else placed
            if name != own:
                self._apart[own].append(name)
            self._tensors.setdefault(name, tensor)
            self._named[placed] = name
            self.of_each.append(name)
        for left in manifest.unread:
            placed = f"{manifest.files[left.file].path}:{left.name}"
            self.unread[placed if left.name in same or left.name in self.unread else left.name] = left.why

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def find(self, where: str, asked: str) -> str:
        """Return the name of the tensor that a user means; raise NotFound, or BadInput if files differ in it."""
        if name := asked if asked in self._tensors else self._named.get(asked):
            return name
        if asked in self._apart:
            raise _differ(where, self._apart[asked])
        self.check_read(where, {asked})
        raise NotFound(where, "no such tensor", hint="'arstore show NAME' lists the tensors")

    def matching(self, where: str, glob: str) -> set[str]:
        """Return the names that a glob means, perhaps none; raise BadInput if files differ in what it means."""
        names = {name for name in self._tensors if fnmatch.fnmatchcase(name, glob)}
        names |= {name for placed, name in self._named.items() if fnmatch.fnmatchcase(placed, glob)}
        for own, apart in self._apart.items():
            if fnmatch.fnmatchcase(own, glob) and names.isdisjoint(apart):
                raise _differ(where, apart)
        return names

    def check_read(self, where: str, names: Set[str]) -> None:
        """Raise BadInput if one of these names, which may be any, is of a tensor that can't be read."""
        left = [f"{name} {why}" for name, why in self.unread.items() if name in names]
        if left:
            shown = ", ".join(left[:_SHOWN_MAX]) + (", …" if len(left) > _SHOWN_MAX else "")
            hint = "leave such tensors out with --skip-unreadable (skip_unreadable=True), or get the files"
            raise BadInput(where, f"{len(left)} tensors can't be read: {shown}", hint=hint)


def _content(manifest: Manifest, tensor: Tensor) -> object:
    """Return what two tensors with the same bytes have in common."""
    span = tensor.span
    pieces = tuple(manifest.pieces(tensor.file, span.start, span.start + span.length))
    return span.dtype, span.shape, span.stride, pieces


def _differ(where: str, names: list[str]) -> BadInput:
    shown = ", ".join(names[:_SHOWN_MAX]) + (", …" if len(names) > _SHOWN_MAX else "")
    return BadInput(where, "stands in several files with different bytes", hint=f"give one of {shown}")
