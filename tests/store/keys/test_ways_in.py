"""Ways in: what opens a store, what does not, and which way goes before which."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from arstore.store.access import open_store
from arstore.store.errors import KeyRefused
from tests.support.command import arstore
from tests.support.keyed import PASSPHRASE, command, contents, opens, readable, refused, root, source, stored, works

__all__ = ["root", "source", "stored"]  # fixtures


KEY_STATES = ("other", "shorter", "missing", "empty", "directory", "huge")


COMMANDS = ("ls", "put weights.safetensors m", "verify", "tenant ls", "stats")


@pytest.mark.parametrize(
    ("state", "words"), [*((state, "get m out") for state in KEY_STATES), *(("other", words) for words in COMMANDS)]
)
def test_a_wrong_key_file(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = stored.read_bytes()
    stored.unlink()
    if state == "directory":
        stored.mkdir()
    elif state != "missing":
        states = {"other": b"f" * 64, "shorter": secret[:63], "empty": b"", "huge": secret.strip() * 20_000}
        stored.write_bytes(states[state])
    line = refused(12, *words.split())
    assert str(stored) in line or "does not open this store" in line
    assert not (tmp_path / "out").exists()


def test_json_tells_of_a_wrong_key(stored: Path) -> None:
    stored.write_text("wrong")
    ran = arstore("ls", "--json")
    assert ran.code == ran.json["error"]["exit_code"] == 12
    assert ran.json["error"]["kind"] == "key-refused"


def test_the_key_file_may_be_moved(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.rename(tmp_path / "moved")
    refused(12, "ls")
    monkeypatch.setenv("ARSTORE_KEY_FILE", str(tmp_path / "moved"))
    works("get", "m", tmp_path / "out")


def test_a_passphrase(root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    assert arstore("init", "--passphrase").code == 2  # no terminal to ask on
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", str(file))
    assert works("init", "--passphrase", "--json").json["key_file"] is None
    opens(source)
    [stanza] = json.loads((root / "keys" / "stanzas.json").read_text())["stanzas"]
    assert (stanza["kind"], stanza["memory_kib"] >= 64 << 10, stanza["iterations"] >= 3) == ("passphrase", True, True)
    assert PASSPHRASE.encode() not in contents(root)

    file.write_text(PASSPHRASE)  # without its end of line it is the same
    works("ls")
    for wrong in (PASSPHRASE.upper(), f" {PASSPHRASE}", PASSPHRASE[:-1], "", "\n"):
        file.write_text(wrong)
        refused(12, "ls")
    file.unlink()
    assert str(file) in refused(12, "ls")
    monkeypatch.delenv("ARSTORE_PASSPHRASE_FILE")
    assert "no key was given" in refused(12, "ls")
    with open_store(passphrase=PASSPHRASE.encode()) as store:
        assert len(store.ls()) == 1
    with pytest.raises(KeyRefused):
        open_store(passphrase=b"something else")


def test_a_passphrase_that_is_too_short(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short").write_text("1234567")
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", str(tmp_path / "short"))
    assert "shorter than 8" in refused(2, "init", "--passphrase")
    assert not (root / "config.toml").exists()


def test_a_key_command(root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", command(tmp_path, "print('a secret from elsewhere')"))
    assert works("init", "--json").json["key_file"] is None
    opens(source)
    assert b"a secret from elsewhere" not in contents(root)
    assert b"key command.py" not in contents(root)
    works("ls")
    failing = "print('a secret from elsewhere'); sys.exit(1)"
    for body in ("print('another secret')", "sys.exit(3)", failing, "pass", "print()"):
        monkeypatch.setenv("ARSTORE_KEY_COMMAND", command(tmp_path, body))
        refused(12, "ls")
    for line in (str(tmp_path / "nothing here"), "'unbalanced", " ", str(tmp_path)):
        monkeypatch.setenv("ARSTORE_KEY_COMMAND", line)
        refused(12, "ls")
    monkeypatch.delenv("ARSTORE_KEY_COMMAND")
    assert "command" in arstore("ls").err


@pytest.mark.parametrize("body", ["sys.exit(3)", "pass"])
def test_a_key_command_that_fails_makes_no_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", command(tmp_path, body))
    assert "ARSTORE_KEY_COMMAND" in refused(12, "init")
    assert not (root / "config.toml").exists()


def test_a_key_command_is_no_shell(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "printf secret; touch shell-was-here $(touch shell-was-here)")
    arstore("init")
    assert not (tmp_path / "shell-was-here").exists()


def test_no_command_is_taken_from_inside_the_store(
    stored: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to a store can't have its users run anything."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "it-was-run"
    line = f"touch {marker}"
    config = (root / "config.toml").read_text()
    names = ("key_command", "command", "passphrase_command", "ARSTORE_KEY_COMMAND", "keycommand")
    more = "".join(f"{name} = {json.dumps(line)}\n" for name in names)
    (root / "config.toml").write_text(config + more + "".join(f"[{table}]\n{more}" for table in ("key", "keys", "env")))
    stanzas = json.loads((root / "keys" / "stanzas.json").read_text())
    salt = {"salt": "00" * 16, "sealed": "00" * 60}
    planted = [{"kind": kind, "command": line, "key_command": line, **salt} for kind in ("command", "passphrase", line)]
    alternatives: list[list[Any]] = [stanzas["stanzas"], []]
    for kept in alternatives:
        (root / "keys" / "stanzas.json").write_text(json.dumps(stanzas | {"stanzas": [*planted, *kept]}))
        for words in (("ls",), ("get", "m", "out"), ("verify",), ("init",)):
            arstore(*words)
    assert not marker.exists()
    # The same line from the environment is run.
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", line)
    refused(12, "ls")
    assert marker.exists()


def test_flags_go_before_the_environment_at_init(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARSTORE_KEY_FILE", str(tmp_path / "from-environment"))
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "false")
    made = works("init", "--key-file", tmp_path / "from-flag", "--json").json
    assert made["key_file"] == str(tmp_path / "from-flag")
    assert not (tmp_path / "from-environment").exists()
    monkeypatch.delenv("ARSTORE_KEY_FILE")
    opens(source)


def test_the_environment_goes_before_the_config(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = stored, tmp_path / "wrong"
    wrong.write_text("f" * 64)
    works("ls")  # the config names the right one
    monkeypatch.setenv("ARSTORE_KEY_FILE", str(wrong))
    refused(12, "ls")
    with open_store(key_file=right) as store:  # an argument goes before the environment
        assert len(store.ls()) == 1
    monkeypatch.setenv("ARSTORE_KEY_FILE", str(right))
    works("ls")
    with pytest.raises(KeyRefused):
        open_store(key_file=wrong)


def test_the_environment_makes_the_key_file_at_init(
    root: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARSTORE_KEY_FILE", str(tmp_path / "deep" / "key"))
    assert works("init", "--json").json["key_file"] == str(tmp_path / "deep" / "key")
    assert stat.S_IMODE((tmp_path / "deep" / "key").stat().st_mode) == 0o600
    monkeypatch.delenv("ARSTORE_KEY_FILE")
    opens(source)


def test_a_config_that_says_not_encrypted_lets_nothing_be_stored_in_the_clear(
    stored: Path, root: Path, tmp_path: Path
) -> None:
    config = (root / "config.toml").read_text()
    (root / "config.toml").write_text(config.replace("encrypted = true", "encrypted = false"))
    secret = tmp_path / "secret"
    secret.write_bytes(b"attack at dawn " * 1000)
    refused(12, "put", secret, "secret", "--codec", "stored")
    assert not any(b"attack at dawn" in held for held in readable(root))
    (root / "config.toml").write_text(config)
    assert len(works("ls", "--json").json["artifacts"]) == 1


def test_a_config_that_says_encrypted_where_it_is_not(root: Path, source: Path) -> None:
    works("init", "--no-encryption")
    opens(source)
    config = (root / "config.toml").read_text()
    (root / "config.toml").write_text(config.replace("encrypted = false", "encrypted = true"))
    refused(12, "ls")


def test_an_open_stanza_opens_no_encrypted_store(stored: Path, root: Path) -> None:
    path = root / "keys" / "stanzas.json"
    stanzas = json.loads(path.read_text())
    planted = {"kind": "open", "salt": "00" * 16, "master": "00" * 32}
    path.write_text(json.dumps(stanzas | {"stanzas": [planted, *stanzas["stanzas"]]}))
    works("verify")  # it is passed over
    path.write_text(json.dumps(stanzas | {"stanzas": [planted]}))
    refused(12, "ls")


def test_stanzas_of_another_store(stored: Path, root: Path, tmp_path: Path) -> None:
    """Sealed for one store id: the same key file does not make another store's stanzas do."""
    works("--store", tmp_path / "other", "init", "--key-file", stored)
    shutil.copyfile(tmp_path / "other" / "keys" / "stanzas.json", root / "keys" / "stanzas.json")
    refused(12, "ls")
