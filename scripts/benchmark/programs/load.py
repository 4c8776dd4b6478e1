"""Load a checkpoint in a fresh process, in one of several ways, and say how long it took once everything was imported.

Runs in arstore's environment or, for `tensorizer` and `cryptotensors`, in the peers'. The task is a JSON object:
`how`, `paths`, `keys` (a file), `store`, `name`, `room` (bytes of memory to have at hand before). The answer:
`seconds`, and `tensors`, `bytes` and `sample`, by which loads are compared.
"""

import json
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmark.programs.answers import answer, import_all_of_arstore
from benchmark.programs.memory import back

Tensors = Mapping[str, Any]
Load = Callable[[], Tensors]


def arstore_load(task: dict[str, Any]) -> Load:
    import numpy  # noqa: F401
    import torch  # noqa: F401

    import arstore

    import_all_of_arstore()

    def load() -> Tensors:
        # The store stays open until the process ends; the tensors do not need it.
        return arstore.open_store(task["store"]).get(task["name"]).tensors()

    return load


def safetensors_clone(task: dict[str, Any]) -> Load:
    from safetensors.torch import load_file

    def load() -> Tensors:
        return {name: t.clone() for path in task["paths"] for name, t in load_file(path).items()}

    return load


def safetensors_mmap(task: dict[str, Any]) -> Load:
    from safetensors.torch import load_file

    return lambda: {name: t for path in task["paths"] for name, t in load_file(path).items()}


def torch_load(task: dict[str, Any]) -> Load:
    # The house runs no pickles of others; this file was written by the benchmark, and `weights_only` runs none either.
    from torch import load as load_weights

    return lambda: {name: t for path in task["paths"] for name, t in load_weights(path, weights_only=True).items()}


def tensorizer_load(task: dict[str, Any]) -> Load:
    from tensorizer import DecryptionParams, TensorDeserializer

    key = bytes.fromhex(json.loads(Path(task["keys"]).read_text())["tensorizer"])

    def load() -> Tensors:
        opened = TensorDeserializer(task["paths"][0], device="cpu", encryption=DecryptionParams.from_key(key))
        return {name: opened[name].detach() for name in opened}

    return load


def cryptotensors_load(task: dict[str, Any]) -> Load:
    import cryptotensors
    from cryptotensors.torch import load_file

    def load() -> Tensors:
        keys = json.loads(Path(task["keys"]).read_text())["cryptotensors"]
        cryptotensors.register_direct_key_provider(keys=keys)
        return {name: t for path in task["paths"] for name, t in load_file(path).items()}

    return load


WAYS: dict[str, Callable[[dict[str, Any]], Load]] = {
    "arstore": arstore_load,
    "safetensors + clone": safetensors_clone,
    "safetensors mmap": safetensors_mmap,
    "torch.load": torch_load,
    "tensorizer": tensorizer_load,
    "cryptotensors": cryptotensors_load,
}


def sample(tensors: Tensors) -> int:
    """Return a checksum of both ends of every tensor, by name."""
    import torch

    check = 0
    for name in sorted(tensors):
        raw = tensors[name].reshape(-1).view(torch.uint8)
        ends = torch.cat([raw[:64], raw[-64:]]).numpy().tobytes()
        check = zlib.crc32(name.encode() + ends, check)
    return check


def measure(task: dict[str, Any]) -> dict[str, object]:
    load = WAYS[task["how"]](task)
    back(task["room"])
    began = time.perf_counter()
    tensors = load()
    seconds = time.perf_counter() - began
    total = sum(t.nbytes for t in tensors.values())
    return {"seconds": seconds, "tensors": len(tensors), "bytes": total, "sample": sample(tensors)}


if __name__ == "__main__":
    answer(measure)
