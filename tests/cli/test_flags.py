"""Global flags and the environment: where they stand, and which goes before which."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support.command import Ran
from tests.support.stocked import cli, fails, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


def test_global_flags_stand_before_or_after_the_command(stocked: Path) -> None:
    wanted = cli("ls", "--json")
    assert wanted.json["artifacts"]
    store = str(stocked)
    for words in (
        ["--json", "ls"], ["ls", "--json"], ["--store", store, "ls", "--json"], [f"--store={store}", "--json", "ls"],
        ["ls", "--json", "--store", store], ["ls", f"--store={store}", "--json", "--tenant=default"],
        ["--tenant", "default", "ls", "w", "--json"], ["ls", "--json", "--", "w"],
    ):  # fmt: skip
        assert cli(*words) == wanted, words
    # Behind `--` they are plain words.
    assert cli("ls", "--", "--json") == Ran(0, "", "arstore: nothing matches\n")


def test_flags_beat_the_environment(stocked: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("tenant", "add", "team")
    monkeypatch.setenv("ARSTORE_TENANT", "team")
    cli("put", "a.txt", "of-team")
    assert cli("stats", "--json").json["tenant"] == "team"
    assert [one["name"] for one in cli("ls", "--json", "--tenant", "default").json["artifacts"]] == ["w"]
    monkeypatch.setenv("ARSTORE_TENANT", "nobody")
    fails(12, "ls")
    assert cli("ls", "--tenant", "team").code == 0
    monkeypatch.setenv("ARSTORE_STORE", str(work / "nowhere"))
    fails(10, "ls", "--tenant", "team")
    assert cli("ls", "--tenant", "team", "--store", stocked).code == 0


def test_without_a_place_the_store_is_in_the_data_home(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARSTORE_STORE")
    values = cli("init", "--json").json
    assert values["store"] == str(Path(os.environ["XDG_DATA_HOME"]) / "arstore")
    assert (Path(values["store"]) / "config.toml").exists()
    assert not Path(values["key_file"]).is_relative_to(values["store"])
    assert Path(values["key_file"]).is_relative_to(os.environ["XDG_CONFIG_HOME"])
    assert Path(values["key_file"]).stat().st_mode & 0o777 == 0o600


def test_the_environment_beats_the_config(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = Path(cli("init", "--json").json["key_file"])
    key.rename("moved.key")
    fails(12, "ls")
    monkeypatch.setenv("ARSTORE_KEY_FILE", "moved.key")
    assert cli("ls").code == 0
    shutil.copy("moved.key", key)
    Path("wrong.key").write_text("1" * 64)
    monkeypatch.setenv("ARSTORE_KEY_FILE", "wrong.key")
    fails(12, "ls")


def test_a_key_command_opens_what_it_made(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "printf 'a secret of %s' kms")
    assert cli("init", "--json").json["key_file"] is None
    assert cli("put", "m", "w").code == 0
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "printf another")
    fails(12, "ls")
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "false")
    fails(12, "ls")
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "no-such-program")
    fails(12, "ls")
    monkeypatch.delenv("ARSTORE_KEY_COMMAND")
    assert "ARSTORE_KEY_COMMAND" in fails(12, "ls").err


def test_a_passphrase_file_opens_what_it_made(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("passphrase").write_text("correct horse battery\n")
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", "passphrase")
    assert cli("init", "--passphrase", "--json").json == {
        "store": os.environ["ARSTORE_STORE"], "encrypted": True, "key_file": None, "root_file": None,
    }  # fmt: skip
    assert cli("put", "m", "w").code == 0
    Path("passphrase").write_text("correct horse buttery\n")
    fails(12, "ls")
    Path("passphrase").write_text("short")
    fails(2, "--store", "other", "init", "--passphrase")
