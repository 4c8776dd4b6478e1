"""Outputs: what a user asks for never replaces a device, a mount or a key file, and never goes into a store."""

import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from pathlib import Path

import pytest

from arstore import BadInput, Store, create_store, open_store
from arstore.store.config import read_config
from arstore.store.disk import Disk
from arstore.store.errors import StorageFailed
from arstore.store.outputs import Outputs
from tests.support.checkpoints import snapshot
from tests.support.command import PATIENCE_S, PROGRAM, cli
from tests.support.planning import write_speeds


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a file `f` and a directory `d`, whose names are those of a store's own files."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "store"
    monkeypatch.setenv("ARSTORE_STORE", str(root))
    create_store(root, key_file=tmp_path / "the.key")
    (tmp_path / "d" / "store" / "keys").mkdir(parents=True)
    (tmp_path / "d" / "store" / "keys" / "root").write_text("not a root")
    (tmp_path / "f").write_text("a text")
    with open_store(root) as store:
        store.put(tmp_path / "f", name="f")
        store.put(tmp_path / "d", name="d")
    return root


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with open_store(root) as opened:
        yield opened


def bind_socket(path: Path) -> None:
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def make_device(path: Path, kind: int, major: int, minor: int) -> None:
    if os.geteuid():
        pytest.skip("only root makes device nodes")
    os.mknod(path, kind | 0o666, os.makedev(major, minor))


def make_link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a socket": bind_socket,
    "a character device": lambda path: make_device(path, stat.S_IFCHR, 1, 3),  # as /dev/null is
    "a block device": lambda path: make_device(path, stat.S_IFBLK, 7, 250),  # a loop device that is not there
    "a link to a pipe": make_link_to_pipe,
    "a link to an open file": lambda path: path.symlink_to("/proc/self/fd/0"),  # as /dev/stdin is
}


# ---- what is no file


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("where", ["itself", "in a directory"])
def test_a_get_leaves_what_is_no_file(store: Store, tmp_path: Path, what: str, where: str) -> None:
    (tmp_path / "out").mkdir()
    place = tmp_path / "out" / "f"
    SPECIAL[what](place)
    before = place.lstat()
    with pytest.raises(BadInput, match="out/f: "):
        store.get_to("f", place if where == "itself" else place.parent)
    assert (place.lstat().st_mode, place.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert {path.name for path in place.parent.iterdir()} <= {"f", "pipe"}


@pytest.mark.parametrize("what", ["a socket", "a block device"])
def test_a_report_does_not_go_to_a_disk_or_a_socket(store: Store, tmp_path: Path, what: str) -> None:
    SPECIAL[what](tmp_path / "out")
    with pytest.raises(BadInput, match="out: is a "):
        store._parts.outputs.check_report(tmp_path / "out")


def test_a_report_goes_into_a_pipe_a_device_and_standard_output(root: Path, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nto = "host"\nweights = ["f"]\nrequests = "r.jsonl"\n')
    (tmp_path / "r.jsonl").write_text('{"id": 1, "artifacts": ["f"]}\n')
    write_speeds()
    os.mkfifo(tmp_path / "pipe")
    received = list[bytes]()
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    assert cli("plan", "job.toml", "--out", "pipe").code == 0
    reader.join(PATIENCE_S)
    assert "moves" in json.loads(received[0])
    command = [sys.executable, "-c", PROGRAM, "-q", "plan", "job.toml", "--out", "/dev/stdout"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    assert json.loads(done.stdout) == json.loads(received[0])
    with suppress(pytest.skip.Exception):
        make_device(tmp_path / "null", stat.S_IFCHR, 1, 3)
        assert cli("plan", "job.toml", "--out", "null").code == 0
        assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


# ---- stores


def ways_into(root: Path) -> Iterator[Path]:
    """Yield paths that lead into a store: as they are, through links, and upwards."""
    yield from (root, root / "config.toml", root / "new", root / "segments" / "0000000000000001.seg")
    yield from (root / "new" / "deep", root / ".." / "store" / "keys" / "root")
    link = root.parent / "link"
    link.symlink_to("store/keys")
    yield from (link, link / "root", root.parent / "d" / ".." / "link" / "new")
    (root.parent / "file-link").symlink_to(root / "config.toml")
    yield root.parent / "file-link"


def test_nothing_is_written_into_this_store_or_another(root: Path, tmp_path: Path) -> None:
    create_store(tmp_path / "other" / "store", key_file=tmp_path / "other.key")
    with open_store(tmp_path / "other" / "store") as store, open_store(root) as own:
        store.put(tmp_path / "f", name="f")
        kept, before = snapshot(root / "keys"), snapshot(tmp_path / "other" / "store" / "keys")
        for path in ways_into(root):
            for opened in (store, own):
                with pytest.raises(BadInput, match="lies in a store"):
                    opened.get_to("f", path)
                with pytest.raises(BadInput, match="lies in a store"):
                    opened._parts.outputs.check_report(path)
        with pytest.raises(BadInput, match="lies in a store"):
            own.get_to("d", tmp_path)  # the artifact holds a directory of the store's name
        assert snapshot(root / "keys") == kept
        assert snapshot(tmp_path / "other" / "store" / "keys") == before


@pytest.mark.parametrize(
    "words", [["plan", "job", "--out"], ["plan", "job", "--plot"], ["prefetch", "f", "--timeline"]]
)
def test_every_report_is_held_to_it(root: Path, words: list[str]) -> None:
    assert "lies in a store" in cli(*words, root / "x.svg").error
    assert not (root / "x.svg").exists()


def test_keys_and_stores_are_not_made_in_a_store(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root / "keys")
    for path in (root / "new", tmp_path / "link" / "new", tmp_path / "link" / "deep" / "new"):
        for flag in ("--key-file", "--root-file"):
            assert cli("init", "--store", tmp_path / "second", flag, path).code == 2
        assert cli("key", "rotate", "--key-file", path).code == 2
        assert cli("init", "--store", path).code == 2
        assert not path.exists()
    second = tmp_path / "second"
    (tmp_path / "to-second").symlink_to(second)
    assert cli("init", "--store", second, "--key-file", tmp_path / "to-second" / "key").code == 2
    assert cli("init", "--store", second, "--root-file", tmp_path / "to-second" / "root").code == 2
    assert not (second / "config.toml").exists()


def test_the_key_file_is_not_replaced(root: Path, store: Store, tmp_path: Path) -> None:
    secret = (tmp_path / "the.key").read_bytes()
    (tmp_path / "key-link").symlink_to("the.key")
    (tmp_path / "key-too").hardlink_to(tmp_path / "the.key")
    for name in ("the.key", "key-link", "key-too"):
        with pytest.raises(BadInput, match="needs this file"):
            store.get_to("f", tmp_path / name)
        with pytest.raises(BadInput, match="needs this file"):
            store._parts.outputs.check_report(tmp_path / name)
    assert (tmp_path / "the.key").read_bytes() == secret
    assert (tmp_path / "key-link").is_symlink()


# ---- mounts


def test_mounts_are_neither_replaced_nor_a_way_into_the_store(root: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount name space can be made here")
    (tmp_path / "file").write_text("mounted")
    (tmp_path / "out" / "store").mkdir(parents=True)
    (tmp_path / "away file").touch()
    (tmp_path / "there").mkdir()
    get = f"{shlex.join([sys.executable, '-c', PROGRAM])} get"
    script = (
        "mount --bind file 'away file' && mount --bind there out/store && mount --bind store/segments there || exit 9\n"
        f"{get} f 'away file'; echo $?; {get} d out; echo $?; {get} f there/new; echo $?"
    )
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", script], check=False, capture_output=True, timeout=PATIENCE_S)
    if ran.returncode == 9:
        pytest.skip("nothing can be mounted here")
    assert ran.stdout.split() == [b"2", b"2", b"2"], ran.stderr
    assert ran.stderr.count(b"mount of its own") == 2
    assert ran.stderr.count(b"lies in a store") == 1
    assert (tmp_path / "file").read_text() == "mounted"
    assert list((tmp_path / "out").rglob("*")) == [tmp_path / "out" / "store"]


def test_a_report_that_cannot_be_written_is_refused_before(root: Path, tmp_path: Path) -> None:
    outputs = Outputs(root, read_config(root), Disk())
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(StorageFailed):
            outputs.check_report(path)
    outputs.check_report(tmp_path / "new")
    assert not (tmp_path / "new").exists()
