"""Odd arguments and odd files: one line, the right exit code, and nothing stored."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from arstore import create_store
from tests.support.command import PATIENCE_S, arstore
from tests.support.stocked import PROGRAM, cli, fails, holdings, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


LONG = "x" * 5000


ODD: dict[str, tuple[list[str], int]] = {
    "an empty path": (["put", "", "x"], 2),
    "an empty name": (["put", "m", ""], 2),
    "an empty destination": (["get", "w", ""], 2),
    "an empty store": (["--store", "", "ls"], 2),
    "an empty store after =": (["ls", "--store="], 2),
    "an empty tenant": (["--tenant", "", "ls"], 2),
    "an empty model": (["put", "m", "x", "--model", ""], 2),
    "an empty glob": (["ls", ""], 2),
    "an empty selector": (["get", "w", "out", "--tensor", ""], 2),
    "a long path": (["put", LONG, "x"], 3),
    "a long part of a path": (["put", f"m/{'y' * 300}", "x"], 3),
    "a long name": (["show", LONG], 2),
    "a long destination": (["get", "w", LONG], 1),
    "a destination below a file": (["get", "w", "a.txt/x"], 1),
    "a directory on a file": (["get", "w", "a.txt"], 2),
    "a long store": (["--store", LONG, "ls"], 1),
    "a long tenant": (["--tenant", LONG, "ls"], 12),
    "a long new tenant": (["tenant", "add", LONG], 2),
    "a tenant with a space": (["tenant", "add", "a b"], 2),
    "a tenant with a slash": (["tenant", "add", "../a"], 2),
    "a long model": (["put", "m", "x", "--model", LONG], 2),
    "a long codec": (["put", "m", "x", "--codec", LONG], 2),
    "positions in reverse": (["put", "m", "x", "--positions", "9:3"], 2),
    "negative positions": (["put", "m", "x", "--positions=-1:3"], 2),
    "half of the positions": (["put", "m", "x", "--positions", "3"], 2),
    "a quota of words": (["tenant", "add", "t", "--quota", "lots"], 2),
    "a negative quota": (["tenant", "add", "t", "--quota=-1GB"], 2),
    "a quota of nothing": (["tenant", "add", "t", "--quota", "0"], 2),
    "a quota of 400 digits": (["tenant", "add", "t", "--quota", "9" * 400], 2),
    "an identity that is not there": (["put", "m", "x", "--identity", "nowhere"], 2),
    "an identity of no JSON": (["put", "m", "x", "--identity", "a.txt"], 2),
    "an identity of a list": (["put", "m", "x", "--identity", "LIST"], 2),
    "an unknown field of identity": (["put", "m", "x", "--identity", "UNKNOWN"], 2),
    "a field of nested values": (["put", "m", "x", "--identity", "NESTED"], 2),
    "a field with a NUL": (["put", "m", "x", "--identity", "NUL"], 2),
    "an identity of a deep nest": (["put", "m", "x", "--identity", "DEEP"], 2),
    "an identity of a directory without a model": (["put", "m", "x", "--identity", "bare"], 2),
    "a store in a file": (["--store", "a.txt", "ls"], 10),
    "a store below a file": (["--store", "a.txt/x", "ls"], 10),
    "a new store on a file": (["--store", "a.txt", "init"], 2),
    "a new store on other things": (["--store", "m", "init"], 2),
    "a key file inside the store": (["--store", "new", "init", "--key-file", "new/key"], 2),
    "a key file that is a directory": (["--store", "new", "init", "--key-file", "m"], 12),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_arguments_end_in_one_line_and_store_nothing(stocked: Path, what: str) -> None:
    files = {
        "LIST": "[1]", "UNKNOWN": '{"modle": "x"}', "NESTED": '{"model": ["x"]}', "NUL": '{"model": "a\\u0000"}',
        "DEEP": "[" * 100_000,
    }  # fmt: skip
    for name, text in files.items():
        Path(name).write_text(text)
    Path("bare").mkdir()
    before, names = holdings(), sorted(os.listdir())
    words, code = ODD[what]
    fails(code, *words)
    assert holdings() == before
    assert [name for name in sorted(os.listdir()) if name not in names and name != "new"] == []
    assert not Path("new/config.toml").exists()


def test_an_unknown_field_is_refused_by_name(stocked: Path) -> None:
    Path("identity.json").write_text(json.dumps({"model": "x", "flavour": "sweet"}))
    assert "'flavour'" in fails(2, "put", "m", "x", "--identity", "identity.json").error
    Path("identity.json").write_text(json.dumps({"model": "x", "layer": 3, "positions": "0:128", "rope": None}))
    assert cli("put", "m", "x", "--identity", "identity.json", "--model", "y").code == 0
    assert cli("show", "x", "--json").json["identity"] == {"layer": "3", "model": "y", "positions": "0:128"}


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


def make_link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


ODD_FILES: dict[str, tuple[Callable[[Path], None], int]] = {
    "a pipe": (os.mkfifo, 2),
    "a socket": (make_socket, 2),
    "a link to a pipe": (make_link_to_pipe, 2),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), 2),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), 3),
    "a link to itself": (lambda path: path.symlink_to(path.name), 2),
}


@pytest.mark.parametrize("what", ODD_FILES)
def test_what_is_no_file_is_refused_alone_and_in_a_directory(stocked: Path, what: str) -> None:
    make, code = ODD_FILES[what]
    Path("d").mkdir()
    Path("d/good").write_text("good")
    make(Path("d").absolute() / "odd")
    before = holdings()
    assert "d/odd" in fails(code, "put", "d/odd", "x").error
    assert "d/" in fails(code, "put", "d", "x").error
    assert holdings() == before


def test_a_link_to_a_directory_is_followed_only_where_it_is_named(stocked: Path) -> None:
    Path("link").symlink_to("m")
    by_name = cli("put", "link", "x", "--json").json
    assert by_name["id"] == cli("show", "w", "--json").json["id"]
    Path("d").mkdir()
    Path("d/link").symlink_to("../m")
    fails(2, "put", "d", "y")
    Path("d/link").unlink()
    Path("d/up").symlink_to("..")
    fails(2, "put", "d", "y")


@pytest.mark.parametrize(
    "name",
    ["a b", " ", "ü", "日本語.safetensors", "-rf", "--json", "new\nline", "tab\t", "*", "$HOME", "x" * 255],
    ids=ascii,
)
def test_files_of_any_name_come_back(store: Path, name: str) -> None:
    Path("d").mkdir()
    if name.endswith(".safetensors"):
        safetensors.torch.save_file({"ä": torch.ones(2)}, f"d/{name}")
    else:
        Path("d", name).write_text("content")
    wanted = Path("d", name).read_bytes()
    assert cli("put", "d", "x").code == 0
    assert cli("get", "x", "out").code == 0
    assert os.listdir("out") == [name]
    assert Path("out", name).read_bytes() == wanted
    assert cli("put", f"d/{name}", "y").code == 0
    Path("into").mkdir()
    assert cli("get", "y", "into").code == 0
    assert os.listdir("into") == [name]
    assert cli("show", "y", "--json").json["files"][0]["path"] == name
    assert cli("show", "y").code == 0


def test_a_name_that_is_no_text_is_refused(stocked: Path) -> None:
    Path("d").mkdir()
    name = os.fsdecode(b"latin-\xe9")
    Path("d", name).write_text("content")
    before = holdings()
    for path in ("d", f"d/{name}"):
        ran = fails(2, "put", path, "x")
        assert "UTF-8" in ran.error
        assert ran.error.isascii()
    assert holdings() == before
    # Elsewhere such a name is as good as any: a source's directory, a destination.
    Path(name).mkdir()
    Path(name, "plain").write_text("plain")
    assert cli("put", name, "x").code == 0
    Path(name + "2").mkdir()
    done = arstore("get", "w", name + "3")
    assert (done.code, done.err) == (0, "")
    assert Path(name + "3").is_dir()


def test_empty_files_and_directories(store: Path) -> None:
    Path("empty").mkdir()
    Path("zero").touch()
    put = cli("put", "empty", "e", "--json").json
    assert (put["bytes_in"], put["blobs_new"]) == (0, 0)
    assert cli("put", "zero", "z", "--json").json["blobs_new"] == 0
    assert cli("get", "e", "out", "--json").json["files"] == 0
    assert os.listdir("out") == []
    assert cli("get", "z", "out/zero", "--json").json["files"] == 1
    assert Path("out/zero").read_bytes() == b""
    fails(3, "get", "z", "other", "--tensor", "*")
    fails(3, "get", "e", "other", "--shard", "0/2")
    assert cli("verify").code == 0


def test_paths_however_they_are_written(stocked: Path) -> None:
    wanted = cli("show", "w", "--json").json["id"]
    for path in ("m/", "./m", "m/.", "m/../m", str(Path("m").absolute()), "m//"):
        assert cli("put", path, "x", "--json").json["id"] == wanted, path
    for dest in ("one/", "./two", "m/../three", str(Path("four").absolute())):
        assert cli("get", "w", dest).code == 0
        assert sorted(os.listdir(dest)) == ["config.json", "model.safetensors"]


def test_a_directory_that_can_not_be_read(stocked: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    Path("d/closed").mkdir(parents=True)
    Path("d/closed").chmod(0)
    fails(1, "put", "d", "x")
    Path("d/closed").chmod(0o700)
    Path("d/secret").touch(0)
    fails(1, "put", "d", "x")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "0<&- 2>&-", ">&- 2>&-", "0<&- >&- 2>&-"])
def test_no_file_of_the_store_takes_the_number_of_one_that_is_closed(tmp_path: Path, closed: str) -> None:
    create_store()
    looks = (
        "import os\nfrom arstore.cli.main import main\nfrom arstore.store.keys.keyring import Keyring\n"
        "real = Keyring.__init__\n"
        "def opened(self, *given):\n"
        "    real(self, *given)\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'w') as file:\n"
        "        file.write('\\n'.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))\n"
        "Keyring.__init__ = opened\nmain()\n"
    )
    command = shlex.join([sys.executable, "-c", looks, "ls"])
    ran = subprocess.run(["bash", "-c", f"{command} {closed}"], check=False, capture_output=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    seen = (tmp_path / "seen").read_text().splitlines()
    assert len(seen) == 3
    assert not [one for one in seen if one.startswith(str(tmp_path))]


@pytest.mark.parametrize("words", [["ls"], ["--json", "ls"], ["--json", "get", "nothing", "x"]])
def test_a_full_stdout_is_an_error_and_no_traceback(words: list[str]) -> None:
    create_store()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *words], check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S
        )
    assert done.returncode == (3 if "get" in words else 0 if words == ["ls"] else 1)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


PRINTS = {
    "init": ["init"],
    "put": ["put", "a.txt", "n"],
    "get": ["get", "w", "out"],
    "ls": ["ls"],
    "show": ["show", "w"],
    "pin": ["pin", "w"],
    "unpin": ["unpin", "w"],
    "tag": ["tag", "w", "t"],
    "tiers": ["tiers"],
    "unstage": ["unstage", "--all"],
    "verify": ["verify"],
    "gc": ["gc"],
    "repair": ["repair"],
    "stats": ["stats"],
    "prometheus": ["stats", "--prometheus"],
    "completion": ["completion"],
    "lease ls": ["lease", "ls", "--json"],
    "key rotate": ["key", "rotate", "--dry-run"],
    "tenant ls": ["tenant", "ls"],
    "rm": ["rm", "w", "--dry-run"],
    "erase": ["erase", "w", "--dry-run"],
    "help": ["--help"],
    "help of a command": ["ls", "--help"],
    "JSON": ["ls", "--json"],
}


@pytest.mark.parametrize("how", [">&-", ">/dev/full"])
@pytest.mark.parametrize("what", PRINTS)
def test_a_command_that_cannot_print_does_not_succeed(stocked: Path, what: str, how: str) -> None:
    usual = cli(*PRINTS[what])
    assert (usual.code, usual.out != "") == (0, True), usual.err
    command = shlex.join([*PROGRAM, *PRINTS[what]])
    done = subprocess.run(["bash", "-c", f"{command} {how}"], check=False, capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.decode().splitlines() if "error" in line]
    assert line.endswith("bad file descriptor" if how == ">&-" else "no space left on device")
    assert b"Traceback" not in done.stderr
    assert b"ignored" not in done.stderr


@pytest.mark.parametrize("how", [">&-", ">/dev/full"])
def test_a_command_that_prints_nothing_needs_no_output(stocked: Path, how: str) -> None:
    quiet = f"{shlex.join([*PROGRAM, '-q', 'pin', 'w'])} {how}"
    assert subprocess.run(["bash", "-c", quiet], check=False, timeout=PATIENCE_S).returncode == 0


@pytest.mark.parametrize("what", ["ls", "show", "help", "completion", "prometheus", "JSON"])
def test_a_reader_that_goes_away_ends_a_command_quietly(stocked: Path, what: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*PROGRAM, *PRINTS[what]]
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
