"""Selection: parts of tensors, exact against slicing the source, read frame by frame and not a frame more.

What was read is not taken from `bytes_read`: a count at the record says it, and frames outside the selection that
were destroyed on purpose stay unnoticed until somebody reads them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import BadInput, Corrupt, NotFound, Store, create_store, open_store
from arstore.cli.main import run
from arstore.store.artifacts.get import Written
from arstore.store.artifacts.select import COLWISE, ROWWISE, Selection, Shard
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


def assert_equal_tensors(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


# ---- which tensors

EXACT: dict[str, tuple[Selection, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]] = {
    "a name": (
        Selection(globs=("model.embed_tokens.weight",)),
        lambda w: {"model.embed_tokens.weight": w["model.embed_tokens.weight"]},
    ),
    "globs": (
        Selection(globs=("*.q_proj.bias", "scale")),
        lambda w: {name: t for name, t in w.items() if name.endswith("q_proj.bias") or name == "scale"},
    ),
    "a layer, not those that begin like it": (
        Selection(layers=(1,)),
        lambda w: {name: t for name, t in w.items() if name.startswith("model.layers.1.")},
    ),
    "two layers": (
        Selection(layers=(11, 0)),
        lambda w: {n: t for n, t in w.items() if n.startswith(("model.layers.0.", "model.layers.11."))},
    ),
    "rows": (
        Selection(slices=(("model.embed_tokens.weight", 7, 19),)),
        lambda w: {"model.embed_tokens.weight": w["model.embed_tokens.weight"][7:19]},
    ),
    "no rows": (
        Selection(slices=(("model.embed_tokens.weight", 7, 7),)),
        lambda w: {"model.embed_tokens.weight": w["model.embed_tokens.weight"][7:7]},
    ),
    "rows of several": (
        Selection(slices=(("model.embed_tokens.weight", 0, 40), ("model.layers.3.norm.weight", 15, 16))),
        lambda w: {
            "model.embed_tokens.weight": w["model.embed_tokens.weight"],
            "model.layers.3.norm.weight": w["model.layers.3.norm.weight"][15:],
        },
    ),
    "rows of one and the whole of others": (
        Selection(globs=("*.2.norm.weight",), layers=(4,), slices=(("model.layers.4.norm.weight", 2, 5),)),
        lambda w: {
            **{name: t for name, t in w.items() if name.startswith("model.layers.4.")},
            "model.layers.4.norm.weight": w["model.layers.4.norm.weight"][2:5],
            "model.layers.2.norm.weight": w["model.layers.2.norm.weight"],
        },
    ),
    "one of four parts": (
        Selection(globs=("*.weight",), shard=Shard(2, 4)),
        lambda w: {n: t.chunk(4)[2] for n, t in w.items() if n.endswith(".weight")},
    ),
    "one of two parts of columns": (
        Selection(globs=("*_proj.weight",), shard=Shard(1, 2, 1)),
        lambda w: {n: t.chunk(2, 1)[1].contiguous() for n, t in w.items() if n.endswith("_proj.weight")},
    ),
    "a part of the rows": (
        Selection(slices=(("model.embed_tokens.weight", 4, 20),), shard=Shard(3, 4)),
        lambda w: {"model.embed_tokens.weight": w["model.embed_tokens.weight"][16:20]},
    ),
    "columns of the rows": (
        Selection(slices=(("model.embed_tokens.weight", 4, 20),), shard=Shard(3, 4, 1)),
        lambda w: {"model.embed_tokens.weight": w["model.embed_tokens.weight"][4:20, 12:].contiguous()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", EXACT)
def test_a_selection_is_exactly_that_part_of_the_source(small: Store, tmp_path: Path, what: str) -> None:
    selection, wanted = EXACT[what]
    got, written = selected(small, "m", tmp_path, selection)
    assert_equal_tensors(got, wanted(small_weights()))
    assert written.bytes_out >= sum(tensor.nbytes for tensor in got.values())


def test_the_parts_of_every_rank_make_the_whole(small: Store, tmp_path: Path) -> None:
    plan = (("layers.*.self_attn.q_proj", COLWISE), ("layers.*.self_attn.o_proj", ROWWISE))
    ranks = [selected(small, "m", tmp_path, Selection(shard=Shard(r, 4), plan=plan))[0] for r in range(4)]
    for name, tensor in small_weights().items():
        parts = [rank[name] for rank in ranks]
        if "q_proj" in name:  # column-wise: output features, the first axis, of weight and bias
            assert torch.equal(torch.cat(parts, 0), tensor)
            assert parts[0].shape[0] * 4 == tensor.shape[0]
        elif name.endswith("o_proj.weight"):  # row-wise: input features, the second axis
            assert torch.equal(torch.cat(parts, 1), tensor)
            assert parts[0].shape[1] * 4 == tensor.shape[1]
        else:  # not in the plan, or the bias of a row-wise layer, which every rank holds whole
            assert all(torch.equal(part, tensor) for part in parts)


def test_a_plan_narrows_to_the_tensors_that_are_asked_for(small: Store, tmp_path: Path) -> None:
    plan = (("model.layers.*.self_attn.o_proj", ROWWISE),)
    selection = Selection(globs=("*.o_proj.weight",), layers=(3,), shard=Shard(1, 2), plan=plan)
    got, _ = selected(small, "m", tmp_path, selection)
    weights = small_weights()
    asked = [name for name in weights if name.endswith("o_proj.weight") or ".3." in name]
    assert_equal_tensors(
        got,
        {n: weights[n][:, 16:].contiguous() if n.endswith("o_proj.weight") else weights[n] for n in asked},
    )


def test_tensors_without_values_have_parts_too(tmp_path: Path) -> None:
    create_store()
    hollow = {"a": torch.empty(4, 0, 2), "b": torch.empty(0, 4), "c": torch.empty(4, 2, 0, dtype=torch.int8)}
    with open_store() as store:
        store.put(tensors=hollow, name="h")
        for axis in (0, 1):
            got, _ = selected(store, "h", tmp_path, Selection(shard=Shard(1, 2, axis)))
            assert_equal_tensors(got, {name: tensor.chunk(2, axis)[-1] for name, tensor in hollow.items()})
        got, _ = selected(store, "h", tmp_path, Selection(slices=(("a", 1, 3),)))
        assert_equal_tensors(got, {"a": hollow["a"][1:3]})


def test_the_whole_selection_equals_the_whole_artifact(small: Store, tmp_path: Path) -> None:
    got, _ = selected(small, "m", tmp_path, Selection(globs=("*",)))
    assert_equal_tensors(got, small_weights())


def test_tensors_of_several_files_land_in_one(tmp_path: Path) -> None:
    create_store()
    (tmp_path / "both").mkdir()
    safetensors.torch.save_file({"a.0.w": noise(8, 4)}, tmp_path / "both" / "1.safetensors")
    torch.save({"a": {"1": {"w": noise(8, 4, seed=1)}}}, tmp_path / "both" / "2.pt")
    np.save(tmp_path / "both" / "ids.npy", np.arange(10))
    with open_store() as store:
        store.put(tmp_path / "both", name="both")
        got, _ = selected(store, "both", tmp_path, Selection(globs=("*",), slices=(("array", 3, 5),)))
    assert_equal_tensors(got, {"a.0.w": noise(8, 4), "a.1.w": noise(8, 4, seed=1), "array": torch.tensor([3, 4])})


def test_a_strided_tensor_is_not_cut(tmp_path: Path) -> None:
    create_store()
    torch.save({"t": noise(8, 4).t()}, tmp_path / "t.pt")
    with open_store() as store:
        store.put(tmp_path / "t.pt", name="t")
        for selection in (Selection(globs=("t",)), Selection(slices=(("t", 0, 1),)), Selection(shard=Shard(0, 2))):
            with pytest.raises(BadInput, match="order"):
                store.get_to("t", tmp_path / "out", selection)
    assert not (tmp_path / "out").exists()


def test_a_selection_goes_to_a_path_or_into_a_directory(small: Store, tmp_path: Path) -> None:
    selection = Selection(globs=("scale",))
    (tmp_path / "there").mkdir()
    small.get_to("m", tmp_path / "there", selection)
    small.get_to("m", tmp_path / "deep" / "down" / "x", selection)
    for path in (tmp_path / "there" / "m.safetensors", tmp_path / "deep" / "down" / "x"):
        assert_equal_tensors(safetensors.torch.load_file(path), {"scale": torch.tensor(0.5)})


# ---- what does not fit

REFUSED: dict[str, tuple[Selection, type[Exception]]] = {
    "unknown tensor": (Selection(globs=("nothing.*",)), NotFound),
    "one glob of two that matches nothing": (Selection(globs=("scale", "nothing.*")), NotFound),
    "unknown layer": (Selection(layers=(12,)), NotFound),
    "rows of an unknown tensor": (Selection(slices=(("nothing", 0, 1),)), NotFound),
    "rows past the end": (Selection(slices=(("model.embed_tokens.weight", 0, 41),)), BadInput),
    "rows in reverse": (Selection(slices=(("model.embed_tokens.weight", 9, 8),)), BadInput),
    "rows before the first": (Selection(slices=(("model.embed_tokens.weight", -1, 8),)), BadInput),
    "rows of a scalar": (Selection(slices=(("scale", 0, 1),)), BadInput),
    "parts of a scalar": (Selection(shard=Shard(0, 2)), BadInput),
    "uneven parts": (Selection(globs=("*.norm.weight",), shard=Shard(0, 3)), BadInput),
    "uneven parts of rows": (
        Selection(slices=(("model.embed_tokens.weight", 0, 3),), shard=Shard(0, 2)), BadInput,
    ),
    "uneven columns": (Selection(globs=("*.o_proj.weight",), shard=Shard(0, 3, 1)), BadInput),
    "an axis that is not there": (Selection(globs=("*.norm.weight",), shard=Shard(0, 2, 1)), BadInput),
    "uneven by plan": (Selection(shard=Shard(0, 5), plan=(("layers.*.self_attn.o_proj", ROWWISE),)), BadInput),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    small: Store, tmp_path: Path, reads: Reads, what: str
) -> None:
    selection, error = REFUSED[what]
    artifact = small.get("m")
    before = len(reads.frames)
    with pytest.raises(error):
        small.get_to("m", tmp_path / "out", selection)
    assert len(reads.frames) == before + 1  # the version record
    assert not (tmp_path / "out").exists()
    assert artifact.bytes_read == 0


# ---- what is read


def frames_touched(start: int, stop: int, length: int, row_bytes: int) -> int:
    """Return how many frames bytes [start, stop) of a tensor of that length lie in, from the format's own rule."""
    blob_bytes = BLOB_BYTES // row_bytes * row_bytes if length > BLOB_BYTES else length
    touched = 0
    for blob in range(0, length, blob_bytes):
        first, last = max(start, blob) - blob, min(stop, blob + blob_bytes) - blob
        touched += (last - 1) // FRAME_BYTES - first // FRAME_BYTES + 1 if last > first else 0
    return touched


def allowed(frames: int) -> float:
    return 1.05 * frames * (FRAME_BYTES + TAG_BYTES)


def part_reads(reads: Reads, written: Written) -> list[tuple[int, int, int]]:
    """Return the frames of blobs that were opened, once `bytes_read` is found to be their true sum.

    The first frame opened is that of the version record, which says where blobs lie and is no part of a selection.
    """
    version_bytes = reads.sealed_bytes - written.bytes_read
    assert 0 < version_bytes < MIB
    return reads.frames[1:]


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


# ---- other codecs


@pytest.mark.parametrize("codec", ["zstd", "plane", "auto"])
def test_encoded_artifacts_are_cut_right(tmp_path: Path, reads: Reads, codec: str) -> None:
    create_store()
    # 12 MiB: three frames of noise, and as many of zeros with a mark in each row, which shrink to nothing.
    weights = {"noise": (torch.randn(3072, 2048) * 0.02).bfloat16(), "sparse": torch.zeros(3072, 2048).bfloat16()}
    weights["sparse"][:, 0] = torch.arange(3072).bfloat16()
    per_frame = FRAME_BYTES // ROW_BYTES
    with open_store() as store:
        store.put(tensors=weights, name="w", codec=codec)
        for name, (start, stop) in ((n, s) for n in weights for s in ((0, 1), (1500, 3000), (3071, 3072), (0, 3072))):
            reads.frames.clear()
            reads.sealed_bytes = 0
            got, written = selected(store, "w", tmp_path, Selection(slices=((name, start, stop),)))
            assert torch.equal(got[name], weights[name][start:stop])
            opened = part_reads(reads, written)
            assert len(opened) == (stop - 1) // per_frame - start // per_frame + 1
            assert written.bytes_read <= allowed(len(opened))
        got, _ = selected(store, "w", tmp_path, Selection(shard=Shard(1, 2, 1)))
        assert_equal_tensors(got, {name: tensor[:, 1024:].contiguous() for name, tensor in weights.items()})
        whole = store.get("w")
        assert_equal_tensors(whole.tensors(), weights)


# ---- the same from the command line


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line_selects(
    small: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], reads: Reads
) -> None:
    weights, dest = small_weights(), tmp_path / "out.safetensors"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"layers.*.self_attn.q_proj": "colwise", "layers.*.self_attn.o_proj": "rowwise"}))
    q, o = "model.layers.5.self_attn.q_proj.weight", "model.layers.5.self_attn.o_proj.weight"
    cases: list[tuple[list[str], dict[str, torch.Tensor]]] = [
        (["--tensor", q, "--tensor", "scale"], {q: weights[q], "scale": weights["scale"]}),
        (["--layer", "5", "--layer", "11"], {n: t for n, t in weights.items() if ".5." in n or ".11." in n}),
        (["--slice", f"{q}=3:9", "--slice", f"{o}=0:1"], {q: weights[q][3:9], o: weights[o][:1]}),
        (["--tensor", q, "--shard", "3/4"], {q: weights[q][24:]}),
        (["--tensor", q, "--shard", "3/4:1"], {q: weights[q][:, 12:].contiguous()}),
        (
            ["--tensor", q, "--tensor", o, "--shard", "1/2", "--tp-plan", str(plan)],
            {q: weights[q][16:], o: weights[o][:, 16:].contiguous()},
        ),
    ]  # fmt: skip
    for flags, wanted in cases:
        reads.frames.clear()
        reads.sealed_bytes = 0
        code, out, err = ran(capsys, "get", "m", str(dest), "--json", *flags)
        assert (code, err) == (0, "")
        values = json.loads(out)
        assert values["files"] == 1
        assert values["bytes_out"] == dest.stat().st_size
        part_reads(reads, Written(1, values["bytes_out"], values["bytes_read"]))
        assert_equal_tensors(safetensors.torch.load_file(dest), wanted)


WRONG: dict[str, tuple[list[str], int]] = {
    "uneven": (["--shard", "0/3", "--tensor", "*.norm.weight"], 2),
    "a rank past the last": (["--shard", "2/2"], 2),
    "no parts": (["--shard", "0/0"], 2),
    "a rank below the first": (["--shard=-1/2"], 2),
    "half a shard": (["--shard", "1"], 2),
    "words for a shard": (["--shard", "one/two"], 2),
    "an empty shard": (["--shard", ""], 2),
    "an empty axis": (["--tensor", "*.norm.weight", "--shard", "0/2:"], 2),
    "a negative axis": (["--tensor", "*.norm.weight", "--shard", "0/2:-1"], 2),
    "a shard of 5,000 digits": (["--shard", f"0/{'9' * 5000}"], 2),
    "a slice without rows": (["--slice", "scale"], 2),
    "an empty slice": (["--slice", ""], 2),
    "a slice of no name": (["--slice", "=0:1"], 2),
    "an open slice": (["--slice", "scale=1:"], 2),
    "a negative slice": (["--slice", "model.embed_tokens.weight=-3:2"], 2),
    "a slice in reverse": (["--slice", "model.embed_tokens.weight=3:2"], 2),
    "a slice past the end": (["--slice", "model.embed_tokens.weight=0:41"], 2),
    "a slice of 5,000 digits": (["--slice", f"model.embed_tokens.weight=0:{'9' * 5000}"], 2),
    "an unknown tensor": (["--tensor", "nothing"], 3),
    "an empty glob": (["--tensor", ""], 2),
    "an unknown layer": (["--layer", "12"], 3),
    "a negative layer": (["--layer", "-1"], 3),
    "a layer that is no number": (["--layer", "x"], 2),
    "a plan without a shard": (["--tp-plan", "PLAN"], 2),
    "a plan that is not there": (["--tp-plan", "nowhere", "--shard", "0/2"], 2),
    "a plan that is no JSON": (["--tp-plan", "NO_JSON", "--shard", "0/2"], 2),
    "a plan of unknown styles": (["--tp-plan", "STYLES", "--shard", "0/2"], 2),
    "a plan of no object": (["--tp-plan", "LIST", "--shard", "0/2"], 2),
    "a plan of nested values": (["--tp-plan", "NESTED", "--shard", "0/2"], 2),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_selections_end_in_one_line(
    small: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    plans = {
        "PLAN": '{"*": "colwise"}', "NO_JSON": "{", "STYLES": '{"*": "diagonal"}', "LIST": "[1]",
        "NESTED": '{"*": ["colwise"]}',
    }  # fmt: skip
    for name, text in plans.items():
        (tmp_path / name).write_text(text)
    flags, wanted = WRONG[what]
    flags = [str(tmp_path / word) if word in plans else word for word in flags]
    code, out, err = ran(capsys, "get", "m", str(tmp_path / "out"), *flags)
    lines = err.splitlines()
    assert (code, out) == (wanted, "")
    assert lines[0].startswith("arstore: error: get: ")
    assert len(lines) == 1 or lines[1].startswith("arstore: hint: ")
    assert len(lines) <= 2
    assert not (tmp_path / "out").exists()
