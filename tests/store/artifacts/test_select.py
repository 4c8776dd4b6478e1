"""Selection: parts of tensors, exact against slicing the source."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import BadInput, NotFound, Store, create_store, open_store
from arstore.cli.main import run
from arstore.store.artifacts.get import Written
from arstore.store.artifacts.select import COLWISE, ROWWISE, Selection, Shard
from tests.support.checkpoints import assert_equal_tensors
from tests.support.selections import (
    FRAME_BYTES,
    ROW_BYTES,
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
def test_a_selection_that_does_not_fit_is_refused_before_anything_is_read(
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
