"""The benchmark's own parts: the lock of the peers, and what a row says."""

import json
import subprocess
import sys
import venv
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
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
    wanted: list[str] = [torch, "numpy", "safetensors", "tensorizer", "cryptotensors[torch]"]
    command: list[str] = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--report",
        "-",
    ]
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
