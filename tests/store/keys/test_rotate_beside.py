"""Rekeying beside others: one change of the ways in at a time, and whoever has the store open opens it again."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arstore import KeyRefused, Store, open_store
from arstore.store.disk import Disk
from arstore.store.keys.unlock import Secrets
from tests.support.command import arstore, cli, ended, start
from tests.support.rotating import key_file, root

__all__ = ["root"]  # a fixture

CHANGE = """
import sys
from arstore import Store, StoreError
from arstore.cli.main import EXIT_CODES
from arstore.store.config import default_store
from arstore.store.disk import Disk

def wait(said):
    print(said, flush=True)
    sys.stdin.readline()

class Pausing(Disk):
    def replace_file(self, path, content, mode=0o600):
        if path.name == "stanzas.json" and not Pausing.done:
            Pausing.done = True
            wait("under way")
        super().replace_file(path, content, mode)

passphrase, when = sys.argv[1:]
Pausing.done = when != "pausing"
with Store(default_store(), disk=Pausing()) as store:
    wait("opened")
    try:
        store.keys.add_passphrase(passphrase.encode()) if passphrase else store.keys.rotate()
    except StoreError as error:
        print(error, flush=True)
        sys.exit(EXIT_CODES[type(error)])
"""

ROTATE, ADD_ONE, ADD_TWO = "", "the first passphrase", "the second passphrase"


def ways_in(root: Path) -> set[str]:
    """Name every key file, and of the passphrases every one, that opens the store and reads all that it holds."""
    nothing = root.with_name("no.key")
    nothing.write_text("00" * 32)
    held = {path.name: Secrets(path) for path in key_file(root).parent.iterdir()}
    held |= {one: Secrets(nothing, passphrase=one.encode()) for one in (ADD_ONE, ADD_TWO)}
    return {name for name, one in held.items() if opens(root, one)}


def opens(root: Path, held: Secrets) -> bool:
    try:
        with Store(root, held=held) as store:
            assert [found.summary.name for found in store.ls()] == ["one"]
            assert store.verify(deep=True).corrupt == ()
    except KeyRefused:
        return False
    return True


class Change:
    """A process that has opened the store and is to change its ways in."""

    def __init__(self, passphrase: str, *, pausing: bool) -> None:
        command = [sys.executable, "-c", CHANGE, passphrase, "pausing" if pausing else "at once"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear("opened")

    def hear(self, said: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == f"{said}\n"

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def code(self) -> int:
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.mark.parametrize(
    ("first", "second", "code", "stays"),
    [
        (ROTATE, ROTATE, 15, set()),
        (ROTATE, ADD_ONE, 15, set()),
        (ADD_ONE, ROTATE, 2, {ADD_ONE}),  # which would lose a passphrase that it was not given
        (ADD_ONE, ADD_TWO, 0, {ADD_ONE, ADD_TWO}),
    ],
    ids=["rotate-rotate", "rotate-add", "add-rotate", "add-add"],
)
def test_one_change_waits_for_the_other(root: Path, first: str, second: str, code: int, stays: set[str]) -> None:
    before = key_file(root)
    one, other = Change(first, pausing=True), Change(second, pausing=False)
    one.go_on()
    one.hear("under way")
    other.go_on()
    with pytest.raises(subprocess.TimeoutExpired):
        other.process.wait(timeout=0.7)
    one.go_on()
    assert (one.code(), other.code()) == (0, code)
    assert (key_file(root) == before) == (first != ROTATE)
    assert ways_in(root) == {key_file(root).name, *stays}


def test_many_changes_at_once_leave_one_key_file(root: Path, tmp_path: Path) -> None:
    """Whoever is refused, for the key that it opened with is old, lost nothing and may try again."""
    codes: list[int] = []
    for _ in range(2):
        running = [start("key", "rotate") for _ in range(3)] + [start("ls"), start("verify")]
        codes += [ended(process).code for process in running]
        assert ways_in(root) == {key_file(root).name}
    assert set(codes) <= {0, 12, 15}
    assert 0 in codes
    assert arstore("put", tmp_path / "file", "one").code == 0


class Overtaken(Disk):
    """Rotates the key when an open has its master key and goes on to the key tree, once."""

    done = False

    def open(self, path: Path, *, create: bool = False, direct: bool = False, mode: int = 0o600) -> int:
        if path.name == "pages" and not self.done:
            self.done = True
            assert arstore("key", "rotate").code == 0
        return super().open(path, create=create, direct=direct, mode=mode)


def test_an_open_that_a_rotation_overtakes_calls_nothing_damaged(root: Path) -> None:
    Store(root, disk=Overtaken()).close()


# ---- a store that is open meanwhile

VERBS: dict[str, Callable[[Store, Path], object]] = {
    "put": lambda store, path: store.put(path / "file", name="two"),
    "get": lambda store, path: store.get_to("one", path / "out"),
    "verify": lambda store, path: store.verify(deep=True),
    "rm": lambda store, path: store.rm("one"),
    "erase": lambda store, path: store.erase("one"),
    "tag": lambda store, path: store.tag("one", "two"),
    "tenant": lambda store, path: store.tenants.add("team"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_that_is_open_says_that_the_key_is_another(root: Path, tmp_path: Path, verb: str) -> None:
    """It never takes what it can't open any more for damaged."""
    with open_store() as opened:
        assert cli("key", "rotate").code == 0
        with pytest.raises(KeyRefused, match="rotated meanwhile"):
            VERBS[verb](opened, tmp_path)
    with open_store() as again:
        assert again.stats().quarantined_blobs == 0
        assert [found.summary.name for found in again.ls()] == ["one"]
        assert [tenant.name for tenant in again.tenants.all()] == ["default"]
        VERBS[verb](again, tmp_path)
        assert again.verify(deep=True).corrupt == ()


def test_a_command_that_waited_while_the_key_was_rotated(root: Path, tmp_path: Path) -> None:
    with open_store() as owner:
        parts = owner._parts
        with parts.leases.hold(parts.catalog.scope("two"), "put", 0):
            waiting = start("put", tmp_path / "file", "two", "--lock-wait", "60s")
            while not has_open(waiting.pid, root / "catalog" / "data.mdb"):
                assert waiting.poll() is None
                time.sleep(0.01)
            assert arstore("key", "rotate").code == 0
    refused = ended(waiting)
    assert refused.code == 12
    assert "open the store again" in refused.err
    assert ways_in(root) == {key_file(root).name}
    assert arstore("put", tmp_path / "file", "two").code == 0


def has_open(pid: int, path: Path) -> bool:
    try:
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
