"""Rekeying: new ways in and a new master key, no data rewritten, and a store that opens whenever it is cut short."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arstore import BadInput, KeyRefused, Store
from arstore.formats.errors import FormatError
from arstore.formats.keypage import PAGE_BYTES, open_root
from arstore.store.config import default_store, read_config, root_path
from arstore.store.disk import Disk
from arstore.store.keys.unlock import Secrets, open_masters
from tests.support.command import cli
from tests.support.mortal_disk import Died, MortalDisk, deaths, killed
from tests.support.rotating import key_file, root

__all__ = ["root"]  # a fixture

PASSPHRASE = b"correct horse battery"


def readable(root: Path, held: Secrets | None = None) -> bool:
    """Say whether the store opens with the secrets held, alone; what it then gives must be whole."""
    try:
        with Store(root, held=held) as store:
            return store.verify().corrupt == () and len(store.ls()) == 1
    except KeyRefused:
        return False


def segments(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "segments").iterdir()}


def masters_with_roots(root: Path, secrets: list[Secrets]) -> int:
    """Count the master keys, of all that any of the secrets lead to, under which a root slot opens."""
    config = read_config(root)
    content = root_path(root, config).read_bytes()
    masters: set[bytes] = set()
    for held in secrets:
        try:
            masters |= set(open_masters(root / "keys", held, config.store_id, lambda: None))
        except KeyRefused:
            continue
    return sum(any(_opens(master, config.store_id, content, at) for at in (0, PAGE_BYTES)) for master in masters)


def _opens(master: bytes, store_id: bytes, content: bytes, at: int) -> bool:
    try:
        open_root(master, store_id, content[at : at + PAGE_BYTES])
    except FormatError:
        return False
    return True


def test_the_old_key_file_opens_nothing_after_a_rotation(tmp_path: Path, root: Path) -> None:
    old, before = key_file(root), segments(root)
    old_root = (root / "keys" / "root").read_bytes()
    made = Path(cli("--json", "key", "rotate").json["key_file"])
    assert made == key_file(root) != old
    assert made.stat().st_mode & 0o777 == 0o600
    assert segments(root) == before
    assert cli("get", "one", tmp_path / "out").code == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "file").read_bytes()
    assert not readable(root, Secrets(key_file=old))
    assert (root / "keys" / "root").read_bytes() != old_root
    assert masters_with_roots(root, [Secrets(key_file=old), Secrets(key_file=made)]) == 1


def test_the_old_key_file_is_refused_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = key_file(root)
    assert cli("key", "rotate").code == 0
    with monkeypatch.context() as patch:
        patch.setenv("ARSTORE_KEY_FILE", str(old))
        assert cli("ls").code == 12
    assert cli("ls").code == 0


def test_the_old_key_file_with_the_old_stanzas_opens_nothing_either(root: Path) -> None:
    old, stanzas = key_file(root), (root / "keys" / "stanzas.json").read_bytes()
    assert cli("key", "rotate").code == 0
    (root / "keys" / "stanzas.json").write_bytes(stanzas)
    with pytest.raises(Exception, match="no root of the key tree opens"):
        Store(root, held=Secrets(key_file=old))


def test_rotating_twice_leaves_one_master_and_three_files(root: Path) -> None:
    files = [key_file(root)]
    for _ in range(2):
        assert cli("key", "rotate").code == 0
        files.append(key_file(root))
    assert len(set(files)) == 3
    assert [readable(root, Secrets(key_file=file)) for file in files] == [False, False, True]
    assert len(json.loads((root / "keys" / "stanzas.json").read_text())["stanzas"]) == 1
    assert masters_with_roots(root, [Secrets(key_file=file) for file in files]) == 1


def test_a_key_file_of_the_callers_choice(tmp_path: Path, root: Path) -> None:
    chosen = tmp_path / "elsewhere" / "new.key"
    assert cli("key", "rotate", "--key-file", chosen).code == 0
    assert key_file(root) == chosen
    assert readable(root)
    before = chosen.read_bytes()
    assert cli("key", "rotate", "--key-file", chosen).code == 2  # an existing file is never taken
    assert chosen.read_bytes() == before
    assert readable(root)


def test_a_new_key_file_inside_the_store_is_refused(root: Path) -> None:
    assert cli("key", "rotate", "--key-file", root / "new.key").code == 2
    assert readable(root)


@pytest.fixture
def passphrase(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a passphrase that was added to the store, not in the environment any more."""
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE + b"\n")
    with monkeypatch.context() as patch:
        patch.setenv("ARSTORE_PASSPHRASE_FILE", str(file))
        before = segments(root)
        assert cli("key", "add-passphrase").code == 0
        assert segments(root) == before
    return file


def only_passphrase(tmp_path: Path) -> Secrets:
    (tmp_path / "wrong.key").write_text("00" * 32)
    return Secrets(tmp_path / "wrong.key", passphrase=PASSPHRASE)


@pytest.mark.usefixtures("passphrase")
def test_a_passphrase_opens_the_store_too(tmp_path: Path, root: Path) -> None:
    assert readable(root)
    assert readable(root, only_passphrase(tmp_path))
    assert not readable(root, replace(only_passphrase(tmp_path), passphrase=b"another one"))


def test_a_short_passphrase_is_refused(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short").write_bytes(b"seven77")
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", str(tmp_path / "short"))
    stanzas = (root / "keys" / "stanzas.json").read_bytes()
    assert cli("key", "add-passphrase").code == 2
    assert (root / "keys" / "stanzas.json").read_bytes() == stanzas


def test_a_rotation_keeps_the_passphrase_that_is_given(
    tmp_path: Path, root: Path, passphrase: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", str(passphrase))
    assert cli("key", "rotate").code == 0
    monkeypatch.delenv("ARSTORE_PASSPHRASE_FILE")
    assert readable(root)
    assert readable(root, only_passphrase(tmp_path))


@pytest.mark.usefixtures("passphrase")
def test_a_rotation_without_the_passphrase_changes_nothing(tmp_path: Path, root: Path) -> None:
    old, stanzas = key_file(root), (root / "keys" / "stanzas.json").read_bytes()
    assert cli("key", "rotate", "--dry-run").code == 2
    refused = cli("key", "rotate")
    assert refused.code == 2
    assert "passphrase" in refused.err
    assert key_file(root) == old
    assert (root / "keys" / "stanzas.json").read_bytes() == stanzas
    assert list(old.parent.iterdir()) == [old]
    assert readable(root, only_passphrase(tmp_path))


@pytest.mark.usefixtures("passphrase")
def test_a_rotation_can_drop_the_passphrase(tmp_path: Path, root: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = cli("--json", "key", "rotate", "--drop-others", "--dry-run").json
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (told["dropped"], told["dry_run"]) == (["passphrase"], True)
    assert "no longer with: passphrase" in cli("key", "rotate", "--drop-others", "--dry-run").out
    assert cli("--json", "key", "rotate", "--drop-others").json == told | {"dry_run": False}
    assert readable(root)
    assert not readable(root, only_passphrase(tmp_path))


def test_a_store_of_a_passphrase_alone_says_why_it_does_not_rotate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    assert cli("init", "--passphrase").code == 0
    assert cli("key", "rotate").code == 2
    assert cli("ls").code == 0


# ---- killed

Change = Callable[[Store], object]


def killed_everywhere(root: Path, tmp_path: Path, change: Change, check: Callable[[], None]) -> int:
    """Run a change once for every operation at which it can die, from the same start; check each time."""
    saved, keys = tmp_path / "saved", key_file(root).parent
    saved_keys = tmp_path / "saved-keys"
    shutil.copytree(root, saved)
    shutil.copytree(keys, saved_keys)
    count = 0
    for disk in deaths():
        for place, copy in ((root, saved), (keys, saved_keys)):
            shutil.rmtree(place)
            shutil.copytree(copy, place)
        store = Store(root, disk=disk)
        try:
            change(store)
        except Died:
            count += 1
        finally:
            store.close()
        check()
    return count


def test_a_rotation_that_is_killed_is_finished_at_the_next_open(tmp_path: Path, root: Path) -> None:
    old, before = key_file(root), segments(root)
    outcomes = set()

    def check() -> None:
        files = [Secrets(key_file=file) for file in old.parent.glob("*.key")]
        assert readable(root)  # with what the config names, old or new
        assert segments(root) == before
        stanzas = json.loads((root / "keys" / "stanzas.json").read_text())["stanzas"]
        assert masters_with_roots(root, files) == 1
        rotated = key_file(root) != old
        outcomes.add(rotated)
        if rotated:
            assert len({way["opens"] for way in stanzas}) == 1
            assert not any(way["kind"] == "previous" for way in stanzas)
            assert not readable(root, Secrets(key_file=old))
        with Store(root) as store:  # and it can be rotated, whatever was left lying about
            made = store.keys.rotate().key_file
        assert readable(root)
        assert not any(readable(root, held) for held in files if held.key_file != made)
        assert len(json.loads((root / "keys" / "stanzas.json").read_text())["stanzas"]) == 1

    assert killed_everywhere(root, tmp_path, lambda store: store.keys.rotate(), check) >= 20
    assert outcomes == {False, True}


def test_a_passphrase_that_was_added_by_half_takes_nothing_away(tmp_path: Path, root: Path) -> None:
    outcomes = set()

    def check() -> None:
        assert readable(root)
        outcomes.add(readable(root, only_passphrase(tmp_path)))
        assert cli("ls").code == 0

    def change(store: Store) -> None:
        store.keys.add_passphrase(PASSPHRASE)

    assert killed_everywhere(root, tmp_path, change, check) >= 5
    assert outcomes == {False, True}


def test_a_rotation_that_is_killed_keeps_the_passphrase(tmp_path: Path, root: Path, passphrase: Path) -> None:
    before = segments(root)

    saved_keys = tmp_path / "saved-keys"
    shutil.copytree(root, tmp_path / "saved")
    shutil.copytree(key_file(root).parent, saved_keys)
    config_key = key_file(root)
    for at in range(3, 30, 2):
        for place, copy in ((root, tmp_path / "saved"), (config_key.parent, saved_keys)):
            shutil.rmtree(place)
            shutil.copytree(copy, place)
        held = Secrets(passphrase_file=passphrase)
        with Store(root, held=held, disk=MortalDisk(at)) as store, contextlib.suppress(Died):
            store.keys.rotate()
        # Whoever has nothing but the passphrase finishes it, and whoever has the key file that the config names.
        assert readable(root, only_passphrase(tmp_path))
        assert readable(root)
        assert segments(root) == before


def test_rotation_needs_the_other_secrets_to_be_right(tmp_path: Path, root: Path, passphrase: Path) -> None:
    """A wrong passphrase that lies in the environment must not silently become the one that opens the store."""
    (tmp_path / "other").write_bytes(b"not the passphrase")
    with Store(root, held=Secrets(passphrase_file=tmp_path / "other")) as store, pytest.raises((BadInput, KeyRefused)):
        store.keys.rotate()
    assert readable(root, only_passphrase(tmp_path))


def test_a_rotation_that_is_killed_is_run_again_with_the_same_file(tmp_path: Path, root: Path) -> None:
    old, fresh = key_file(root), tmp_path / "elsewhere" / "new.key"
    shutil.copytree(root, tmp_path / "saved")

    def change(disk: Disk) -> None:
        with Store(root, disk=disk) as store:
            store.keys.rotate(fresh)

    left = set()
    for at in itertools.count(1):
        shutil.rmtree(fresh.parent, ignore_errors=True)
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "saved", root)
        died = killed(at, change)
        done = key_file(root) == fresh
        left.add((fresh.exists(), done))
        again = cli("key", "rotate", "--key-file", fresh)
        assert again.code == (2 if done else 0), again.err  # it was finished when the store was opened
        assert not done or "is this store's key file already" in again.error
        assert readable(root)
        assert readable(root, Secrets(key_file=fresh))
        assert not readable(root, Secrets(key_file=old))
        assert len(json.loads((root / "keys" / "stanzas.json").read_text())["stanzas"]) == 1
        if not died:
            break
    assert left == {(False, False), (True, False), (True, True)}


def test_a_key_file_of_somebody_else_is_never_taken(tmp_path: Path, root: Path) -> None:
    """Not even after a rotation was killed: only the file that it made is."""
    assert killed(6, lambda disk: Store(root, disk=disk).keys.rotate(tmp_path / "new.key"))
    for name, content in (("other.key", "ab" * 32), ("empty.key", "")):
        (tmp_path / name).write_text(content)
        assert cli("key", "rotate", "--key-file", tmp_path / name).code == 2
        assert (tmp_path / name).read_text() == content
    assert cli("key", "rotate", "--key-file", tmp_path).code == 2
    assert readable(root)


@pytest.mark.parametrize("words", [("gc",), ("key", "rotate")])
def test_what_a_killed_rotation_left_unfinished_is_swept(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert cli("init").code == 0
    root = default_store()
    left = [root / ".config.toml.0123456789ab", root / "keys" / ".stanzas.json.0123456789ab"]
    for path in left:
        path.write_bytes(b"half of it")
    assert cli(*words).code == 0
    assert not any(path.exists() for path in left)
    assert cli("ls").code == 0
