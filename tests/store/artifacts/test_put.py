"""Put: every tensor is stored once, whichever files hold it, and cut at its rows."""

import json
import signal
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import Store, open_store
from tests.support.checkpoints import MAKERS, MIB, assert_equal_tensors, noise, raw, snapshot, store
from tests.support.room import HookedDisk

__all__ = ["store"]  # fixtures


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_second_put_stores_no_blob(store: Store, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    first = store.put(source, name="a")
    with open_store() as reopened:
        second = reopened.put(source, name="another")
    assert second.blobs_new == 0
    assert second.blobs_reused == len(store.get("a").manifest.blobs)
    assert second.bytes_stored <= 64 << 10  # the version record alone
    assert second.summary.id == first.summary.id


def test_a_large_tensor_is_split_at_rows(store: Store, tmp_path: Path) -> None:
    rows, row_bytes = 20_000, 1025 * 4
    big = torch.from_numpy(np.frombuffer(np.random.default_rng(1).bytes(rows * row_bytes), np.float32).copy())
    source = tmp_path / "big.safetensors"
    safetensors.torch.save_file({"big": big.reshape(rows, 1025), "small": torch.ones(3)}, source)
    store.put(source, name="big")

    lengths = sorted((blob.length for blob in store.get("big").manifest.blobs), reverse=True)[:2]
    assert sum(lengths) == rows * row_bytes
    assert lengths[0] <= 64 * MIB < lengths[0] + row_bytes  # as many whole rows as fit
    assert all(length % row_bytes == 0 for length in lengths)

    store.get_to("big", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert_equal_tensors(store.get("big").tensors(["big"]), {"big": big.reshape(rows, 1025)})


def test_a_fine_tune_stores_only_what_changed(store: Store, tmp_path: Path) -> None:
    names = [f"model.layers.{n}.weight" for n in range(10)]
    base = {name: noise(512, 512, seed=n) for n, name in enumerate(names)}
    tuned = {**base, names[3]: noise(512, 512, seed=50), names[7]: noise(512, 512, seed=51)}
    shapes = {"base": (base, names, 2), "tuned": (tuned, names[::-1], 3)}
    for folder, (weights, order, shards) in shapes.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"hidden_size": 512}')
        for shard in range(shards):
            # Equal dtypes stay in the order they are given in, so the tuned shards hold theirs the other way round.
            part = {name: weights[name] for name in order[shard::shards]}
            header = {
                name: {"dtype": "BF16", "shape": [512, 512], "data_offsets": [n * MIB // 2, (n + 1) * MIB // 2]}
                for n, name in enumerate(part)
            }
            packed = json.dumps(header).encode()
            content = struct.pack("<Q", len(packed)) + packed + b"".join(map(raw, part.values()))
            (tmp_path / folder / f"model-{shard}.safetensors").write_bytes(content)

    first = store.put(tmp_path / "base", name="base")
    second = store.put(tmp_path / "tuned", name="tuned")
    assert first.blobs_new == 10 + 2 + 1  # tensors, headers of shards, config
    assert second.blobs_new == 2 + 3
    assert second.bytes_stored < 0.25 * first.bytes_stored
    assert_equal_tensors(store.get("tuned").tensors(), tuned)
    store.get_to("tuned", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "tuned")


def test_equal_tensors_of_one_file_are_stored_once(store: Store, tmp_path: Path) -> None:
    weight = noise(700, 700)
    copies = {name: weight.clone() for name in ("embed.weight", "lm_head.weight", "third")}
    safetensors.torch.save_file(copies, tmp_path / "tied.safetensors")
    put = store.put(tmp_path / "tied.safetensors", name="tied")
    assert put.blobs_new == 2  # header, weight
    assert put.bytes_stored < 0.4 * put.bytes_in
    assert_equal_tensors(store.get("tied").tensors(), copies)


def test_a_torch_file_shares_its_tensors_with_safetensors(store: Store, tmp_path: Path) -> None:
    weights = {f"layers.{n}.weight": noise(512, 512, seed=n) for n in range(4)}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    store.put(tmp_path / "model.safetensors", name="a")
    put = store.put(tmp_path / "pytorch_model.bin", name="b")
    assert put.blobs_reused == 4
    assert put.bytes_stored < 0.1 * put.bytes_in
    assert_equal_tensors(store.get("b").tensors(), weights)


def test_plane_stores_a_third_less_of_bf16_weights(store: Store) -> None:
    weights = {"w": noise(2048, 2048)}  # 8 MiB
    put = store.put(tensors=weights, name="w", codec="plane")
    assert put.bytes_stored < 0.72 * put.bytes_in
    plain = store.put(tensors={"w": noise(2048, 2048, seed=1)}, name="stored", codec="stored")
    assert plain.bytes_stored >= plain.bytes_in


def test_ctrl_c_in_a_put_of_one_blob_leaves_it_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "one.bin"
    source.write_bytes(np.random.default_rng(0).bytes(12 * MIB))
    disk = HookedDisk()
    written: list[Path] = []

    def interrupt_second_write(operation: str, path: Path) -> None:
        if operation == "write" and path.suffix == ".seg":
            written.append(path)
            if len(written) == 2:  # after the header of the segment, so it is the first part of the blob
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                time.sleep(0.05)  # Python raises it in the main thread meanwhile, wherever that is

    disk.hook = interrupt_second_write
    with Store(tmp_path / "store", disk=disk) as writing, pytest.raises(KeyboardInterrupt):
        writing.put(source, name="one")
    for segment, row in store._parts.catalog.segments().items():
        assert row.durable_bytes == (tmp_path / "store/segments" / f"{segment:016x}.seg").stat().st_size
    again = store.put(source, name="one")
    assert (again.blobs_reused, again.blobs_new) == (1, 0)
