"""Inputs of a put: tensors and linked files are taken whole; hostile files and odd tensors are refused."""

import io
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import BadInput, Store
from arstore.cli.main import run
from tests.support.checkpoints import assert_equal_tensors, gguf_bytes, header, layers, noise, snapshot, store

__all__ = ["store"]  # fixtures


def stored_counts(store: Store) -> tuple[int, int]:
    """Return how many versions and how many blobs the store holds."""
    found = store.stats()
    return found.artifacts, found.blobs


def test_links_of_a_hugging_face_cache_are_stored_as_files(store: Store, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--tiny"
    blobs, shot = cache / "blobs", cache / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    shot.mkdir(parents=True)
    safetensors.torch.save_file(layers(), blobs / "4f5e")
    (blobs / "c0de").write_text("{}")
    (shot / "model.safetensors").symlink_to("../../blobs/4f5e")
    (shot / "config.json").symlink_to("../../blobs/c0de")

    store.put(shot, name="tiny")
    assert_equal_tensors(store.get("tiny").tensors(), layers())
    store.get_to("tiny", tmp_path / "out")
    assert snapshot(tmp_path / "out") == {
        name: (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for name, path in (("config.json", blobs / "c0de"), ("model.safetensors", blobs / "4f5e"))
    }


def test_tensors_in_memory_are_stored(store: Store, tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    source = {
        "plain": base, "transposed": base.t(), "skipping": base[::2, 1::3], "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4), "bf16": noise(5, 5), "flags": torch.tensor([True, False]),
        "trained": torch.ones(3, requires_grad=True), "expanded": base[0].expand(4, 10),
        "conjugated": torch.tensor([1 + 2j, 3 - 1j]).conj(), "fp8": torch.ones(4).to(torch.float8_e4m3fn),
    }  # fmt: skip
    put = store.put(tensors=source, name="t", kind="intermediate")
    assert put.summary.kind == "intermediate"
    wanted = {name: tensor.detach().resolve_conj() for name, tensor in source.items()}
    assert_equal_tensors(store.get("t").tensors(), wanted)
    store.get_to("t", tmp_path / "t.safetensors")
    assert_equal_tensors(safetensors.torch.load_file(tmp_path / "t.safetensors"), wanted)


UNSTORABLE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "complex128": lambda: torch.ones(2, dtype=torch.complex128),
    "without values": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch has much to say of its rarer layouts
@pytest.mark.parametrize("kind", UNSTORABLE)
def test_tensors_that_have_no_plain_form_are_refused(store: Store, kind: str) -> None:
    with pytest.raises(BadInput):
        store.put(tensors={"good": torch.ones(2), "bad": UNSTORABLE[kind]()}, name="t")
    assert stored_counts(store) == (0, 0)


class Evil:
    """What unpickling this does is what the pickle says: here, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._marker),)


def one(shape: list[int], offsets: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def evil_archive(marker: Path) -> bytes:
    """Return a torch checkpoint, as torch writes it today, whose pickle makes a directory when it is run."""
    out = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, out)
    again = io.BytesIO()
    with zipfile.ZipFile(out) as source, zipfile.ZipFile(again, "w") as target:
        for name in source.namelist():
            content = pickle.dumps(Evil(marker), 2) if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, content)
    return again.getvalue()


def object_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return out.getvalue()


HOSTILE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "no header": ("m.safetensors", lambda _: b"abc"),
    "header past the end": ("m.safetensors", lambda _: header({}, length=1000)),
    "header of 100 MB and a byte": ("m.safetensors", lambda _: header(b" " * 64, length=100_000_001)),
    "header length of 2**64 - 1": ("m.safetensors", lambda _: header({}, length=(1 << 64) - 1)),
    "header of other JSON": ("m.safetensors", lambda _: header([])),
    "header that is no JSON": ("m.safetensors", lambda _: header(b"{]")),
    "header nested 50,000 deep": ("m.safetensors", lambda _: header(b'{"a":' + b"[" * 50_000)),
    "name told twice": (
        "m.safetensors",
        lambda _: header(b'{"a":%b,"a":%b}' % ((json.dumps(one([1], [0, 1])).encode(),) * 2), b"x"),
    ),
    "overlap": ("m.safetensors", lambda _: header({"a": one([2], [0, 2]), "b": one([2], [1, 3])}, b"abc")),
    "hole": ("m.safetensors", lambda _: header({"a": one([1], [0, 1]), "b": one([1], [2, 3])}, b"abc")),
    "bytes left over": ("m.safetensors", lambda _: header({"a": one([1], [0, 1])}, b"abc")),
    "tensor past the end": ("m.safetensors", lambda _: header({"a": one([9], [0, 9])}, b"abc")),
    "negative extent": ("m.safetensors", lambda _: header({"a": one([-1], [0, 1])}, b"a")),
    "extents that overflow": ("m.safetensors", lambda _: header({"a": one([1 << 62, 4, 4], [0, 0])})),
    "wrong length": ("m.safetensors", lambda _: header({"a": one([2], [0, 4], "F32")}, b"abcd")),
    "unknown dtype": ("m.safetensors", lambda _: header({"a": one([1], [0, 1], "Q3")}, b"a")),
    "pickle that runs code": ("pytorch_model.bin", lambda marker: pickle.dumps(Evil(marker), 2)),
    "checkpoint that runs code": ("model.pt", evil_archive),
    "cut checkpoint": ("model.pt", lambda marker: evil_archive(marker)[:-30]),
    "cut gguf header": ("model.gguf", lambda _: gguf_bytes()[:50]),
    "cut gguf tensors": ("model.gguf", lambda _: gguf_bytes()[:-1]),
    "gguf of another name": ("model.dat", lambda _: gguf_bytes()[:-1]),
    "array of objects": ("array.npy", lambda _: object_array()),
    "cut array": ("array.npy", lambda _: object_array()[:20]),
    "no array": ("array.npz", lambda _: b"PK\x03\x04 and nothing more"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_inputs_are_refused_whole(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, make = HOSTILE[what]
    marker = tmp_path / "marker"
    top = tmp_path / "checkpoint"
    top.mkdir()
    (top / "a_good.safetensors").write_bytes(header({"a": one([1], [0, 1])}, b"x"))
    (top / name).write_bytes(make(marker))
    (top / "z_good.json").write_text("{}")

    for path in (top, top / name):
        assert run(["put", str(path), "bad"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        first, *rest = err.splitlines()
        assert first.startswith(f"arstore: error: put: {top / name}: ")
        assert len(rest) == 1
        assert rest[0].startswith("arstore: hint: ")
    assert stored_counts(store) == (0, 0)
    assert not list((store._parts.root / "segments").iterdir())

    # What is not read can't do harm: as bytes it goes in and comes out, never run.
    assert run(["put", str(top), "bad", "--opaque", name]) == 0
    assert run(["put", str(top / name), "kind", "--kind", "file"]) == 0
    assert run(["get", "bad", str(tmp_path / "out")]) == 0
    assert snapshot(tmp_path / "out") == snapshot(top)
    assert list(store.get("bad").tensors()) == ["a"]
    assert not marker.exists()


def test_the_evil_pickle_is_evil(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker"), 2))
    assert (tmp_path / "marker").exists()
