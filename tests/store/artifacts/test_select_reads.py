"""A selection reads the frames that it needs, and not a frame more.

Frames outside the selection that were destroyed on purpose stay unnoticed until somebody reads them.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from arstore import Corrupt, Store, create_store, open_store
from arstore.store.artifacts.select import Selection, Shard
from tests.support.selections import (
    BLOB_BYTES,
    COLUMNS,
    FRAME_BYTES,
    ROW_BYTES,
    ROWS,
    TAG_BYTES,
    Reads,
    allowed,
    noise,
    part_reads,
    reads,
    selected,
    small,
    small_weights,
)

__all__ = ["reads", "small"]  # fixtures


@dataclass(frozen=True, slots=True)
class Big:
    """A store with `stored` and `plane`: a tensor of more than 100 MiB, `x`, and one of long rows, `experts`."""

    path: Path
    key_file: Path
    x: torch.Tensor
    experts: torch.Tensor

    def open(self) -> Store:
        return open_store(self.path, key_file=self.key_file)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Big:
    top = tmp_path_factory.mktemp("big")
    made = Big(top / "store", top / "key", noise(ROWS, COLUMNS), noise(3, 8192, 1024, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ARSTORE_TENANT", "ARSTORE_PASSPHRASE_FILE", "ARSTORE_KEY_COMMAND"):
            patch.delenv(name, raising=False)
        create_store(made.path, key_file=made.key_file)
        with made.open() as store:
            store.put(tensors={"x": made.x, "experts": made.experts}, name="stored", codec="stored")
    return made


def frames_touched(start: int, stop: int, length: int, row_bytes: int) -> int:
    """Return how many frames bytes [start, stop) of a tensor of that length lie in, from the format's own rule."""
    blob_bytes = BLOB_BYTES // row_bytes * row_bytes if length > BLOB_BYTES else length
    touched = 0
    for blob in range(0, length, blob_bytes):
        first, last = max(start, blob) - blob, min(stop, blob + blob_bytes) - blob
        touched += (last - 1) // FRAME_BYTES - first // FRAME_BYTES + 1 if last > first else 0
    return touched


SLICES = {
    "one row": (12_345, 12_346),
    "the first row": (0, 1),
    "a frame of rows": (1024, 2048),
    "a frame of rows, between two": (1000, 2024),
    "across two blobs": (16_383, 16_385),
    "the last rows": (ROWS - 3, ROWS),
    "a third": (9_000, 18_333),
    "all but two": (1, ROWS - 1),
    "all": (0, ROWS),
}


@pytest.mark.parametrize("what", SLICES)
def test_a_slice_of_a_large_tensor_reads_only_its_frames(big: Big, tmp_path: Path, reads: Reads, what: str) -> None:
    start, stop = SLICES[what]
    with big.open() as store:
        got, written = selected(store, "stored", tmp_path, Selection(slices=(("x", start, stop),)))
    assert torch.equal(got["x"], big.x[start:stop])
    frames = frames_touched(start * ROW_BYTES, stop * ROW_BYTES, ROWS * ROW_BYTES, ROW_BYTES)
    opened = part_reads(reads, written)
    assert len(set(opened)) == frames
    assert len(opened) == frames  # each once
    assert written.bytes_read <= allowed(frames)


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (6, 8), (31, 32)])
def test_a_part_of_a_large_tensor_reads_only_its_frames(
    big: Big, tmp_path: Path, reads: Reads, rank: int, world: int
) -> None:
    with big.open() as store:
        got, written = selected(store, "stored", tmp_path, Selection(globs=("x",), shard=Shard(rank, world)))
    assert torch.equal(got["x"], big.x.chunk(world)[rank])
    size = ROWS // world * ROW_BYTES
    frames = frames_touched(rank * size, (rank + 1) * size, ROWS * ROW_BYTES, ROW_BYTES)
    assert len(set(part_reads(reads, written))) == frames
    assert written.bytes_read <= allowed(frames)


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (0, 8), (5, 8)])
def test_a_part_along_an_inner_axis_skips_the_frames_between(
    big: Big, tmp_path: Path, reads: Reads, rank: int, world: int
) -> None:
    """An expert's rows are 16 MiB long here: half of each is two frames, an eighth half a frame."""
    with big.open() as store:
        selection = Selection(globs=("experts",), shard=Shard(rank, world, 1))
        got, written = selected(store, "stored", tmp_path, selection)
    assert torch.equal(got["experts"], big.experts.chunk(world, 1)[rank])
    row, size = big.experts[0].nbytes, big.experts[0].nbytes // world
    starts = (expert * row + rank * size for expert in range(3))
    touched = sum(frames_touched(start, start + size, 3 * row, row) for start in starts)
    assert len(part_reads(reads, written)) == touched
    assert written.bytes_read <= allowed(touched)


def test_a_part_of_columns_reads_each_frame_once(big: Big, tmp_path: Path, reads: Reads) -> None:
    with big.open() as store:
        got, written = selected(store, "stored", tmp_path, Selection(globs=("x",), shard=Shard(1, 4, 1)))
    assert torch.equal(got["x"], big.x[:, 512:1024])
    frames = frames_touched(0, ROWS * ROW_BYTES, ROWS * ROW_BYTES, ROW_BYTES)
    assert len(part_reads(reads, written)) == frames  # rows are short: every frame holds a part of some
    assert written.bytes_read <= allowed(frames)


def test_some_of_many_tensors_reads_only_those(small: Store, tmp_path: Path, reads: Reads) -> None:
    got, written = selected(small, "m", tmp_path, Selection(layers=(7,)))
    part_reads(reads, written)
    assert written.bytes_read == sum(tensor.nbytes + TAG_BYTES for tensor in got.values())
    named = small.get("m")
    before = reads.sealed_bytes
    named.tensors([name for name in small_weights() if ".7." in name])
    assert named.bytes_read == written.bytes_read == reads.sealed_bytes - before


def test_frames_outside_a_slice_are_never_opened(tmp_path: Path) -> None:
    """The proof that no count can fake: every other frame of the tensor is destroyed, and the slice stays right."""
    rows = 6 * FRAME_BYTES // ROW_BYTES
    source = noise(rows, COLUMNS, seed=9)
    create_store(tmp_path / "s", encrypted=False)
    with open_store(tmp_path / "s") as store:
        store.put(tensors={"x": source}, name="x", codec="stored")
    wanted_frames = (2, 3)
    plain = source.view(torch.uint8).numpy().tobytes()
    [segment] = [path for path in (tmp_path / "s" / "segments").iterdir() if plain[:64] in path.read_bytes()]
    content = bytearray(segment.read_bytes())
    for frame in range(6):
        at = content.index(plain[frame * FRAME_BYTES :][:64])
        if frame not in wanted_frames:
            content[at + 1000] ^= 0xFF
    segment.write_bytes(content)

    per_frame = FRAME_BYTES // ROW_BYTES
    with open_store(tmp_path / "s") as store:
        for start, stop in ((2 * per_frame, 4 * per_frame), (3 * per_frame - 1, 3 * per_frame + 1)):
            got, _ = selected(store, "x", tmp_path, Selection(slices=(("x", start, stop),)))
            assert torch.equal(got["x"], source[start:stop])
        with pytest.raises(Corrupt):
            store.get_to("x", tmp_path / "out", Selection(slices=(("x", 2 * per_frame - 1, 2 * per_frame),)))
    assert not (tmp_path / "out").exists()
