"""Workplace: one temporary directory on one disk, and what the sections need in it, made once, deleted at the end."""

import json
import os
import secrets
import shutil
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .checkpoint import write_checkpoint
from .processes import Failed, environment, run, run_arstore, warm

NAME = "bench/llama"
SCRIPTS = Path(__file__).resolve().parents[1]


@dataclass
class Workplace:
    """Where everything lies. What a section asks for first is made then, untimed."""

    folder: Path
    size: int
    rounds: int
    peers_python: Path | None
    no_peers: str  # why there is none
    trace: Path | None  # of requests, as JSON lines with hash_ids
    memory: Path  # the memory file system that is staged to
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = environment(self.folder, ARSTORE_STORE=str(self.folder / "store"))

    @cached_property
    def source(self) -> Path:
        """The checkpoint, as a user has it on disk, in the page cache."""
        folder = self.folder / "checkpoint"
        self.shape, self.tensor_bytes = write_checkpoint(folder, self.size)
        warm(sorted(folder.iterdir()))
        return folder

    @property
    def shards(self) -> list[Path]:
        return sorted(self.source.glob("*.safetensors"))

    @property
    def source_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.source.iterdir())

    @property
    def room_bytes(self) -> int:
        """Memory to have at hand before something is measured that fills fresh memory or page cache."""
        return self.source_bytes * 3 // 2

    @cached_property
    def store(self) -> Path:
        """An encrypted store that holds the checkpoint as NAME."""
        store = self.folder / "store"
        run_arstore(self.env, "init")
        run_arstore(self.env, "put", str(self.source), NAME)
        return store

    @property
    def segments(self) -> list[Path]:
        return sorted((self.store / "segments").iterdir())

    @contextmanager
    def fresh_store(self) -> Iterator[dict[str, str]]:
        """Make an empty encrypted store, yield the environment that leads to it, delete it."""
        with self.scratch("fresh") as folder:
            env = self.env | {"ARSTORE_STORE": str(folder / "store")}
            run_arstore(env, "init")
            yield env

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Make an empty directory, delete it with everything in it."""
        folder = self.folder / f"{name}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def host_tier(self) -> Iterator[None]:
        """Have programs stage into a directory of shared memory of their own; delete it."""
        with TemporaryDirectory(prefix="arstore-bench-", dir=self.memory) as folder:
            self.env["ARSTORE_HOST_DIR"] = folder
            yield

    def python(self, *, peers: bool) -> str:
        """Return the interpreter of arstore's or of the peers' environment; raise Failed if there is none."""
        if not peers:
            return sys.executable
        if self.peers_python is None:
            raise Failed(self.no_peers)
        return str(self.peers_python)

    def program(self, name: str, task: Mapping[str, object], *, peers: bool = False) -> tuple[float, dict[str, Any]]:
        """Run one of the programs with a task; return its wall time, start and imports included, and its answer."""
        path = [str(SCRIPTS), *([] if peers else self.env.get("PYTHONPATH", "").split(os.pathsep))]
        env = self.env | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        command = [self.python(peers=peers), "-P", "-m", f"benchmark.programs.{name}", json.dumps(task)]
        ran = run(command, env)
        return ran.seconds, ran.json()

    @cached_property
    def peer_keys(self) -> Path:
        """Keys for the encrypted formats of others: 32 bytes for one, a JSON Web Key Set for the other."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        def text(raw: bytes) -> str:
            return b64encode(raw).decode()

        signing = Ed25519PrivateKey.generate()
        public = signing.public_key().public_bytes_raw()
        seal = {"kty": "oct", "alg": "aes256gcm", "kid": "bench", "k": text(secrets.token_bytes(32))}
        sign = {
            "kty": "okp",
            "alg": "ed25519",
            "kid": "sign",
            "d": text(signing.private_bytes_raw()),
            "x": text(public),
        }
        path = self.folder / "peer-keys.json"
        path.write_text(json.dumps({"tensorizer": secrets.token_hex(32), "cryptotensors": [seal, sign]}))
        return path
