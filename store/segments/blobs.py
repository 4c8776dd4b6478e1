"""Blobs: verified reads by digest.

If a blob was stored anew while it was read, it is looked up again. If it is bad where it lies, it goes into
quarantine: later reads refuse it, and a put of the same bytes replaces it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...formats.catalog import QUARANTINED, Place
from ...formats.digest import Digest
from ...formats.manifest import BlobName
from ..catalog.catalog import Catalog
from ..disk import Out
from ..errors import Corrupt, NotFound
from ..keys.tenant_keys import TenantKeys
from .fetch import BadBlob, Want, fetch, read_want
from .reader import SegmentReader
from .records import corrupt

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class ReadParts:
    """What reading works with."""

    catalog: Catalog
    keys: TenantKeys
    segments: SegmentReader


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, stop) of a blob, to be put into `out`."""

    blob: BlobName
    start: int
    stop: int
    out: Out


class BlobReader:
    """Reads blobs of one artifact or prefix, called `what` in errors. Threads may share it."""

    def __init__(self, parts: ReadParts, what: str, is_gone: Callable[[], bool], hint: str) -> None:
        self._parts, self._what, self._is_gone, self._hint = parts, what, is_gone, hint

    def read(self, pieces: Sequence[Piece], *, cold: bool = False) -> int:
        """Fill every piece, on every core; return the sealed bytes read. Raises Corrupt, NotFound.

        With `cold`, bytes that the page cache does not hold are read past it. That suits bytes that are kept elsewhere.
        """
        return self._read(pieces, lambda wants: fetch(self._parts.segments, self._parts.keys, wants, cold=cold))

    def read_here(self, pieces: Sequence[Piece]) -> int:
        """Fill every piece on this thread; return the sealed bytes read. Raises Corrupt, NotFound."""
        return self._read(
            pieces, lambda wants: sum(read_want(self._parts.segments, self._parts.keys, want) for want in wants)
        )

    def places(self, blobs: Iterable[BlobName]) -> dict[Digest, Place]:
        """Return where blobs lie.

        Raises Corrupt if one is missing or in quarantine, NotFound if the version was removed.
        """
        lengths = {blob.digest: blob.length for blob in blobs}
        rows = self._parts.catalog.find_blobs(lengths)
        for digest, length in lengths.items():
            row = rows.get(digest)
            if row is None and self._is_gone():
                raise NotFound(self._what, "was removed while it was read")
            if row is None:
                raise self._named(Corrupt(f"blob {digest.hex()[:16]}", "is not in the catalog"))
            if row.state == QUARANTINED:
                raise self._named(corrupt(row.place, digest, "is in quarantine, found bad before"))
            if row.place.plain_bytes != length:
                raise self._named(corrupt(row.place, digest, "has another length than the manifest says"))
        return {digest: rows[digest].place for digest in lengths}

    def _read(self, pieces: Sequence[Piece], read: Callable[[list[Want]], int]) -> int:
        for _ in range(_ATTEMPTS):
            places = self.places(piece.blob for piece in pieces)
            try:
                wants = [Want(p.blob.digest, places[p.blob.digest], p.start, p.stop, p.out) for p in pieces]
                return read(wants)
            except BadBlob as bad:
                row = self._parts.catalog.find_blobs([bad.want.digest]).get(bad.want.digest)
                if row and row.place == bad.want.place:
                    self._parts.catalog.quarantine(bad.want.digest, row.place)
                    raise self._named(bad.error) from None
        raise self._named(Corrupt("blobs", "kept being moved; try again"))

    def _named(self, error: Corrupt) -> Corrupt:
        return Corrupt(f"{self._what}: {error.where}", error.why, hint=self._hint)
