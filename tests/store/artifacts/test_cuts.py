"""Cuts: files are cut at the borders of tensors, every byte once, and small blobs are worked on together."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from arstore.formats.digest import Digest
from arstore.formats.tensor import TensorSpan
from arstore.store.artifacts.cuts import GROUP_BYTES, Cut, Group, cut_file, digest_files, group_cuts
from arstore.store.artifacts.inputs import InputFile
from arstore.store.artifacts.sources import MemorySource

KIB = 1 << 10


def file_of(length: int, *spans: tuple[int, int]) -> InputFile:
    """Return a file of zeros with a tensor of F32 at each (start, length)."""
    tensors = tuple(TensorSpan(str(at), "F32", (size // 4,), at, size) for at, size in spans)
    return InputFile("f", 0o644, MemorySource([memoryview(bytes(length))]), "safetensors", tensors)


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        ((), [(100 * KIB, None)]),
        (((0, 100 * KIB),), [(100 * KIB, "F32")]),
        (((8 * KIB, 80 * KIB),), [(8 * KIB, None), (80 * KIB, "F32"), (12 * KIB, None)]),
        (((60 * KIB, 40 * KIB), (0, 60 * KIB)), [(60 * KIB, "F32"), (40 * KIB, "F32")]),  # not in the order of bytes
        (((0, 60 * KIB), (0, 60 * KIB)), [(60 * KIB, "F32"), (40 * KIB, None)]),  # two names of the same bytes
    ],
)
def test_a_file_is_cut_at_the_borders_of_its_tensors(
    spans: tuple[tuple[int, int], ...], wanted: list[tuple[int, str | None]]
) -> None:
    assert [(cut.length, cut.dtype) for cut in cut_file(file_of(100 * KIB, *spans))] == wanted


def test_groups_hold_every_cut_in_order_and_keep_to_their_size() -> None:
    source = MemorySource([])
    lengths = [GROUP_BYTES // 4] * 5 + [3 * GROUP_BYTES] + [GROUP_BYTES, 1]
    groups = list(group_cuts(source, [Cut(length, None) for length in lengths]))
    assert [len(group.cuts) for group in groups] == [4, 1, 1, 1, 1]
    assert [cut.length for group in groups for cut in group.cuts] == lengths
    assert groups[0].offset == 0
    assert all(after.offset == before.offset + before.length for before, after in pairwise(groups))
    assert list(group_cuts(source, [])) == []


def test_a_group_gives_its_bytes_as_its_blobs() -> None:
    [group] = group_cuts(MemorySource([]), [Cut(2, None), Cut(1, None), Cut(3, None)])
    assert [bytes(part) for part in group.parts(memoryview(b"aabccc"))] == [b"aa", b"b", b"ccc"]


def test_digests_come_back_to_the_blobs_of_their_files() -> None:
    files = [file_of(16, (4, 8)), file_of(0), file_of(7)]

    def digest(groups: Sequence[Group]) -> list[list[Digest]]:
        return [[Digest(bytes([cut.length])) for cut in group.cuts] for group in groups]

    stored = digest_files(files, digest)
    assert [[digest[0] for digest in file.digests] for file in stored] == [[4, 8, 4], [], [7]]
    assert [file.file for file in stored] == files
