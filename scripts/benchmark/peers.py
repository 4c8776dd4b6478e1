"""Peers: a virtual environment of its own for the libraries that arstore is compared with, made on demand."""

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("tensorizer==2.12.1", "cryptotensors[torch]==0.2.3")
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_ASK = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("torch", "safetensors", "tensorizer", "cryptotensors")}))
"""


class NoPeers(Exception):
    """The environment could not be made, or lacks something; the message is one line that says what."""


def make_peers(folder: Path, constraints: Path, say: Callable[[str], None]) -> Path:
    """Return the interpreter of an environment in `folder` that holds the peers, made if it is not there yet."""
    python, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = "\n".join([sys.version, *PACKAGES, constraints.read_text()])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"making {folder} with {', '.join(PACKAGES)} and torch's CPU build")
    venv.create(folder, clear=True, with_pip=True)
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    try:
        _pip(python, "--no-deps", f"{torch}+cpu")
    except NoPeers:
        _pip(python, "--no-deps", "--index-url", _TORCH_INDEX, f"{torch}+cpu")
    _pip(python, "-c", str(constraints), "safetensors", "numpy", *PACKAGES)
    stamp.write_text(wanted)
    return python


def peer_versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers; raise NoPeers if one is missing."""
    done = subprocess.run([str(python), "-c", _ASK], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoPeers(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _pip(python: Path, *words: str) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise NoPeers(f"pip install {' '.join(words)}: {lines[-1]}")
