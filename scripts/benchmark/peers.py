"""Peers: a virtual environment of its own for the libraries that arstore is compared with, made on demand.

Invariant: it holds the lines of peers.txt and nothing else, so that pip has nothing to search for.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

LOCK = Path(__file__).with_name("peers.txt")
PEERS = ("tensorizer", "cryptotensors")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_SHOWN = ("torch", "numpy", "safetensors", *PEERS)
_ASK = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


class NoPeers(Exception):
    """The environment could not be made, or lacks something; the message is one line that says what."""


def make_peers(folder: Path, say: Callable[[str], None]) -> Path:
    """Return the interpreter of an environment in `folder` that holds the peers, made if it is not there yet.

    Raises NoPeers if pip can't install a line of the lock, or if the lock lacks what one of its lines needs.
    """
    python, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = "\n".join([sys.version, LOCK.read_text()])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"making {folder} with {' and '.join(PEERS)}, what they need, and torch's CPU build")
    venv.create(folder, clear=True, with_pip=True)
    torch = f"torch=={pins()['torch']}+cpu"
    try:
        _pip(python, "install", "--no-deps", torch)
    except NoPeers:
        _pip(python, "install", "--no-deps", "--index-url", TORCH_INDEX, torch)
    _pip(python, "install", "--no-deps", "-r", str(LOCK))
    _pip(python, "check")
    stamp.write_text(wanted)
    return python


def pins(lock: Path = LOCK) -> dict[str, str]:
    """Return the version of each package that a lock names; raise ValueError where a line pins none."""
    found: dict[str, str] = {}
    for line in lock.read_text().splitlines():
        requirement = line.partition(";")[0].strip()
        if requirement and not requirement.startswith("#"):
            name, version = requirement.split("==")
            found[name] = version
    return found


def peer_versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers; raise NoPeers if one is missing."""
    done = subprocess.run([str(python), "-c", _ASK, *_SHOWN], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoPeers(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _pip(python: Path, verb: str, *words: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", verb, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # `pip check` prints what it finds, `pip install` complains.
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        raise NoPeers(f"pip {verb} {' '.join(words)}: {lines[-1]}")
