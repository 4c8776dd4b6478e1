"""Cold reads: what is not cached is read past the cache, and checked as strictly as what is."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from arstore.formats.frames import TAG_BYTES
from arstore.formats.record import ALIGN_BYTES, HEADER_BYTES
from arstore.store.artifacts.select import Selection
from arstore.store.errors import Corrupt, StorageFailed
from arstore.store.segments import cold_read as direct
from arstore.store.segments import fetch
from arstore.store.tiers.local import stored_artifact
from tests.support.damage import (
    FRAME_BYTES,
    World,
    attempt,
    flip,
    pristine,
    regions,
    sources,
    staged,
    tensors,
    three_frames,
    world,
    write_at,
)

__all__ = ["pristine", "sources", "world"]  # fixtures


FILL = 0xA5


@pytest.mark.parametrize("name", ["rows", "flat"])
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_no_unverified_byte_stays_in_the_callers_buffer(world: World, name: str, frame: int) -> None:
    spot = three_frames(world, encoded=name == "flat")
    plain = bytearray(9 << 20)
    with world.open() as store:
        store.get("big").tensors([name], into=plain)
    # The frames are 4, 4 and 1 MiB of plaintext, and what they are encoded to is about in proportion.
    flip(spot.path, spot.offset + HEADER_BYTES + spot.header.payload_bytes * (8 * frame + 1) // 18)
    buffer = bytearray([FILL]) * len(plain)
    with world.open() as store, pytest.raises(Corrupt, match=spot.named()):
        store.get("big").tensors([name], into=buffer)
    for number in range(3):
        part = slice(number * FRAME_BYTES, (number + 1) * FRAME_BYTES)
        got = bytes(buffer[part])
        untouched = got in (bytes([FILL]) * len(got), bytes(len(got)))
        assert untouched or (number != frame and got == plain[part])


def test_a_selection_reads_past_damage_it_does_not_need(world: World) -> None:
    rows = three_frames(world, encoded=False)
    flip(rows.path, rows.offset + HEADER_BYTES + FRAME_BYTES + TAG_BYTES + 1)  # rows 1024 to 2047
    assert attempt(world, "big", Selection(slices=(("rows", 0, 1024),))) is None
    refused = attempt(world, "big", Selection(slices=(("rows", 1000, 1025),)))
    assert isinstance(refused, Corrupt)
    assert rows.named() in str(refused)


@contextmanager
def reading(monkeypatch: pytest.MonkeyPatch, *, cold: bool) -> Iterator[list[int]]:
    """Have every range count as not cached, or as cached; yield the lengths of what is read past the page cache."""
    lengths = list[int]()
    real = direct._read

    def read(fd: int, out: memoryview, offset: int) -> int:
        lengths.append(len(out))
        return real(fd, out, offset)

    with monkeypatch.context() as patched:
        patched.setattr(direct, "_is_cached", lambda *_: not cold)
        patched.setattr(direct, "_read", read)
        yield lengths


def damages(world: World) -> dict[str, Callable[[], None]]:
    """Each part of a large record changed, its end cut off, its space given back, its file gone."""
    found: dict[str, Callable[[], None]] = {}
    for encoded in (False, True):
        spot = three_frames(world, encoded=encoded)
        fields = regions(spot)
        for name in ("check", "tag of the last frame", "digest in the footer"):
            found[f"{name} {encoded}"] = partial(flip, spot.path, sum(fields[name]) // 2)
        found[f"zeros {encoded}"] = partial(write_at, spot.path, spot.offset, bytes(ALIGN_BYTES))
        found[f"cut {encoded}"] = partial(os.truncate, spot.path, spot.end - 1)
        found[f"gone {encoded}"] = spot.path.unlink
    return found


def test_cold_reads_refuse_what_warm_ones_do(pristine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in damages(pristine):
        refusals = []
        for cold in (True, False):
            world = pristine.copy(tmp_path / "world")
            damages(world)[name]()
            with reading(monkeypatch, cold=cold):
                refusals.append(tensors(world))
            shutil.rmtree(world.base)
        assert isinstance(refusals[0], Corrupt), name
        assert str(refusals[0]) == str(refusals[1]), name


def test_cold_reads_give_what_warm_ones_do(pristine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with reading(monkeypatch, cold=True) as lengths:
        found = tensors(pristine)
    if not lengths:
        pytest.skip("this file system reads nothing past the page cache")
    assert max(lengths) > 4 << 20
    with reading(monkeypatch, cold=False) as none:
        assert found == tensors(pristine)
    assert none == []
    whole = pristine.source("big").read_bytes()
    ends = [0, 1, 300, FRAME_BYTES - 1, FRAME_BYTES + 5000, 9 << 20, len(whole) - 70, len(whole)]
    with reading(monkeypatch, cold=True), pristine.open() as store:
        for start, stop in [(one, other) for one in ends for other in ends if one < other]:
            out = bytearray(stop - start)
            store.get("big").fill([((0, start, stop), memoryview(out))], cold=True)
            assert out == whole[start:stop], (start, stop)


def test_what_is_not_cached_is_read_past_the_cache_and_stays_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_COLD_TASK_BYTES", 1 << 30)  # or what a map has read ahead nearby is part of a run
    spot = three_frames(world, encoded=False)
    fd = os.open(spot.path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if direct._is_cached(fd, spot.offset, spot.end):
            pytest.skip("this kernel or file system does not say what is cached")
        assert isinstance(tensors(world), bytes)
        assert not direct._is_cached(fd, spot.offset, spot.end)
        flip(spot.path, spot.offset + HEADER_BYTES + FRAME_BYTES + 99)  # in the cache and not yet on the disk
        assert spot.named() in str(tensors(world))
    finally:
        os.close(fd)


def test_a_disk_that_fails_under_a_cold_read_is_said_and_marks_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with reading(monkeypatch, cold=True), monkeypatch.context() as patched:
        patched.setattr(direct, "_read", failing)
        with pytest.raises(StorageFailed, match=r"^[^\n]*\.seg: input/output error$"):
            tensors(world)
    assert attempt(world, "big") is None


def test_a_file_that_changes_while_it_is_mapped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spot = max((spot for spot in world.spots() if spot.artifact == "big" and spot.is_blob), key=lambda one: one.end)
    with reading(monkeypatch, cold=True) as lengths, world.open() as store:
        big = stored_artifact(store.get("big"))
        first = staged(big)
        if not lengths:
            pytest.skip("this file system reads nothing past the page cache")
        count = len(os.listdir("/proc/self/fd"))
        assert all(staged(big) == first for _ in range(20))
        assert len(os.listdir("/proc/self/fd")) == count
        held = spot.path.read_bytes()
        os.truncate(spot.path, spot.end - ALIGN_BYTES - 1)
        with pytest.raises(Corrupt, match="cut short"):
            staged(big)
        spot.path.write_bytes(held)
    assert world.verify().corrupt == ()
    with reading(monkeypatch, cold=True), world.open() as store:
        big = stored_artifact(store.get("big"))
        assert staged(big) == first
        spot.path.unlink()  # as a collection does; the map has it still
        assert staged(big) == first
