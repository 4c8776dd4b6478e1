"""The benchmark's own parts: the lock of the peers, what a row says, and the limits that stand beside it."""

import json
import os
import subprocess
import sys
import venv
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import arstore

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CONSTRAINTS = SCRIPTS / "constraints.txt"

# What the peers need in another version than arstore's own tools: botocore refuses python-dateutil 3 and newer.
APART = {"python-dateutil"}


@cache
def part(name: str) -> Any:
    """Return a module of scripts/benchmark, which is no part of the package."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return import_module(f"benchmark.{name}")
    finally:
        sys.path.remove(str(SCRIPTS))


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def pins(lock: Path) -> dict[str, str]:
    return {normal(name): version for name, version in part("peers").pins(lock).items()}


# --- the lock of the peers


def test_the_lock_pins_every_peer_and_what_is_compared_with_them() -> None:
    peers = part("peers")
    assert {*peers.PEERS, "torch", "numpy", "safetensors"} <= pins(peers.LOCK).keys()


def test_both_locks_agree_on_what_they_share() -> None:
    own, constraints = pins(part("peers").LOCK), pins(CONSTRAINTS)
    shared = own.keys() & constraints.keys()
    assert {"torch", "numpy", "safetensors"} <= shared
    assert {name for name in shared if own[name] != constraints[name]} == APART


def test_a_line_that_pins_nothing_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text('# a comment\n\nsix==1.17.0; python_version < "4"\n')
    assert part("peers").pins(lock) == {"six": "1.17.0"}
    for line in ("six", "six>=1.17.0"):
        lock.write_text(line)
        with pytest.raises(ValueError, match="unpack"):
            part("peers").pins(lock)


@pytest.mark.slow
def test_pip_resolves_the_peers_to_the_lock_and_nothing_else(tmp_path: Path) -> None:
    """It asks the package index what the peers need, and downloads no torch where the index tells metadata alone."""
    peers = part("peers")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    torch = f"torch=={pins(peers.LOCK)['torch']}+cpu"
    wanted = [torch, "numpy", "safetensors", "tensorizer", "cryptotensors[torch]"]
    command = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["-c", str(peers.LOCK), *wanted]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode and torch in done.stderr:  # no configured index has the CPU build
        command += ["--extra-index-url", peers.TORCH_INDEX]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    chosen = {normal(one["metadata"]["name"]): one["metadata"]["version"] for one in json.loads(done.stdout)["install"]}
    chosen["torch"] = chosen["torch"].removesuffix("+cpu")
    # Python 3.11.3 and newer need no async-timeout.
    assert chosen == {name: version for name, version in pins(peers.LOCK).items() if name in chosen}
    assert pins(peers.LOCK).keys() - chosen.keys() <= {"async-timeout"}


# --- what a row says

MACHINE = "AMD EPYC (family 25 model 17), 2 cores, no AVX-512, VAES"


def shown(*rows: Any) -> tuple[str, dict[str, Any]]:
    """Return rows as text and as JSON, seen on a machine whose one limit is 8 GB/s on two threads."""
    module = part("rows")
    samples = {threads: module.Samples((rate,)) for threads, rate in ((1, 4e9), (2, 8e9))}
    section = module.Section(1, "a title", MACHINE, list(rows), {module.AES: module.Limit(module.AES, samples)})
    return module.table(section), json.loads(json.dumps(module.as_json(section)))


def test_every_row_says_the_machine_that_it_was_seen_on() -> None:
    rows = part("rows")
    listed = [rows.Row("one", rows.Samples((1.0,))), rows.Row("two", None), rows.Row("three", rows.Samples((2.0, 3.0)))]
    text, answer = shown(*listed)
    assert text.count(f"seen on {MACHINE}") == len(listed)
    assert [row["machine"] for row in answer["rows"]] == [MACHINE] * len(listed)


def test_a_limit_stands_beside_the_rows_that_it_bounds_and_no_others() -> None:
    rows = part("rows")
    bound = rows.Row("bound", rows.Samples((0.5,)), bytes=2_000_000_000, bound_by=(rows.AES,))
    text, answer = shown(bound, rows.Row("free", rows.Samples((0.5,)), bytes=2_000_000_000))
    limit = "limit of AES-256-GCM: 4.00 GB/s on 1 thread, 8.00 GB/s on 2 threads; the row reaches 0.50 x of 2"
    assert text.count("limit of") == text.count(limit) == 1
    assert answer["limits"] == {"AES-256-GCM": {"threads_1": 4e9, "threads_2": 8e9}}
    assert [row["bound_by"] for row in answer["rows"]] == [["AES-256-GCM"], []]


def test_a_limit_that_wins_is_never_recommended() -> None:
    rows = part("rows")
    slow, fast = rows.Samples((3.0,)), rows.Samples((2.0,))
    limited = rows.compared("load", slow, "decrypting alone", fast, target=0.6, otherwise=None)
    assert (limited.verdict, limited.notes) == ("met", ())
    assert rows.compared("load", slow, "decrypting alone", fast, target=0.7, otherwise=None).verdict == "MISSED"
    assert rows.compared("load", slow, "a copy", fast, otherwise="where a copy will do").notes == (
        "a copy wins: use that where a copy will do",
    )


def test_the_machine_is_named_by_what_decides_its_speed() -> None:
    said = part("machine").name_machine()
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    assert f" {len(os.sched_getaffinity(0))} cores, " in said
    assert ("no AVX-512" in said) == ("avx512f" not in flags)
    assert ("no VAES" in said) == ("vaes" not in flags)


# --- the programs that measure limits


def program(name: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run a program of the benchmark with a task; return its answer."""
    command = [sys.executable, "-m", f"benchmark.programs.{name}", json.dumps(task)]
    path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_limits_of_the_machine_are_measured_on_one_thread_and_on_two() -> None:
    answer = program("limits", {"bytes": 32 << 20, "rounds": 2})
    assert answer.keys() == {"AES-256-GCM", "BLAKE3"}
    for rates in answer.values():
        assert rates.keys() == {"1", "2"}
        assert all(len(one) == 2 and min(one) > 1e6 for one in rates.values())


def test_a_load_into_a_reused_buffer_is_measured_beside_decrypting_and_reading(tmp_path: Path) -> None:
    root, weights = tmp_path / "store", tmp_path / "model.safetensors"
    write_safetensors(weights, 9 << 20)  # two blocks and a part of one
    arstore.create_store(root, encrypted=False)
    with arstore.open_store(root) as store:
        store.put(weights, name="model")
    answer = program("reuse", {"store": str(root), "name": "model", "paths": [str(weights)], "rounds": 2})
    assert answer["bytes"] == 9 << 20
    assert [len(answer[way]) for way in ("get", "decrypt", "read")] == [2, 2, 2]


def test_hashing_reads_files_that_end_within_a_piece(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes((16 << 20) + 1))
    assert program("hashing", {"paths": [str(tmp_path / "weights")]})["seconds"] > 0


def write_safetensors(path: Path, length: int) -> None:
    header = json.dumps({"weight": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + os.urandom(length))
