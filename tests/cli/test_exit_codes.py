"""Exit codes: each kind of error has its own, and says its line."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from arstore.cli.main import EXIT_CODES
from tests.support.stocked import COMMANDS, ERROR, cli, fails, holdings, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


def flip(store: Path) -> None:
    """Change one bit in the first tensor's record of a store that is not encrypted."""
    wanted = torch.arange(24.0).numpy().tobytes()
    for path in (store / "segments").iterdir():
        content = bytearray(path.read_bytes())
        if (at := content.find(wanted)) >= 0:
            content[at] ^= 1
            path.write_bytes(content)
            return
    raise AssertionError("no segment holds the tensor")


def test_exit_1_where_the_store_can_not_be_read(stocked: Path) -> None:
    (stocked / "config.toml").write_text("format = ")
    fails(1, "ls")


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"], ["put"], ["put", "m"], ["put", "m", "w", "extra"], ["ls", "--no-such-flag"], ["tenant"],
        ["ls", "--store"], ["get", "w", "out", "--layer"], ["init", "--no-encryption", "--passphrase"],
        ["completion", "tcsh"], ["verify", "--tier", "moon"], ["put", "m", "w", "--codec", "lz4"],
        ["put", "m", "w", "--kind", "wieghts"], ["put", "m", "w", "--kind", "kv"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_exit_2_where_it_is_used_wrong(stocked: Path, words: list[str]) -> None:
    before = holdings()
    fails(2, *words)
    assert holdings() == before


def test_the_program_alone_shows_its_help() -> None:
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: arstore ")
    assert "Commands:" in ran.err


def test_a_wrong_command_leads_to_the_list_of_right_ones(work: Path) -> None:
    assert "hint: run 'arstore --help'" in fails(2, "stor").err
    assert "hint: run 'arstore put --help'" in fails(2, "put").err
    assert "--store" in fails(2, "ls", "--store").error


@pytest.mark.parametrize(
    "words",
    [
        ["show", "x"], ["get", "x", "out"], ["rm", "x"], ["rm", "x", "--all-versions"], ["pin", "x"], ["unpin", "x"],
        ["tag", "x", "y"], ["verify", "x"], ["show", "w@2"], ["show", "w@label"], ["put", "nowhere", "y"],
        ["get", "w", "out", "--tensor", "nothing"], ["show", "0123456789abcdef"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_exit_3_where_there_is_none(stocked: Path, words: list[str]) -> None:
    before = holdings()
    fails(3, *words)
    assert holdings() == before
    assert not Path("out").exists()


@pytest.mark.parametrize("words", [w for name, (w, _) in COMMANDS.items() if name != "init"], ids=" ".join)
def test_exit_10_where_there_is_no_store(work: Path, words: list[str]) -> None:
    assert "arstore init" in fails(10, *words).err
    assert not Path(os.environ["ARSTORE_STORE"]).exists()


def test_exit_12_where_key_or_tenant_do_not_open_it(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("other.key").write_text("0" * 64)
    Path("empty.key").touch()
    for key in ("other.key", "empty.key", "nowhere.key", "."):
        monkeypatch.setenv("ARSTORE_KEY_FILE", key)
        fails(12, "ls")
    monkeypatch.delenv("ARSTORE_KEY_FILE")
    fails(12, "ls", "--tenant", "nobody")
    assert cli("ls").code == 0


def test_exit_13_where_it_is_corrupt(work: Path) -> None:
    store = Path(os.environ["ARSTORE_STORE"])
    cli("init", "--no-encryption")
    cli("put", "m", "w", "--codec", "stored")
    flip(store)
    first = cli("get", "w", "out")
    assert (first.code, first.out) == (13, "")
    assert "w@1" in first.error
    assert "segment" in first.error
    assert "quarantine" in fails(13, "get", "w", "out").error
    assert not Path("out").exists()

    # `verify` says what it found before it fails, in text and in JSON alike.
    ran = cli("verify")
    assert ran.code == 13
    assert "needed by w@1" in ran.out
    assert ERROR.fullmatch(ran.err)
    values = cli("verify", "--json").json
    assert [bad["artifacts"] for bad in values["corrupt"]] == [["w@1"]]
    assert values["error"]["exit_code"] == 13
    assert cli("verify", "--json", "--deep", "w").code == 13

    assert cli("put", "m", "w", "--json").json["blobs_new"] == 1  # as the hint says: that heals it
    assert cli("verify").code == 0
    assert cli("get", "w@1", "out").code == 0


def test_putting_a_label_again_heals_it_too(work: Path) -> None:
    cli("init", "--no-encryption")
    cli("put", "m", "w@release", "--codec", "stored")
    flip(Path(os.environ["ARSTORE_STORE"]))
    assert cli("verify").code == 13
    assert cli("put", "m", "w@release").code == 0
    assert cli("verify").code == 0
    assert [one["version"] for one in cli("ls", "--json").json["artifacts"]] == [1]


def test_exit_14_where_the_quota_is_full(stocked: Path) -> None:
    Path("large").write_bytes(np.random.default_rng(1).bytes(1 << 20))
    assert cli("tenant", "add", "small", "--quota", "256KiB").code == 0
    hint = fails(14, "put", "large", "x", "--tenant", "small").err.splitlines()[1]
    assert all(f"arstore {command}" in hint for command in ("erase", "rm", "gc"))
    assert cli("ls", "--json", "--tenant", "small").json == {"artifacts": []}
    assert cli("put", "a.txt", "x", "--tenant", "small").code == 0
    assert cli("get", "x", "out", "--tenant", "small").code == 0
    assert cli("put", "large", "x").code == 0  # the other tenants' room is their own


def test_exit_15_where_it_is_taken(stocked: Path) -> None:
    cli("put", "m", "w@release")
    before = holdings()
    fails(15, "put", "a.txt", "w@release")
    fails(15, "tag", cli("put", "a.txt", "notes", "--json").json["id"], "w@release")
    fails(15, "init", "--no-encryption")
    cli("tenant", "add", "team")
    fails(15, "tenant", "add", "team")
    cli("rm", "notes")
    assert holdings()[0] == before[0]


def test_every_kind_of_error_has_an_exit_code() -> None:
    assert sorted(EXIT_CODES.values()) == [1, 1, 2, 3, 10, 11, 12, 13, 14, 15]


def test_a_traceback_only_if_asked_for(stocked: Path) -> None:
    for words in (["show", "x", "-v"], ["--verbose", "show", "x"]):
        ran = cli(*words)
        assert ran.code == 3
        assert ran.err.startswith("arstore: error: show: x: no such name\n")
        assert "Traceback (most recent call last)" in ran.err
