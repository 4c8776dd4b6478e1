"""What a command costs before it does anything, and while it works: memory that is its own, modules, and nothing else.

Memory that counts is anonymous and shared: pages of mapped files are the kernel's to take back.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from arstore import open_store
from tests.support.command import cli, ended, start
from tests.support.fresh_memory import fresh_memory

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path / "store"


def peak_bytes(*words: object) -> int:
    """Run a command to its good end and return the most memory of its own that it held."""
    process = start(*words)
    peak = 0
    while process.poll() is None:
        peak = max(peak, own_bytes(process.pid))
        time.sleep(0.002)
    assert ended(process).code == 0
    return peak


def own_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem") if name in fields)


def write_shards(folder: Path, shards_count: int, tensors_count: int, tensor_bytes: int) -> int:
    """Write a sharded checkpoint of random tensors and return its size in bytes."""
    folder.mkdir()
    values = np.random.default_rng(1)
    names: dict[str, str] = {}
    for shard in range(shards_count):
        file = f"model-{shard + 1:05}-of-{shards_count:05}.safetensors"
        tensors = {
            f"layers.{shard}.{n}": np.frombuffer(values.bytes(tensor_bytes), np.float16) for n in range(tensors_count)
        }
        save_file(tensors, folder / file)
        names |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return sum(path.stat().st_size for path in folder.iterdir())


def check_memory(folder: Path, limit_bytes: int) -> None:
    """Assert that putting and getting the checkpoint in `folder` takes less than the limit above doing nothing."""
    baseline = peak_bytes("ls")
    assert baseline > 5 * MIB, "memory is not measured"
    for words in (("put", folder, "model"), ("get", "model", folder.with_name("out"))):
        peak = peak_bytes(*words) - baseline
        print(f"{words[0]}: {peak / MIB:.0f} MiB")
        assert peak < limit_bytes, f"{words[0]} held {peak / MIB:.0f} MiB"
    for path in folder.iterdir():
        assert (folder.with_name("out") / path.name).stat().st_size == path.stat().st_size


def test_memory_of_a_small_checkpoint(store: Path, tmp_path: Path) -> None:
    """320 MiB: far more than the limit, which is what the workers hold and no share of the checkpoint."""
    assert write_shards(tmp_path / "model", 4, 5, 16 * MIB) > 300 * MIB
    check_memory(tmp_path / "model", 160 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize("tensor_mebibytes", [1, 64, 256])
def test_memory_of_a_large_checkpoint(store: Path, tmp_path: Path, tensor_mebibytes: int) -> None:
    size = write_shards(tmp_path / "model", 2, 512 // tensor_mebibytes, tensor_mebibytes * MIB)
    assert size > 1000 * MIB
    check_memory(tmp_path / "model", 512 * MIB)


# ---- listing

LIST = """
import sys
from arstore.cli.main import run

code = run(["--json", "ls"])
heavy = sorted({"torch", "numpy", "safetensors", "transformers"} & sys.modules.keys())
print(*heavy, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def quick_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store in memory where the machine can: thousands of puts are thousands of syncs."""
    with fresh_memory() as memory:
        monkeypatch.setenv("ARSTORE_STORE", str(memory / "store"))
        assert cli("init").code == 0
        yield


def put_many(folder: Path, count: int) -> None:
    source = folder / "source"
    with open_store() as opened:
        for n in range(count):
            source.write_text(f"content {n}")
            opened.put(source, name=f"models/{n:05}", kind="file")


def check_listing(count: int) -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, timeout=60, check=False)
    print(f"ls of {count}: {time.perf_counter() - started:.2f} s")
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == []
    listed = json.loads(done.stdout)["artifacts"]
    assert [one["name"] for one in listed] == [f"models/{n:05}" for n in range(count)]
    assert {one["version"] for one in listed} == {1}


@pytest.mark.usefixtures("quick_store")
def test_ls_of_many_artifacts_loads_nothing_heavy(tmp_path: Path) -> None:
    put_many(tmp_path, 2000)
    check_listing(2000)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_store")
def test_ls_of_ten_thousand_artifacts(tmp_path: Path) -> None:
    put_many(tmp_path, 10_000)
    check_listing(10_000)
