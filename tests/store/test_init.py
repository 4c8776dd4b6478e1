"""Init: a new store is encrypted with a key file outside it, and making it again changes nothing."""

import stat
from pathlib import Path

import pytest

from tests.support.command import cli
from tests.support.keyed import PASSPHRASE, contents, opens, refused, root, source, works

__all__ = ["root", "source"]  # fixtures


def test_a_new_store_is_encrypted_with_a_key_file_outside_it(root: Path, source: Path) -> None:
    made = works("init", "--json").json
    assert (made["store"], made["encrypted"]) == (str(root), True)
    key = Path(made["key_file"])
    assert not key.is_relative_to(root)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(key.read_text())) == 32
    assert key.read_text().strip().encode() not in contents(root)
    opens(source)
    for path in root.rglob("*"):
        allowed = 0o644 if path.name == "config.toml" else 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) & ~allowed == 0, path


def test_every_store_has_a_key_of_its_own(tmp_path: Path) -> None:
    keys = [Path(works("--store", tmp_path / name, "init", "--json").json["key_file"]) for name in ("a", "b")]
    assert keys[0] != keys[1]
    assert keys[0].read_text() != keys[1].read_text()


def test_init_again_changes_nothing(root: Path, source: Path) -> None:
    first = works("init", "--json").json
    opens(source)
    before = Path(first["key_file"]).read_bytes()
    assert works("init", "--json").json == first
    assert Path(first["key_file"]).read_bytes() == before
    works("verify")


@pytest.mark.parametrize("made", ["key-file", "passphrase", "command", "root-file", "--no-encryption"])
def test_init_of_a_store_that_was_made_otherwise_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    (tmp_path / "another").write_text("another passphrase")

    def init(how: str) -> tuple[object, ...]:
        monkeypatch.delenv("ARSTORE_KEY_COMMAND", raising=False)
        monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", str(tmp_path / how))
        if how == "command":
            monkeypatch.setenv("ARSTORE_KEY_COMMAND", "echo secret")
        ways: dict[str, tuple[object, ...]] = {
            "key-file": ("--key-file", tmp_path / "mine"),
            "passphrase": ("--passphrase",),
            "another": ("--passphrase",),
            "command": (),
            "root-file": ("--root-file", tmp_path / "root"),
            "--no-encryption": ("--no-encryption",),
        }
        return "init", "--json", *ways[how]

    first = works(*init(made)).json
    before = contents(root)
    assert works(*init(made)).json == first
    ways = {"key-file", "passphrase", "another", "command", "root-file", "--no-encryption"}
    for how in sorted(ways - {made}):
        ran = cli(*init(how))
        assert (ran.code, len(ran.err.splitlines()) <= 2) == (15, True), (how, ran)
        assert "is here already" in ran.error
    assert contents(root) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name in ("mine", "root")) == [
        name for how, name in (("key-file", "mine"), ("root-file", "root")) if how == made
    ]


def test_a_key_file_that_is_there_is_used_as_it_is(tmp_path: Path, root: Path, source: Path) -> None:
    key = tmp_path / "mine"
    key.write_bytes(b"any secret will do\n")
    works("init", "--key-file", key)
    assert key.read_bytes() == b"any secret will do\n"
    opens(source)


@pytest.mark.parametrize("inside", ["key", "keys/key", "../store/key"])
def test_a_key_file_inside_the_store_is_refused(root: Path, inside: str) -> None:
    assert "inside the store" in refused(2, "init", "--key-file", root / inside)
    assert not (root / "config.toml").exists()
    works("init")  # and is no obstacle to doing it right
