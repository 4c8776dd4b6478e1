"""Cuts: where in a file its blobs begin and end, and which blobs are worked on together.

Tensors are cut at their own borders, so that the same tensor in another file becomes the same blobs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise

from ...formats.digest import Digest
from ...formats.frames import WEIGHT_FRAME_BYTES
from ...formats.tensor import TensorSpan, cut_span
from .inputs import InputFile
from .sources import Source

GROUP_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """One blob before it is stored: its length, the dtype of its tensor if it has one, and the size of its frames."""

    length: int
    dtype: str | None
    frame_bytes: int = WEIGHT_FRAME_BYTES


@dataclass(frozen=True, slots=True)
class Group:
    """Blobs that lie one after the other in a file and are worked on in one piece."""

    source: Source
    offset: int
    cuts: tuple[Cut, ...]

    @property
    def length(self) -> int:
        return sum(cut.length for cut in self.cuts)

    def parts(self, plain: memoryview) -> list[memoryview]:
        """Return the group's bytes as its blobs."""
        ends = list(accumulate(cut.length for cut in self.cuts))
        return [plain[start:stop] for start, stop in pairwise([0, *ends])]


def cut_file(file: InputFile) -> Iterator[Cut]:
    """Yield the blobs of a file in order. Tensors are cut by their own rule, the bytes between them as plain bytes."""
    at = 0
    for span in (*sorted(file.spans, key=lambda span: span.start), None):
        start = span.start if span else file.source.size
        if start < at:
            continue  # it shares bytes with a tensor before it, and these are cut already
        gap = TensorSpan("", "U8", (start - at,), at, start - at)
        yield from (Cut(length, None) for length in cut_span(gap))
        at = start
        if span:
            yield from (Cut(length, span.dtype) for length in cut_span(span))
            at += span.length


def group_cuts(source: Source, cuts: Iterable[Cut]) -> Iterator[Group]:
    """Yield cuts of one file in groups of about 16 MiB, or one blob where it is larger."""
    offset, size, waiting = 0, 0, list[Cut]()
    for cut in cuts:
        if waiting and size + cut.length > GROUP_BYTES:
            yield Group(source, offset, tuple(waiting))
            offset, size, waiting = offset + size, 0, []
        waiting.append(cut)
        size += cut.length
    if waiting:
        yield Group(source, offset, tuple(waiting))


@dataclass(frozen=True, slots=True)
class FileCuts:
    """One file, its blobs, and their digests in the same order."""

    file: InputFile
    cuts: tuple[Cut, ...]
    digests: tuple[Digest, ...]


def digest_files(
    files: Sequence[InputFile], digest_groups: Callable[[Sequence[Group]], Sequence[Sequence[Digest]]]
) -> list[FileCuts]:
    """Cut files into blobs and return these with their digests, which `digest_groups` gives for each group in order."""
    cuts = [tuple(cut_file(file)) for file in files]
    groups = [list(group_cuts(file.source, cuts_)) for file, cuts_ in zip(files, cuts, strict=True)]
    digests = chain.from_iterable(digest_groups([group for of_file in groups for group in of_file]))
    return [FileCuts(file, own, tuple(islice(digests, len(own)))) for file, own in zip(files, cuts, strict=True)]
