"""`arstore kv` and `arstore why-miss`: JSON keys, exit codes and one clear line for whatever is wrong."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arstore import open_store
from tests.support.command import arstore, cli, ended, start
from tests.support.kv_made import FLAGS, Arrays, made, raw

TOKENS = [7 * n % 251 for n in range(70)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where files are; a store is there, with KV under `chat`, and its source as `kv.safetensors` and `tokens.json`."""
    assert cli("init").code == 0
    save_file(made(TOKENS), tmp_path / "kv.safetensors")
    (tmp_path / "tokens.json").write_text(json.dumps(TOKENS))
    ran = cli("kv", "put", tmp_path / "kv.safetensors", "chat", "--tokens", tmp_path / "tokens.json", *FLAGS)
    assert ran.code == 0, ran.err
    return tmp_path


def spell(tokens: Sequence[int]) -> str:
    return ",".join(map(str, tokens))


def match(tokens: Sequence[int], *flags: str) -> Any:
    return cli("--json", "kv", "match", "--tokens", spell(tokens), *FLAGS, *flags)


def stored_bytes() -> int:
    return int(cli("--json", "stats").json["stored_bytes"])


# ---- put, match, get


def test_put_says_what_it_did(place: Path) -> None:
    longer = [*TOKENS[:64], 1, 2]
    save_file(made(longer), place / "longer.safetensors")
    ran = cli("--json", "kv", "put", place / "longer.safetensors", "more", "--tokens", spell(longer), *FLAGS, "--pin")
    assert ran.code == 0
    assert ran.err == ""
    said = ran.json
    assert said.keys() >= {"name", "version", "id", "bytes_in", "bytes_stored", "blobs_new", "blobs_reused", "seconds"}
    assert (said["name"], said["version"], said["kind"]) == ("more", 1, "kv")
    assert (said["blobs_new"], said["blobs_reused"]) == (1, 4)
    assert said["bytes_in"] == sum(one.nbytes for one in made(longer).values())
    listed = cli("--json", "ls", "--kind", "kv").json["artifacts"]
    assert [(one["name"], one["model"], one["pinned"]) for one in listed] == [
        ("chat", "llama", False), ("more", "llama", True)
    ]  # fmt: skip
    shown = cli("kv", "put", place / "longer.safetensors", "text", "--tokens", spell(longer), *FLAGS)
    assert (shown.out.startswith("text@1  "), "(0 new blobs, 5 reused)" in shown.out) == (True, True)


def test_match_says_how_far_and_exits_3_where_nothing_is_stored(place: Path) -> None:
    said = match([*TOKENS, 1]).json
    assert said.keys() >= {"tokens_matched", "blocks", "id"}
    assert (said["tokens_matched"], said["blocks"], said["tokens"]) == (64, 4, 71)
    assert len(bytes.fromhex(said["id"])) == 32
    assert match(TOKENS).json["tokens_matched"] == 70
    assert match(TOKENS).json["id"] != said["id"]
    miss = match([1, *TOKENS])
    assert miss.code == 3
    assert (miss.json["tokens_matched"], miss.json["blocks"], miss.json["id"]) == (0, 0, None)
    assert miss.json["error"]["exit_code"] == 3
    assert "why-miss" in miss.json["error"]["hint"]
    assert match(TOKENS, "--adapter", "other").code == 3
    assert "64 of 71 tokens are stored" in cli("kv", "match", "--tokens", spell([*TOKENS, 1]), *FLAGS).out


def test_get_writes_the_prefix_or_part_of_it(place: Path) -> None:
    ran = cli("--json", "kv", "get", place / "out", "--tokens", spell([*TOKENS, 1]), *FLAGS)
    assert ran.json.keys() >= {"tokens_matched", "blocks", "id", "files", "bytes_out", "bytes_read", "seconds"}
    assert ran.json["bytes_out"] == (place / "out").stat().st_size
    assert raw(load_file(place / "out")) == raw({name: one[:64] for name, one in made(TOKENS).items()})
    part = ("--layer", "2", "--layer", "0", "--positions", "5:40")
    assert cli("kv", "get", place / "part", "--tokens", place / "tokens.json", *FLAGS, *part).code == 0
    wanted = {name: one[5:40] for name, one in made(TOKENS).items() if name[7] in "02"}
    assert raw(load_file(place / "part")) == raw(wanted)
    assert cli("get", "chat", place / "whole").code == 0
    assert raw(load_file(place / "whole")) == raw(made(TOKENS))
    assert cli("get", "chat", place / "layer", "--layer", "1").code == 0
    assert set(load_file(place / "layer")) == {"layers.1.key", "layers.1.value"}


@pytest.mark.parametrize(
    ("flags", "code", "why"),
    [
        (["--layer", "3"], 2, "kv layers [3] are not in this shape"), (["--positions", "0:71"], 2, "has 70 tokens"),
        (["--positions", "5:5"], 2, "5:5"), (["--positions", "x"], 2, "x"), (["--layer", "x"], 2, "x"),
        (["--adapter", "a"], 3, "nothing of this prefix"),
    ],
)  # fmt: skip
def test_a_part_that_is_not_there_writes_nothing(place: Path, flags: list[str], code: int, why: str) -> None:
    ran = cli("kv", "get", place / "out", "--tokens", spell(TOKENS), *FLAGS, *flags)
    assert ran.code == code
    assert why in ran.error
    assert not (place / "out").exists()
    assert cli("kv", "get", place, "--tokens", spell(TOKENS), *FLAGS).code == 2


def test_other_layouts_have_a_flag(place: Path) -> None:
    save_file(made(TOKENS, layout="paged-HND", page=8), place / "paged")
    flags = [*FLAGS, "--layout", "paged-HND", "--page-tokens", "8"]
    assert cli("kv", "put", place / "paged", "paged", "--tokens", spell(TOKENS), *flags).code == 0
    assert cli("kv", "get", place / "out", "--tokens", spell(TOKENS), *flags).code == 0
    assert raw(load_file(place / "out")) == raw(load_file(place / "paged"))
    refused = cli("kv", "put", place / "paged", "paged", "--tokens", spell(TOKENS), *FLAGS, "--layout", "paged-HND")
    assert refused.code == 2
    assert "layout paged-HND: has pages; say page_tokens beside it" in refused.error


# ---- bad input


def refused(place: Path, file: Path, tokens: object, *flags: str, code: int = 2) -> str:
    """Put what can't be, and return the one line that says so; nothing is stored of it."""
    before = stored_bytes()
    ran = cli("kv", "put", file, "bad", "--tokens", tokens, *FLAGS, *flags)
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert stored_bytes() == before
    assert [one["name"] for one in cli("--json", "ls").json["artifacts"]] == ["chat"]
    return ran.error


def npy(tokens: Any) -> Callable[[Path], object]:
    return lambda path: np.save(path.open("wb"), tokens)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def lying_npy(path: Path) -> None:
    """A header that promises more than any memory holds."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }" % (1 << 50)
    path.write_bytes(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(64))


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "float": (text("[1, 2.0]"), "position 1: '2.0'"), "bool": (text("[true]"), "position 0: 'True'"),
    "text": (text('[1, "2"]'), "position 1: '2'"), "null": (text("[null]"), "position 0: 'None'"),
    "nested": (text("[[1]]"), "position 0"), "negative": (text("[0, 0, -1]"), "position 2: '-1'"),
    "large": (text(f"[{1 << 32}]"), "position 0: '4294967296'"), "digits": (text(f"[{'9' * 5000}]"), "JSON"),
    "nan": (text("[NaN]"), "position 0: 'nan'"), "empty list": (text("[]"), "are 0, wanted 1 to"),
    "empty file": (text(""), "neither JSON nor .npy"), "object": (text('{"tokens": [1]}'), "holds dict"),
    "number": (text("5"), "holds int"), "broken": (text("[1, 2"), "neither JSON nor .npy"),
    "deep": (text("[" * 100_000), "neither JSON nor .npy"), "bytes": (lambda p: p.write_bytes(b"\xff\xfe"), "JSON"),
    "npy float": (npy(np.zeros(3)), "holds <f8 with 1 axes"), "npy 2-D": (npy(np.ones((2, 2), int)), "with 2 axes"),
    "npy bool": (npy(np.array([True])), "holds |b1"), "npy negative": (npy(np.array([3, -1])), "position 1: '-1'"),
    "npy large": (npy(np.array([1 << 32])), "position 0"), "npy empty": (npy(np.array([], np.uint32)), "are 0"),
    "npy pickled": (npy(np.array([1, None])), "holds |O"), "npy scalar": (npy(np.int64(5)),
    "0 axes"),
    "npy lying": (lying_npy, "not a .npy file of token ids"),
    "npy cut": (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v"), "not a .npy file of token ids"),
    "npy structured": (npy(np.zeros(2, [("a", "<i8")])), "with 1 axes"),
}  # fmt: skip


@pytest.mark.parametrize("how", FILES)
def test_bad_token_files_are_refused(place: Path, how: str) -> None:
    write, why = FILES[how]
    write(place / "bad")
    assert why.lower() in refused(place, place / "kv.safetensors", place / "bad").lower()


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ("1,x", "position 1: 'x'"), ("-1,2", "position 0: '-1'"), ("1,,2", "position 1: ''"), (",", "position 0: ''"),
        ("1,2.5", "position 1: '2.5'"), (f"1,{1 << 32}", "position 1"), ("99999999999", "position 0"), ("1 2,3",
        "'1 2'"),
        (spell(TOKENS[:69]), "70, 2, 8], wanted [69, 2, 8] for 69 tokens"), ("1", "for 1 tokens"),
    ],
)  # fmt: skip
def test_bad_token_lists_are_refused(place: Path, tokens: str, why: str) -> None:
    assert why in refused(place, place / "kv.safetensors", tokens)


def test_tokens_come_in_any_shape_that_is_one(place: Path) -> None:
    for write in (
        text(json.dumps(TOKENS, indent=2)), npy(np.array(TOKENS, np.uint8)), npy(np.array(TOKENS, ">i4")),
        npy(np.asfortranarray(np.array(TOKENS, np.uint64))),
    ):  # fmt: skip
        write(place / "tokens")
        assert cli("--json", "kv", "match", "--tokens", place / "tokens", *FLAGS).json["tokens_matched"] == 70
    assert cli("--json", "kv", "match", "--tokens", spell(TOKENS) + ",", *FLAGS).json["tokens_matched"] == 70
    assert match([TOKENS[0], *[(1 << 32) - 1] * 20]).code == 3
    assert cli("kv", "match", "--tokens", place / "nothing", *FLAGS).code == 2


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {slot: one for slot, one in arrays.items() if not slot.startswith(name)}


KV: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "no layer": (without("layers.1"), "layer 1 is missing"), "no value": (without("layers.1.value"),
    "value is missing"),
    "mixed": (lambda a: a | {"layers.0.key": a["layers.0.key"].astype(np.float32)}, "holds F16 and F32"),
    "name": (lambda a: a | {"lm_head": a["layers.0.key"]}, "tensor 'lm_head' is not layers.N.key"),
    "shape": (lambda a: {n: one.reshape(70, -1) for n, one in a.items()}, "[70, 16] is not of layout NHD"),
    "heads": (lambda a: a | {"layers.1.key": a["layers.1.key"][:60]}, "wanted [70, 2, 8] for 70 tokens"),
    "nothing": (lambda a: {}, "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("how", KV)
def test_kv_files_that_do_not_fit_are_refused(place: Path, how: str) -> None:
    change, why = KV[how]
    save_file({name: np.ascontiguousarray(one) for name, one in change(made(TOKENS)).items()}, place / "bad")
    assert why in refused(place, place / "bad", spell(TOKENS))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--block-tokens", "0"], "block_tokens 0: wanted 1 to 65536"), (["--block-tokens", "65537"], "65537"),
        (["--block-tokens", "9" * 30], "block_tokens"), (["--block-tokens", "x"], "block_tokens"),
        (["--layout", "other"], "layout 'other' is not known"), (["--kv-heads",
        "3"], "has kv_heads 2, the identity says 3"),
        (["--layers", "0-5"], "holds layers 0-2, the identity says 0-5"), (["--colour", "red"], "--colour"),
        (["--codec", "lzma"], "lzma"), (["--rope-factor", "nan"], "rope_factor"),
    ],
)  # fmt: skip
def test_flags_that_can_not_be_are_refused(place: Path, flags: list[str], why: str) -> None:
    assert why in refused(place, place / "kv.safetensors", spell(TOKENS), *flags)


def test_files_that_are_no_kv_are_refused(place: Path) -> None:
    (place / "text").write_text("not a safetensors file")
    (place / "empty").write_bytes(b"")
    (place / "cut").write_bytes((place / "kv.safetensors").read_bytes()[:-1])
    for name in ("text", "empty", "cut"):
        assert name in refused(place, place / name, spell(TOKENS))
    assert "nothing-there" in refused(place, place / "nothing-there", spell(TOKENS), code=3)
    (place / "identity.json").write_text(json.dumps({"model": "llama", "colour": "red"}))
    assert "'colour' is not known" in refused(
        place, place / "kv.safetensors", spell(TOKENS), "--identity", str(place / "identity.json")
    )
    ran = cli("kv", "put", place / "kv.safetensors", "bad", "--tokens", spell(TOKENS), "--model", "llama")
    assert (ran.code, "lacks revision, precision" in ran.error) == (2, True)


# ---- conflicts


def test_a_conflict_is_15_and_join_ends_it(place: Path) -> None:
    other = [*TOKENS[:64], 5, 6]
    save_file(made(other, salt=1), place / "other")
    words = ("--json", "kv", "put", place / "other", "other", "--tokens", spell(other), *FLAGS)
    ran = cli(*words)
    assert (ran.code, ran.json["error"]["kind"]) == (15, "conflict")
    assert cli("get", "other", place / "kept").code == 0
    assert raw(load_file(place / "kept")) == raw(made(other, salt=1))
    assert match(TOKENS).json["tokens_matched"] == 70
    joined = cli(*words, "--join")
    assert (joined.code, joined.json["version"], joined.json["blobs_new"]) == (0, 2, 0)
    assert match(other).json["tokens_matched"] == 66
    assert cli("erase", "other@1").code == 0
    assert match(other).json["tokens_matched"] == 66
    assert cli("--json", "repair").json["corrected"] == 0


# ---- what happens to a store


def test_a_bad_block_is_13_and_heals(place: Path) -> None:
    with open_store() as store:
        blob = store.show("chat")[1].blobs[1]
        [row] = store._parts.catalog.find_blobs([blob.digest]).values()
    with (place / "store" / "segments" / f"{row.place.segment:016x}.seg").open("r+b") as file:
        file.seek(row.place.offset + 700)
        file.write(bytes(16))
    ran = cli("--json", "kv", "get", place / "out", "--tokens", spell(TOKENS), *FLAGS)
    assert (ran.code, ran.json["error"]["kind"]) == (13, "corrupt")
    assert "compute it anew" in ran.json["error"]["hint"]
    assert not (place / "out").exists()
    assert match(TOKENS).json["tokens_matched"] == 16
    bad = cli("--json", "verify")
    assert (bad.code, bad.json["corrupt"][0]["artifacts"]) == (13, ["chat@1"])
    healed = cli("--json", "kv", "put", place / "kv.safetensors", "chat", "--tokens", spell(TOKENS), *FLAGS)
    assert (healed.code, healed.json["blobs_new"]) == (0, 1)
    assert match(TOKENS).json["tokens_matched"] == 70
    assert cli("verify").code == 0


def test_erase_rm_gc_and_a_rebuilt_catalog(place: Path) -> None:
    save_file(made(TOKENS[:20]), place / "short")
    assert cli("kv", "put", place / "short", "short", "--tokens", spell(TOKENS[:20]), *FLAGS).code == 0
    assert cli("--json", "erase", "chat").json["blobs_shared"] == 1
    assert match(TOKENS).json["tokens_matched"] == 16
    assert cli("repair", "--rebuild-catalog").code == 0
    assert match(TOKENS[:20]).json["tokens_matched"] == 20
    assert cli("rm", "short").code == 0
    assert match(TOKENS).code == 3
    assert cli("--json", "gc", "--grace", "0s").json["deleted_blobs"] == 2


@pytest.mark.parametrize("multi_writer", [False, True])
def test_sequences_put_at_once_share_their_prefix(place: Path, multi_writer: bool) -> None:
    shared = list(range(1000, 1064))
    words = {}
    for n in range(3):
        tokens = [*shared, n, n]
        save_file(made(tokens), place / f"at-once-{n}")
        words[n] = ["kv", "put", place / f"at-once-{n}", "both", "--tokens", spell(tokens), *FLAGS, "--json"]
        words[n] += ["--multi-writer"] if multi_writer else ["--lock-wait", "30s"]
    answers = [ended(process) for process in [start(*one) for one in words.values()]]
    assert [ran.code for ran in answers] == [0, 0, 0], [ran.err for ran in answers]
    assert {ran.json["version"] for ran in answers} == {1, 2, 3}
    for n in range(3):
        assert match([*shared, n, n]).json["tokens_matched"] == 66
        assert cli("kv", "get", place / "out", "--tokens", spell([*shared, n, n]), *FLAGS).code == 0
        assert raw(load_file(place / "out")) == raw(made([*shared, n, n]))
    stats = cli("--json", "stats").json
    assert stats["blobs"] == 5 + 4 + 3
    assert cli("--json", "repair").json["corrected"] == 0
    assert cli("rm", "both", "--all-versions").code == 0
    assert match([*shared, 0, 0]).code == 3


# ---- why-miss


@pytest.mark.parametrize(
    ("flags", "field", "wanted", "stored"),
    [
        (["--precision", "fp8"], "precision", "fp8", "fp16"), (["--revision", "r2"], "revision", "r2", "r1"),
        (["--adapter", "a"], "adapter", "a", None), (["--rope-factor", "8"], "rope_factor", "8", None),
        (["--block-tokens", "32"], "block_tokens", "32", "16"), (["--layout", "HND"], "layout", "HND", None),
        (["--salt", "s", "--window", "4096"], "window", "4096", None), (["--strict"], "strict", "yes", None),
        ([], None, None, None), (["--engine", "other"], None, None, None),
    ],
)  # fmt: skip
def test_why_miss_names_the_field(place: Path, flags: list[str], field: str | None, wanted: str, stored: str) -> None:
    ran = cli("--json", "why-miss", *FLAGS, *flags, "--tokens", spell([*TOKENS[:40], 9]))
    assert ran.code == 0
    said = ran.json
    assert (said["field"], said["wanted"], said["stored"], said["nearest"]) == (field, wanted, stored, "chat@1")
    assert said["tokens_matched"] == (0 if field else 32)
    lines = cli("why-miss", *FLAGS, *flags, "--tokens", spell([*TOKENS[:40], 9])).out
    assert (f"{field}: wanted" if field else "no field: chat@1 has this very identity") in lines


def test_why_miss_compares_with_the_nearest(place: Path) -> None:
    far = ["--model", "gpt", "--revision", "r9", "--precision", "float16", "--adapter", "a", "--window", "8"]
    save_file(made([1]), place / "far")
    for name in ("a/far", "z/far"):
        assert cli("kv", "put", place / "far", name, "--tokens", "1", *far).code == 0
    said = cli("--json", "why-miss", *FLAGS, "--revision", "r2", "--window", "8").json
    assert (said["nearest"], said["field"]) == ("chat@1", "revision")
    assert [one["field"] for one in said["differs"]] == ["revision", "window"]
    assert cli("--json", "why-miss", *far, "--precision", "fp8").json["nearest"] == "a/far@1"
    assert said["tokens_matched"] is None


def test_why_miss_where_there_is_nothing_to_compare(place: Path) -> None:
    assert cli("erase", "chat").code == 0
    ran = cli("--json", "why-miss", *FLAGS)
    assert (ran.code, ran.json["error"]["kind"]) == (3, "not-found")
    assert cli("why-miss", *FLAGS, "--colour", "red").code == 2
    assert cli("why-miss", "--model", "llama").code == 2


def test_a_process_of_its_own_sees_the_same(place: Path) -> None:
    os.environ["PYTHONHASHSEED"] = "7"
    here = match(TOKENS).json["id"]
    assert arstore("--json", "kv", "match", "--tokens", spell(TOKENS), *FLAGS).json["id"] == here
