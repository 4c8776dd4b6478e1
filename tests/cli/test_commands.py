"""Every command: one JSON object with the keys of the contract, data on stdout, talk on stderr, help."""

import re
from pathlib import Path

import pytest

from tests.support.command import Ran
from tests.support.stocked import COMMANDS, cli, fails, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_object_with_the_keys_of_the_contract(stocked: Path, command: str) -> None:
    words, keys = COMMANDS[command]
    ran = cli(*words, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("\n")
    assert ran.out.count("\n") == 1
    assert isinstance(ran.json, dict)
    assert keys <= ran.json.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_text_goes_to_stdout_and_talk_to_stderr(stocked: Path, command: str) -> None:
    words, _ = COMMANDS[command]
    ran = cli(*words)
    assert ran.code == 0
    assert ran.out.strip()
    assert all(line.startswith("arstore: ") for line in ran.err.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_says_nothing(stocked: Path, command: str) -> None:
    words, _ = COMMANDS[command]
    assert cli(*words, "-q") == Ran(0, "", "")


@pytest.mark.parametrize("command", [*COMMANDS, "completion"])
def test_every_command_has_help(work: Path, command: str) -> None:
    ran = cli(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.lower().startswith(f"usage: arstore {command} ")


def test_the_values_that_scripts_read(stocked: Path) -> None:
    put = cli("put", "m", "team/w@release", "--json", "--model", "tiny", "--revision", "r1", "--pin").json
    size = sum(path.stat().st_size for path in Path("m").iterdir())
    assert (put["name"], put["version"], put["label"]) == ("team/w", 1, "release")
    assert (put["bytes_in"], put["blobs_new"]) == (size, 0)
    assert put["blobs_reused"] == 4  # header, two tensors, config
    assert re.fullmatch("[0-9a-f]{64}", put["id"])

    first, second = cli("ls", "--json").json["artifacts"]
    assert (first["name"], first["model"], first["pinned"], first["kind"]) == ("team/w", "tiny", True, "weights")
    assert first["bytes"] == second["bytes"] == size
    assert (second["name"], second["model"], second["pinned"]) == ("w", None, False)
    assert first["id"] != second["id"]  # another identity is another artifact
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["created"])

    shown = cli("show", "team/w", "--json").json
    assert shown["identity"] == {"model": "tiny", "revision": "r1"}
    assert [file["path"] for file in shown["files"]] == ["config.json", "model.safetensors"]
    assert shown["tensors"][0]["name"] == "model.layers.0.weight"
    assert shown["tensors"][0]["shape"] == [4, 6]
    assert shown["tiers"]["local"]["bytes"] == sum(blob["bytes"] for blob in shown["blobs"]) == size

    got = cli("get", "team/w", "out", "--json").json
    assert (got["files"], got["bytes_out"], got["id"]) == (2, size, put["id"])
    assert got["bytes_read"] > 0
    assert cli("verify", "--json").json["corrupt"] == []


def test_ls_filters_by_name_and_kind(stocked: Path) -> None:
    cli("put", "a.txt", "team/notes")
    cli("put", "m", "team/m", "--kind", "intermediate")

    def names(*words: str) -> list[str]:
        return [one["name"] for one in cli("ls", "--json", *words).json["artifacts"]]

    assert names() == ["team/m", "team/notes", "w"]
    assert names("team/*") == ["team/m", "team/notes"]
    assert names("--kind", "file") == ["team/notes"]
    assert names("--kind", "weights") == ["w"]
    assert names("team/*", "--kind", "intermediate") == ["team/m"]
    assert names("nothing*") == []
    fails(2, "ls", "--kind", "weihgts")


def test_stats_for_prometheus(stocked: Path) -> None:
    lines = cli("stats", "--prometheus").out.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r'arstore_[a-z_]+\{tenant="default",tier="local"\} [0-9.e+]+', line) for line in samples)
    assert [f"# TYPE {line.partition('{')[0]} gauge" for line in samples] == lines[::2]
    assert 'arstore_artifacts{tenant="default",tier="local"} 1' in samples
