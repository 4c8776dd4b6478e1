"""PyTorch files: tensors without running anything, within their storages, in bounded time."""

import io
import pickle
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from arstore.formats.readers import torch_file, torch_values
from tests.support.readers import (
    TORCH_ONLY,
    BytesSource,
    Marker,
    checkpoint,
    random_tensor,
    read,
    refused,
    same_tensor,
    torch_bytes,
    zip_bytes,
)


def storage_pickle(offset: object = 0, shape: object = (2,), stride: object = (1,), count: object = 4) -> bytes:
    """Return the pickle of {"t": float tensor over storage 0}, its numbers as given."""

    class Build:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Persistent(), offset, shape, stride, False, OrderedDict())

    class Persistent:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(obj, Persistent) else None

    file = io.BytesIO()
    Pickler(file, 2).dump({"t": Build()})
    return file.getvalue()


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_torch_of_every_dtype(name: str) -> None:
    tensors = {"a": random_tensor(TORCH_ONLY[name], 3, 4), "empty": torch.empty(0, 2, dtype=TORCH_ONLY[name])}
    content = torch_bytes(tensors)
    table = read(torch_file.read_table, content)
    assert table["a"].dtype == name
    assert all(same_tensor(content, table[key], tensors[key]) for key in tensors)


def test_torch_views_and_nesting() -> None:
    base = torch.randn(4, 6)
    value = {
        "model": OrderedDict({"w": base, "tied": base, "t": base.t(), "rows": base[1:3], "columns": base[:, 2:4]}),
        "list": [torch.tensor(1.0), ("text", torch.nn.Parameter(torch.ones(2))), None, {3: torch.ones(1)}],
        "expanded": torch.ones(1).expand(3, 4),
        "single": torch.ones(5, 3)[:1].as_strided((1, 3), (99, 1)),
        "ignored": [1.5, b"bytes", {1, 2}, 1 + 2j, torch.float32, torch.Size([1]), torch.device("cpu"), Counter("ab")],
        None: torch.zeros(1), True: torch.ones(1),
    }  # fmt: skip
    content = torch_bytes(value)
    table = read(torch_file.read_table, content)
    model: Any = value["model"]
    wanted = {f"model.{key}": tensor for key, tensor in model.items()} | {
        "list.0": torch.tensor(1.0), "list.1.1": torch.ones(2), "list.3.3": torch.ones(1),
        "expanded": torch.ones(3, 4), "single": torch.ones(1, 3), "None": torch.zeros(1), "True": torch.ones(1),
    }  # fmt: skip
    assert table.keys() == wanted.keys()
    assert all(same_tensor(content, table[name], wanted[name]) for name in wanted)
    assert table["model.w"].start == table["model.tied"].start == table["model.t"].start
    assert table["model.w"].stride is table["model.rows"].stride is table["single"].stride is None
    assert (table["model.t"].stride, table["model.columns"].stride) == ((1, 6), (6, 1))
    assert (table["expanded"].length, table["model.columns"].length) == (4, 80)


def test_torch_model_and_optimizer() -> None:
    linear, norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)
    model = torch.nn.Sequential(linear, norm)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    content = torch_bytes({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    table = read(torch_file.read_table, content)
    assert same_tensor(content, table["model.0.weight"], linear.weight)
    assert same_tensor(content, table["model.1.running_var"], norm.state_dict()["running_var"])
    state = optimizer.state_dict()["state"]
    assert all(same_tensor(content, table[f"optimizer.state.{n}.exp_avg"], state[n]["exp_avg"]) for n in state)


def test_torch_bare_tensor_subclass_and_attributes() -> None:
    assert read(torch_file.read_table, torch_bytes(torch.ones(2)))["tensor"].shape == (2,)
    marked = torch.nn.Parameter(torch.ones(3))
    marked.note = "kept"  # type: ignore[attr-defined]
    tensor = torch.ones(4)
    tensor.note = torch.ones(9)  # type: ignore[attr-defined]
    content = torch_bytes({"p": marked, "t": tensor, "b": torch.nn.Buffer(torch.ones(2))})
    assert {name: span.shape for name, span in read(torch_file.read_table, content).items()} == {
        "p": (3,), "t": (4,), "b": (2,)
    }  # fmt: skip


def test_torch_tensors_whose_bytes_are_not_their_values_give_no_span() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = {
            "conjugate": torch.zeros(2, dtype=torch.complex64).conj(),
            "negative": torch.zeros(2, dtype=torch.complex64).conj().imag,
            "sparse": torch.eye(2).to_sparse(),
            "rows": torch.eye(2).to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "half complex": torch.zeros(2, dtype=torch.complex32),
            "meta": torch.empty(3, device="meta"),
            "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        }
        content = torch_bytes({**value, "plain": torch.ones(1)})
    assert read(torch_file.read_table, content).keys() == {"plain"}


def test_torch_packed_four_bit_floats_double_their_last_extent() -> None:
    packed = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).view(2, 3)
    content = torch_bytes({"a": packed})
    span = read(torch_file.read_table, content)["a"]
    assert (span.dtype, span.shape, span.length) == ("F4", (2, 6), 6)
    assert content[span.start : span.start + 6] == bytes(range(6))


def test_torch_reads_no_tensor_bytes() -> None:
    source = BytesSource(torch_bytes({"a": torch.zeros(1 << 20)}))
    assert len(torch_file.read_table(source)) == 1
    assert source.read_bytes < 70_000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_of_every_pickle_protocol(protocol: int) -> None:
    content = torch_bytes({"a": torch.ones(3), "b": {"c": [torch.ones(1)]}, "s": {1}}, pickle_protocol=protocol)
    assert read(torch_file.read_table, content).keys() == {"a", "b.c.0"}


def test_torch_allow_list_is_that_of_torch() -> None:
    if not torch.__version__.startswith("2.13."):
        pytest.skip("the list is that of torch 2.13")
    from torch._weights_only_unpickler import _get_allowed_globals

    assert set(_get_allowed_globals()) == torch_values.ALLOWED


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_torch_runs_no_code(protocol: int, tmp_path: Path) -> None:
    marker = Marker(tmp_path / "ran")
    for value in (marker, {"a": torch.ones(1), "b": [marker]}, OrderedDict(a=marker)):
        if protocol >= 2:
            message = refused(torch_file.read_table, torch_bytes(value, pickle_protocol=protocol))
            assert "refers to posix.mkdir, which weights-only loading does not allow" in message
    pickled = pickle.dumps({"b": marker}, protocol)
    refused(torch_file.read_table, checkpoint(pickled))
    if protocol >= 2:
        assert "legacy torch.save format" in refused(torch_file.read_table, pickled)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists()  # the marker does fire where a pickle is run


def test_torch_legacy_and_foreign_files() -> None:
    legacy = torch_bytes({"a": torch.ones(1)}, _use_new_zipfile_serialization=False)
    assert "re-save with torch >= 1.6" in refused(torch_file.read_table, legacy)
    for content in (b"", b"PK", b"raw bytes", zip_bytes({}), zip_bytes({"a": b""}), zip_bytes({"a/b/data.pkl": b""})):
        refused(torch_file.read_table, content)
    assert "refers to" in refused(torch_file.read_table, torch_bytes(torch.nn.Linear(1, 1)))
    empty = pickle.dumps({}, 2)
    assert "2 data.pkl" in refused(torch_file.read_table, zip_bytes({"a/data.pkl": empty, "b/data.pkl": empty}))
    assert "little-endian" in refused(torch_file.read_table, checkpoint(empty, byteorder=b"big"))
    assert "little-endian" in refused(torch_file.read_table, checkpoint(empty, byteorder=b""))
    torchscript = zip_bytes({"x/data.pkl": empty, "x/constants.pkl": empty})
    assert "torchscript" in refused(torch_file.read_table, torchscript)
    packed = zip_bytes({"x/data.pkl": empty}, zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(torch_file.read_table, packed)
    assert read(torch_file.read_table, checkpoint(empty)) == {}
    assert read(torch_file.read_table, zip_bytes({"x/data.pkl": storage_pickle(), "x/data/0": bytes(16)})).keys() == {
        "t"
    }


@pytest.mark.parametrize(
    ("numbers", "records", "wanted"),
    [
        ({"offset": 3}, (16,), "reaches to byte 20"),
        ({"stride": (4,)}, (16,), "reaches to byte 20"),
        ({"shape": (1 << 62, 1 << 62), "stride": (1 << 62, 1 << 62)}, (16,), "reaches to byte"),
        ({"shape": (1 << 63,)}, (16,), "not a whole number"),
        ({"shape": (-1,)}, (16,), "not a whole number"),
        ({"shape": (True,)}, (16,), "not a whole number"),
        ({"stride": (-1,)}, (16,), "not a whole number"),
        ({"offset": -1}, (16,), "not a whole number"),
        ({"offset": 1.0}, (16,), "not a whole number"),
        ({"stride": (1, 1)}, (16,), "1 extents and 2 strides"),
        ({"shape": (1,) * 65, "stride": (1,) * 65}, (16,), "at most 64"),
        ({"shape": [2]}, (16,), "not a tuple"),
        ({"count": 5}, (16,), "its record has 16"),
        ({"count": 1 << 64}, (16,), "not a whole number"),
        ({"count": 1}, (16,), "storage of 4"),
        ({}, (), "storage that the archive lacks"),
    ],
)
def test_torch_refuses_tensors_outside_their_storage(numbers: Any, records: tuple[int, ...], wanted: str) -> None:
    assert wanted in refused(torch_file.read_table, checkpoint(storage_pickle(**numbers), *records))
    assert read(torch_file.read_table, checkpoint(storage_pickle(), 16))["t"].shape == (2,)


@pytest.mark.parametrize(
    "pickled",
    [
        b"", b".", b"\x80\x02", b"\x80\x02.", b"\x80\x02}q\x00", b"\x80\x02h\x05.", b"\x80\x02t.", b"\x80\x02\x86.",
        b"\x80\x02X\xff\xff\xff\xffabc.", b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02}Nu.", b"\x80\x02}(Nu.", b"\x80\x02N(Ne.", b"\x80\x02]NNs.",
        b"\x80\x02K\x01)R.", b"\x80\x02ctorch\nSize\nNR.", b"\x80\x02NQ.", b"\x80\x02(NNNNNtQ.", b"\x80\x02K\x00Q.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtR.",
        b"\x80\x04\x8c\x02os]\x93.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02cos\nsystem\n.", b"\x80\x02ctorch\nload\n.", b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02c__builtin__\neval\n.", b"\x80\x02ctorch Size\nx\n.", b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.", b"\x80\x02\x82\x01.",
        b"\x80\x02(cos\nsystem\nS'x'\no.", b"\x80\x04\x8c\x01a\x92.", b"\x80\x02N2.", b"\x80\x020.",
    ],
)  # fmt: skip
def test_torch_refuses_malformed_pickles(pickled: bytes) -> None:
    refused(torch_file.read_table, checkpoint(pickled))


def test_torch_bombs_are_refused_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    shared: Any = [torch.ones(1)]
    for _ in range(60):
        shared = (shared, shared)
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    dicts = b"\x80\x02" + b"}N" * 100_000 + b"}" + b"s" * 100_000 + b"."
    monkeypatch.setattr(torch_file, "OPCODES_MAX_COUNT", 20_000)
    assert "shares values" in refused(torch_file.read_table, torch_bytes(cycle))
    assert "shares values" in refused(torch_file.read_table, torch_bytes(shared))
    assert "nests" in refused(torch_file.read_table, checkpoint(deep))
    assert "nests" in refused(torch_file.read_table, checkpoint(dicts))
    slow_to_hash = b"\x80\x02})" + b"2\x86" * 60 + b"Ns."
    assert "pickle uses dup" in refused(torch_file.read_table, checkpoint(slow_to_hash))
    slow_to_hash = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns."
    assert read(torch_file.read_table, checkpoint(slow_to_hash)) == {}
    assert read(torch_file.read_table, torch_bytes({(1, 2): torch.ones(1), "a": torch.ones(1)})).keys() == {"a"}


def test_torch_storage_must_be_told_alike() -> None:
    whole = b"\x80\x02]q\x00(" + b"".join(
        b"(X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x000NK%ctQ" % told
        for told in ((b"Float", 4), (b"Half", 8))
    )
    assert "two dtypes or sizes" in refused(torch_file.read_table, checkpoint(whole + b"e.", 16))
    empty = torch.empty(0)
    content = torch_bytes({"a": empty, "b": empty.view(torch.int32)})
    assert {span.dtype for span in read(torch_file.read_table, content).values()} == {"F32", "I32"}


def test_torch_names_must_be_distinct_and_valid() -> None:
    twins = torch_bytes({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})
    assert "both named 'a.b'" in refused(torch_file.read_table, twins)
    assert "both named '1'" in refused(torch_file.read_table, torch_bytes({1: torch.ones(1), "1": torch.ones(1)}))
    assert "longer than 4096" in refused(torch_file.read_table, torch_bytes({"x" * 4097: torch.ones(1)}))
    assert "unicode" in refused(torch_file.read_table, torch_bytes({"\ud800": torch.ones(1)}))
    assert "refers to \\xe9" in refused(torch_file.read_table, checkpoint(b"\x80\x04\x8c\x02\xc3\xa9\x8c\x01x\x93."))
