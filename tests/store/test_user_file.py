"""User file: every file that a person names is opened without waiting, and a pipe of a shell is read whole."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore.store.user_file import open_user_file
from tests.support.stocked import cli, fails, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures

MODEL = ["--model", "m", "--revision", "r", "--precision", "bf16"]
PLACES: dict[str, tuple[list[str], int]] = {
    "tokens": (["kv", "match", "--tokens", "ODD", *MODEL], 2),
    "identity": (["put", "m", "x", "--identity", "ODD"], 2),
    "KV": (["kv", "put", "ODD", "x", "--tokens", "1,2", *MODEL], 2),
    "JOB": (["plan", "ODD"], 2),
    "requests": (["plan", "job.toml"], 2),
    "timeline": (["plan", "job.toml", "--plot", "x.svg", "--measured", "ODD"], 2),
    "tp-plan": (["get", "w", "out", "--shard", "0/2", "--tp-plan", "ODD"], 2),
    "new key file": (["--store", "new", "init", "--key-file", "ODD"], 12),
    "key file": (["ls"], 12),
    "passphrase": (["--store", "by-passphrase", "ls"], 12),
    "settings": (["ls"], 2),
}
UNREADABLE = ("tokens", "JOB", "requests", "timeline")  # a directory in their place is an I/O error
SETTINGS = {
    "key file": "ARSTORE_KEY_FILE",
    "passphrase": "ARSTORE_PASSPHRASE_FILE",
    "settings": "ARSTORE_CONFIG",
}
ODD: dict[str, Callable[[str], object]] = {
    "pipe": os.mkfifo,
    "directory": os.mkdir,
    "device": lambda name: Path(name).symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", PLACES)
def test_no_command_waits_for_what_is_no_file(
    stocked: Path, monkeypatch: pytest.MonkeyPatch, place: str, odd: str
) -> None:
    Path("secret").write_text("a good passphrase")
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", "secret")
    assert cli("--store", "by-passphrase", "init", "--passphrase").code == 0
    ODD[odd]("ODD")
    requests = "ODD" if place == "requests" else "requests"
    Path("job.toml").write_text(f'[job]\nto = "host"\nrequests = "{requests}"\n[budget]\nhost = "1GiB"\n')
    Path("requests").write_text('{"artifacts": ["w"]}\n')
    words, code = PLACES[place]
    if place in SETTINGS:
        monkeypatch.setenv(SETTINGS[place], "ODD")
    if (place, odd) == ("settings", "pipe"):  # nobody writes to it, so it holds no settings, like an empty file
        assert cli(*words).code == 0
        return
    fails(1 if odd == "directory" and place in UNREADABLE else code, *words)


def test_a_pipe_is_read_until_its_writer_closes_it(tmp_path: Path) -> None:
    out, into = os.pipe()
    named = tmp_path / "named"
    os.mkfifo(named)

    def write(path: str | Path) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(b"a" * 70_000)  # more than a pipe holds, so that it is written in parts

    for path, target in ((f"/dev/fd/{out}", f"/dev/fd/{into}"), (named, named)):
        hold = os.open(target, os.O_RDWR)  # a writer is there before the pipe is opened
        writer = threading.Thread(target=write, args=(target,))
        with open_user_file(path) as file:
            writer.start()
            assert file.read(70_000) == b"a" * 70_000
            writer.join()
            os.close(hold)
            os.close(into) if target != named else None
            assert file.read() == b""
    os.close(out)
