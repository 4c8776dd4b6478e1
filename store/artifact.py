"""Artifact: one stored version, read back as verified bytes and tensors in host memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..formats.catalog import QUARANTINED, Place
from ..formats.manifest import Manifest, Tensor
from .catalog import Catalog
from .disk import make_buffer
from .errors import BadInput, Corrupt, NotFound
from .fetch import BadBlob, Want, fetch, read_want
from .names import Found, Summary
from .records import TenantKeys, corrupt
from .segments import SegmentReader
from .select import tensor_names
from .tensors import tensor_from

if TYPE_CHECKING:
    import torch

_ALIGN_BYTES = 64
_ATTEMPTS = 10

# Bytes of a file: its number in the manifest, first byte, end byte.
FileRange = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ReadParts:
    """The mechanisms that reading works with."""

    catalog: Catalog
    keys: TenantKeys
    segments: SegmentReader


class Artifact:
    """One stored version. Nothing is read until asked for; what is read was verified."""

    def __init__(self, parts: ReadParts, found: Found, manifest: Manifest) -> None:
        self._parts, self._found = parts, found
        self.manifest = manifest
        self.bytes_read = 0  # sealed bytes read through this object so far

    @property
    def summary(self) -> Summary:
        return self._found.summary

    @property
    def tensor_bytes(self) -> int:
        """Bytes that a buffer for all `tensors` needs."""
        return _layout(tensor_names(self.manifest).values())[1]

    def tensors(
        self, names: Iterable[str] | None = None, *, into: "memoryview | bytearray | None" = None
    ) -> dict[str, "torch.Tensor"]:
        """Return verified tensors in host memory by name; all of them, or those named.

        They lie in one buffer of huge pages, freed with the last of them, or in `into`: at least `tensor_bytes`
        writable bytes that the caller keeps while the tensors are used, and may use again after. Tensors that
        share their bytes in the file share memory here. Block-quantised types come as raw bytes.
        Raises NotFound for an unknown name, Corrupt if a blob is bad, BadInput if `into` does not fit.
        """
        known = tensor_names(self.manifest)
        try:
            chosen = known if names is None else {name: known[name] for name in names}
        except KeyError as error:
            raise NotFound(f"{self._found.text}: {error.args[0]}", "no such tensor") from None
        starts, total = _layout(chosen.values())
        buffer = memoryview(make_buffer(total) if into is None else into).cast("B")
        if len(buffer) < total or buffer.readonly:
            raise BadInput("into", f"{len(buffer)} bytes, wanted {total} that can be written to")
        self.fill((place, buffer[start : start + place[2] - place[1]]) for place, start in starts.items())
        try:
            return {name: tensor_from(_slice(buffer, starts, tensor), tensor.span) for name, tensor in chosen.items()}
        except (RuntimeError, ValueError) as error:  # torch's, where shape and length in a manifest contradict
            raise Corrupt(f"{self._found.text}: tensor table", str(error)) from None

    def fill(self, ranges: Iterable[tuple[FileRange, memoryview]]) -> None:
        """Read ranges of files into their buffers, on every core; raise Corrupt if a blob is bad."""
        pieces: list[tuple[int, int, int, memoryview]] = []
        for (file, start, stop), out in ranges:
            at = 0
            for blob, first, last in self.manifest.pieces(file, start, stop):
                pieces.append((blob, first, last, out[at : at + last - first]))
                at += last - first
        self.bytes_read += self._read(pieces, lambda wants: fetch(self._parts.segments, self._parts.keys, wants))

    def read_blob(self, number: int, out: memoryview) -> int:
        """Read one whole blob on this thread; return the sealed bytes read. Raises Corrupt if it is bad."""

        def read(wants: list[Want]) -> int:
            return sum(read_want(self._parts.segments, self._parts.keys, want) for want in wants)

        return self._read([(number, 0, self.manifest.blobs[number].length, out)], read)

    def _read(self, pieces: list[tuple[int, int, int, memoryview]], read: Callable[[list[Want]], int]) -> int:
        """Read (blob number, start, stop, destination) pieces; look again where a blob was moved or stored anew
        meanwhile, and put one that is bad in its place into quarantine.
        """
        blobs = self.manifest.blobs
        for _ in range(_ATTEMPTS):
            places = self.places({piece[0] for piece in pieces})
            try:
                return read([Want(blobs[n].digest, places[n], start, stop, out) for n, start, stop, out in pieces])
            except BadBlob as bad:
                row = self._parts.catalog.find_blobs([bad.want.digest]).get(bad.want.digest)
                if row and row.place == bad.want.place:
                    self._parts.catalog.quarantine(bad.want.digest, row.place)
                    raise self._named(bad.error) from None
        raise self._named(Corrupt("blobs", "kept being moved; try again"))

    def places(self, numbers: Iterable[int]) -> dict[int, Place]:
        """Return where blobs lie; raise Corrupt if one is missing or in quarantine, NotFound if all was removed."""
        digests = {number: self.manifest.blobs[number].digest for number in numbers}
        rows = self._parts.catalog.find_blobs(digests.values())
        for digest in digests.values():
            row = rows.get(digest)
            if row is None and self.summary.version not in dict(self._parts.catalog.versions(self.summary.name)):
                raise NotFound(self._found.text, "was removed while it was read")
            if row is None:
                raise self._named(Corrupt(f"blob {digest.hex()[:16]}", "is not in the catalog"))
            if row.state == QUARANTINED:
                raise self._named(corrupt(row.place, digest, "is in quarantine, found bad before"))
        for number, digest in digests.items():
            if rows[digest].place.plain_bytes != self.manifest.blobs[number].length:
                raise self._named(corrupt(rows[digest].place, digest, "has another length than the manifest says"))
        return {number: rows[digest].place for number, digest in digests.items()}

    def _named(self, error: Corrupt) -> Corrupt:
        hint = f"put {self.summary.name} again from its source to heal it; 'arstore verify' lists what else is bad"
        return Corrupt(f"{self._found.text}: {error.where}", error.why, hint=hint)


def _layout(tensors: Iterable[Tensor]) -> tuple[dict[FileRange, int], int]:
    """Return where in one buffer each range of file bytes goes, and the buffer's length."""
    starts: dict[FileRange, int] = {}
    total = 0
    for tensor in tensors:
        place = _range(tensor)
        if place not in starts:
            starts[place] = total
            total += -(-tensor.span.length // _ALIGN_BYTES) * _ALIGN_BYTES
    return starts, total


def _range(tensor: Tensor) -> FileRange:
    return tensor.file, tensor.span.start, tensor.span.start + tensor.span.length


def _slice(buffer: memoryview, starts: dict[FileRange, int], tensor: Tensor) -> memoryview:
    start = starts[_range(tensor)]
    return buffer[start : start + tensor.span.length]
