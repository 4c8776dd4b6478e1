"""Get: files and directories come back byte for byte, to the place that was asked for or not at all."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, cast

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arstore import BadInput, Corrupt, Store, create_store, open_store
from arstore.formats.manifest import Manifest
from tests.support.checkpoints import (
    MAKERS,
    assert_equal_tensors,
    layers,
    mixed_directory,
    noise,
    raw,
    safetensors_file,
    sharded_directory,
    snapshot,
    store,
)

__all__ = ["store"]  # fixtures


# The names of one directory, and what is under each: bytes and a mode of a file, or another directory.
Tree: TypeAlias = dict[str, "tuple[bytes, int] | Tree"]


# ---- back again, as they were


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_files_come_back_byte_for_byte(store: Store, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    wanted = snapshot(source)

    put = store.put(source, name="a")
    assert put.bytes_in == sum(len(content) for _, content in wanted.values() if content is not None)
    artifact, written = store.get_to("a", tmp_path / "out")

    assert snapshot(tmp_path / "out") == wanted
    assert written.files == sum(content is not None for _, content in wanted.values())
    assert written.bytes_out == put.bytes_in == artifact.summary.plain_bytes


# ---- codecs


@pytest.mark.parametrize("codec", ["auto", "stored", "zstd", "plane"])
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_every_codec_gives_back_what_it_took(tmp_path: Path, codec: str, encrypted: bool) -> None:
    (tmp_path / "in").mkdir()
    source = mixed_directory(tmp_path / "in")
    large = {"noise": noise(2200, 2200), "zeros": torch.zeros(1500, 1500), "half": torch.rand(999, 33).half()}
    safetensors.torch.save_file(large, source / "large.safetensors")  # more than one frame, and not a whole one
    create_store(tmp_path / "other", encrypted=encrypted)
    with open_store(tmp_path / "other") as store:
        store.put(source, name="a", codec=codec)
        store.get_to("a", tmp_path / "out")
        assert snapshot(tmp_path / "out") == snapshot(source)
        assert_equal_tensors(store.get("a").tensors(large), large)
        assert not store.verify(deep=True).corrupt


# ---- where it goes


def test_a_file_goes_to_a_new_path_or_into_a_directory(store: Store, tmp_path: Path) -> None:
    source = safetensors_file(tmp_path)
    store.put(source, name="f")
    store.get_to("f", tmp_path / "made" / "for" / "it.bin")
    (tmp_path / "there").mkdir()
    store.get_to("f", tmp_path / "there")
    assert snapshot(tmp_path / "made") == {
        "for": (stat.S_IMODE((tmp_path / "made/for").stat().st_mode), None),
        "for/it.bin": snapshot(source)[""],
    }
    assert snapshot(tmp_path / "there") == {"model.safetensors": snapshot(source)[""]}


def test_a_file_at_the_destination_is_replaced(store: Store, tmp_path: Path) -> None:
    source = safetensors_file(tmp_path)
    store.put(source, name="f")
    (tmp_path / "out").write_bytes(b"older and longer" * 100_000)
    store.get_to("f", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(source)

    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    (tmp_path / "over" / "original").mkdir(parents=True)
    (tmp_path / "over" / "config.json").write_text("older")
    (tmp_path / "over" / "kept.txt").write_text("not of the artifact")
    store.get_to("d", tmp_path / "over")
    store.get_to("d", tmp_path / "over")
    found = snapshot(tmp_path / "over")
    assert found.pop("kept.txt")[1] == b"not of the artifact"
    assert found == snapshot(tmp_path / "checkpoint")


def test_a_link_at_the_place_of_a_file_is_replaced_not_followed(store: Store, tmp_path: Path) -> None:
    store.put(safetensors_file(tmp_path), name="f")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").symlink_to("precious")
    store.get_to("f", tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("below", ["original", "original/empty"])
def test_a_link_below_the_place_leads_nothing_outside(store: Store, tmp_path: Path, below: str) -> None:
    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir(mode=0o711)
    (out / below).parent.mkdir(parents=True, exist_ok=True)
    (out / below).symlink_to(outside)
    before = outside.stat()
    with pytest.raises(BadInput, match="link"):
        store.get_to("d", out)
    assert list(outside.iterdir()) == []
    assert outside.stat().st_mode == before.st_mode


def test_a_directory_in_the_place_of_a_file_and_the_reverse_are_refused(store: Store, tmp_path: Path) -> None:
    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BadInput):
        store.get_to("d", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a file"
    (tmp_path / "out" / "config.json" / "deep").mkdir(parents=True)
    with pytest.raises(Exception, match=r"config\.json"):
        store.get_to("d", tmp_path / "out")
    assert (tmp_path / "out" / "config.json" / "deep").is_dir()


def test_the_current_directory_and_other_file_systems_are_destinations_too(store: Store, tmp_path: Path) -> None:
    store.put(sharded_directory(tmp_path / "checkpoint"), name="d")
    wanted = snapshot(tmp_path / "checkpoint")
    (tmp_path / "here").mkdir()
    before = Path.cwd()
    try:
        os.chdir(tmp_path / "here")
        store.get_to("d", ".")
    finally:
        os.chdir(before)
    assert snapshot(tmp_path / "here") == wanted
    if os.path.ismount("/dev/shm") and os.access("/dev/shm", os.W_OK):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
            (tmp_path / "mount").symlink_to(elsewhere)
            store.get_to("d", tmp_path / "mount")
            assert snapshot(Path(elsewhere)) == wanted


def flip(store: Store, content: bytes) -> None:
    """Change one bit of the record that holds `content`, which must lie in a segment as it is."""
    for path in (store._parts.root / "segments").iterdir():
        held = bytearray(path.read_bytes())
        if (at := held.find(content)) >= 0:
            held[at] ^= 1
            path.write_bytes(held)
            return
    raise AssertionError("no segment holds it")


@pytest.mark.parametrize("selected", [False, True], ids=["files", "tensors"])
def test_the_destination_is_untouched_where_a_blob_is_bad(tmp_path: Path, selected: bool) -> None:
    from arstore.store.artifacts.select import Selection

    create_store(tmp_path / "clear", encrypted=False)
    with open_store(tmp_path / "clear") as store:
        source = sharded_directory(tmp_path / "checkpoint")
        store.put(source, name="d", codec="stored")
        victim = layers()["model.layers.3.mlp.weight"]
        flip(store, raw(victim))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("older")
        (tmp_path / "file").write_text("older")
        dests = [tmp_path / "out", tmp_path / "new"] + [tmp_path / "file"] * selected
        selection = Selection(globs=("*",)) if selected else None
        before = snapshot(tmp_path)
        for dest in dests:
            with pytest.raises(Corrupt, match="d@1"):
                store.get_to("d", dest, selection)
        after = snapshot(tmp_path)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not {name for name in changed if not name.startswith("clear/")}


# ---- any tree


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)


FILES = st.tuples(st.binary(max_size=300), st.sampled_from([0o644, 0o600, 0o755, 0o444, 0o777]))
TREES = st.recursive(
    st.dictionaries(NAMES, FILES, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(FILES, inner), max_size=4),
    max_leaves=12,
)


def make_tree(path: Path, tree: Tree) -> None:
    path.mkdir()
    for name, inner in tree.items():
        if isinstance(inner, dict):
            make_tree(path / name, inner)
        else:
            (path / name).write_bytes(inner[0])
            (path / name).chmod(inner[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_any_tree_comes_back(store: Store, tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "in", Path(scratch) / "out"
        make_tree(source, cast("Tree", tree))
        store.put(source, name="tree", kind="file")
        again = store.put(source, name="tree", kind="file")
        assert again.blobs_new == 0
        store.get_to("tree", out)
        assert snapshot(out) == snapshot(source)


def test_the_size_of_all_files_is_summed_up_a_few_times_only(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each file would take the square of their number."""
    (folder := tmp_path / "many").mkdir()
    for number in range(200):
        (folder / f"{number}").write_text(str(number))
    store.put(folder, name="many")
    real, sums = Manifest.plain_bytes, list[int]()

    def counted(manifest: Manifest) -> int:
        sums.append(1)
        return int(real.__get__(manifest))

    monkeypatch.setattr(Manifest, "plain_bytes", property(counted))
    store.get_to("many", tmp_path / "out")
    assert len(sums) < 5
    assert (tmp_path / "out" / "199").read_text() == "199"
