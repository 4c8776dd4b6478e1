"""Locales: file names are bytes to the system. In any locale the same names are stored, and the same come back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import PATIENCE_S, PROGRAM
from tests.support.planning import write_speeds
from tests.support.stocked import cli, store, work

__all__ = ["store", "work"]  # fixtures

NAMES = ["plain", "ü", "日本語", "caf\u00e9", "cafe\u0301", "\u0080\u009f", "😀"]
LATIN = "en_US.ISO-8859-1"


@pytest.fixture(params=["utf-8", "C", LATIN])
def locale(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a process in a locale whose encoding Python takes for file names."""
    name: str = request.param
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    if name == "utf-8":
        return {**kept, "PYTHONUTF8": "1"}
    if name == LATIN:
        made = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(tmp_path / name)]
        try:
            subprocess.run(made, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no such locale can be made here")
    return {**kept, "LOCPATH": str(tmp_path), "LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def ran(locale: dict[str, str], *words: str | bytes) -> bytes:
    """Run a command in a locale, with words as bytes; return what it printed."""
    command = [os.fsencode(sys.executable), b"-c", PROGRAM.encode()]
    command += [word if isinstance(word, bytes) else word.encode() for word in words]
    done = subprocess.run(command, check=False, capture_output=True, env=locale, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_tree(path: Path) -> dict[bytes, bytes]:
    """Make files in directories, one of each name, and return the bytes of each by its path in bytes."""
    made: dict[bytes, bytes] = {}
    for name in NAMES:
        folder = os.fsencode(path) + b"/" + name.encode()
        os.makedirs(folder)
        with open(folder + b"/" + name.encode() + b".bin", "wb") as file:
            file.write(name.encode())
        made[name.encode() + b"/" + name.encode() + b".bin"] = name.encode()
    return made


def tree_at(path: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found[os.path.relpath(os.path.join(folder, name), path)] = file.read()
    return found


def test_the_locale_is_what_it_says(locale: dict[str, str]) -> None:
    """Without this the tests below could pass by running in UTF-8."""
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"],
        check=True, capture_output=True, env=locale, text=True,
    )  # fmt: skip
    wanted = {None: "utf-8", "C": "ascii", LATIN: "iso8859-1"}
    assert shown.stdout.strip() == wanted[locale.get("LC_ALL")]


def test_what_is_put_in_a_locale_is_the_same_as_elsewhere(store: Path, locale: dict[str, str]) -> None:
    make_tree(Path("d"))
    ids = {json.loads(ran(locale, "put", "d", "there", "--json"))["id"], cli("put", "d", "here", "--json").json["id"]}
    assert len(ids) == 1
    for name in NAMES:
        path = f"d/{name}/{name}.bin"
        assert (
            json.loads(ran(locale, "put", path, "one", "--json"))["id"] == cli("put", path, "one", "--json").json["id"]
        )
    ran(locale, "show", "there")


def test_what_comes_back_in_a_locale_has_the_names_that_were_put(store: Path, locale: dict[str, str]) -> None:
    wanted = make_tree(Path("d"))
    assert cli("put", "d", "x").code == 0
    ran(locale, "get", "x", "out")
    ran(locale, "get", "x", "out")  # over what is there
    ran(locale, "get", "x", b"latin-\xe9/\xc3\xbc")
    assert tree_at(b"out") == tree_at(b"latin-\xe9/\xc3\xbc") == wanted
    for name in NAMES:
        cli("put", f"d/{name}/{name}.bin", "one")
        ran(locale, "get", "one", "into/")
    assert sorted(os.listdir(b"into")) == sorted(f"{name}.bin".encode() for name in NAMES)


def test_a_key_file_is_found_again_in_another_locale(store: Path, locale: dict[str, str]) -> None:
    ran(locale, "init", "--store", "second", "--key-file", "ü/日本.key", "--root-file", "ü/é.root")
    assert cli("ls", "--store", "second").code == 0
    ran(locale, "key", "rotate", "--store", "second", "--key-file", "ü/ö.key")
    assert cli("ls", "--store", "second").code == 0
    ran(locale, "ls", "--store", "second")
    assert cli("init", "--store", "third", "--key-file", os.fsdecode(b"\xff.key")).code == 2
    assert not Path("third/config.toml").exists()


def test_a_job_names_its_files_in_utf_8_in_every_locale(store: Path, locale: dict[str, str]) -> None:
    assert cli("put", "a.txt", "x").code == 0
    Path("job.toml").write_text('[job]\nto = "host"\nrequests = "ü.jsonl"\n', encoding="utf-8")
    Path("ü.jsonl").write_text('{"id": 1, "artifacts": ["x"]}\n')
    write_speeds()
    assert json.loads(ran(locale, "plan", "job.toml", "--json"))["order"] == [1]
    Path("é").mkdir()
    Path("é/key").write_bytes(Path(os.environ.get("ARSTORE_KEY_FILE") or json_key_file()).read_bytes())
    Path("settings.toml").write_text('key_file = "é/key"\n', encoding="utf-8")
    ran({**locale, "ARSTORE_CONFIG": "settings.toml"}, "ls")


def json_key_file() -> str:
    return str(cli("init", "--json").json["key_file"])


def test_a_name_that_the_destination_refuses_leaves_it_as_it_was(store: Path, tmp_path: Path) -> None:
    """A path that is too long at its place fails when most files are written already."""
    deep = Path("d")
    for _ in range(14):
        deep /= "x" * 255
    make_tree(Path("d"))
    parent = os.open("d", os.O_RDONLY)
    try:
        for _ in range(14):
            os.mkdir("x" * 255, dir_fd=parent)
            parent, above = os.open("x" * 255, os.O_RDONLY, dir_fd=parent), parent
            os.close(above)
        os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=parent))
    finally:
        os.close(parent)
    assert cli("put", "d", "x").code == 0
    out = Path("y" * 200, "y" * 200, "y" * 200)
    out.mkdir(parents=True)
    (out / "plain").mkdir()
    (out / "plain" / "plain.bin").write_text("older")
    ran_out = cli("get", "x", out.absolute())
    assert ran_out.code == 1, ran_out.err
    assert tree_at(os.fsencode(out)) == {b"plain/plain.bin": b"older"}
    assert os.listdir(out) == ["plain"]
