"""A small artifact of many shapes, selections of it, and the frames that were read for them.

What was read is not taken from `bytes_read`: a count at the record says it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import Store, create_store, open_store
from arstore.store.artifacts.get import Written
from arstore.store.artifacts.select import Selection
from arstore.store.segments.records import OpenRecord

MIB = 1 << 20
FRAME_BYTES, TAG_BYTES, BLOB_BYTES = 4 * MIB, 16, 64 * MIB
ROWS, COLUMNS = 28_000, 2048  # of bf16: 109 MiB, cut into blobs of 16,384 rows and 11,616
ROW_BYTES = 2 * COLUMNS


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return a bf16 tensor of random bits that does not compress; NaNs are made finite, so that == is equality."""
    bits = np.random.default_rng(seed).integers(0, 0x7F80, shape, dtype=np.uint16)
    return torch.from_numpy(bits).view(torch.bfloat16)


def small_weights() -> dict[str, torch.Tensor]:
    """Return the tensors of a model of 12 layers, named as transformers names them."""
    found: dict[str, torch.Tensor] = {"model.embed_tokens.weight": noise(40, 16), "scale": torch.tensor(0.5)}
    for layer in range(12):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.self_attn.q_proj.weight": noise(32, 16, seed=layer),
            f"{prefix}.self_attn.q_proj.bias": noise(32, seed=layer),
            f"{prefix}.self_attn.o_proj.weight": noise(16, 32, seed=100 + layer),
            f"{prefix}.self_attn.o_proj.bias": noise(16, seed=100 + layer),
            f"{prefix}.norm.weight": torch.arange(16, dtype=torch.float32) + layer,
        }
    return found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Store]:
    """A store with the small model as `m`."""
    create_store()
    safetensors.torch.save_file(small_weights(), tmp_path / "m.safetensors")
    with open_store() as store:
        store.put(tmp_path / "m.safetensors", name="m")
        yield store


@dataclass(slots=True)
class Reads:
    """Which frames were opened, by where their record lies, and how many sealed bytes they took."""

    frames: list[tuple[int, int, int]] = field(default_factory=list)
    sealed_bytes: int = 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Count at the record, where sealed bytes become plain ones, whatever the callers say."""
    seen = Reads()
    read = OpenRecord.read

    def counted(self: OpenRecord, index: int, start: int, stop: int, out: memoryview) -> int:
        seen.frames.append((self.place.segment, self.place.offset, index))
        offsets = self.footer().offsets
        length = self.header.binding.frame_length(index) + TAG_BYTES
        seen.sealed_bytes += offsets[index + 1] - offsets[index] if offsets else length
        return read(self, index, start, stop, out)

    monkeypatch.setattr(OpenRecord, "read", counted)
    return seen


def selected(store: Store, name: str, tmp_path: Path, selection: Selection) -> tuple[dict[str, torch.Tensor], Written]:
    """Return what a selection writes, as the safetensors library reads it."""
    _, written = store.get_to(name, tmp_path / "part.safetensors", selection)
    assert (tmp_path / "part.safetensors").stat().st_size == written.bytes_out
    assert written.files == 1
    return safetensors.torch.load_file(tmp_path / "part.safetensors"), written


def allowed(frames: int) -> float:
    return 1.05 * frames * (FRAME_BYTES + TAG_BYTES)


def part_reads(reads: Reads, written: Written) -> list[tuple[int, int, int]]:
    """Return the frames of blobs that were opened, once `bytes_read` is found to be their true sum.

    The first frame opened is that of the version record, which says where blobs lie and is no part of a selection.
    """
    version_bytes = reads.sealed_bytes - written.bytes_read
    assert 0 < version_bytes < MIB
    return reads.frames[1:]
