"""The command line as users script against it: JSON keys, exit codes, errors, environment, and odd arguments.

Most commands run in this process, through the same `run` that the program calls; a process of its own is started
where the process is the point: pipes, terminals, signals, prompts.
"""

import contextlib
import io
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from blake3 import blake3

from arstore import create_store, open_store
from arstore.cli.main import EXIT_CODES, run
from arstore.formats.manifest import Manifest
from tests.support.command import PATIENCE_S, Ran, arstore, resume, stopped

PROGRAM = [sys.executable, "-c", "from arstore.cli.main import main; main()"]
ERROR = re.compile(r"arstore: error: [^\n]+\n(arstore: hint: [^\n]+\n)?")


def cli(*words: object) -> Ran:
    """Run one command in this process, as `main` runs it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in words])
    return Ran(code, out.getvalue(), err.getvalue())


def fails(code: int, *words: object) -> Ran:
    """Run a command that must fail with `code` in one line and perhaps a hint, and again for the same in JSON."""
    text = cli(*words)
    assert text.code == code, text
    assert text.out == ""
    assert ERROR.fullmatch(text.err), text.err
    with_json = cli("--json", *words)
    assert with_json.code == code, with_json
    assert with_json.err == text.err
    error = with_json.json["error"]
    assert error.keys() == {"kind", "message", "hint", "exit_code"}
    assert error["exit_code"] == code
    lines = [f"arstore: error: {error['message']}".replace("\n", " ")]
    assert text.err.splitlines() == lines + ([f"arstore: hint: {error['hint']}"] if error["hint"] else [])
    return text


def holdings() -> tuple[object, ...]:
    """Return what the store holds, as a user sees it: every version and pin, and how many blobs of how many bytes."""
    stats = cli("stats", "--json").json
    return cli("ls", "--json").json["artifacts"], stats["blobs"], stats["stored_bytes"], stats["unreferenced_bytes"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the test, outside of every store, with a checkpoint `m` and a text file `a.txt`."""
    path = tmp_path / "work"
    (path / "m").mkdir(parents=True)
    monkeypatch.chdir(path)
    weights = {f"model.layers.{n}.weight": torch.arange(24.0).reshape(4, 6) + n for n in range(2)}
    safetensors.torch.save_file(weights, path / "m" / "model.safetensors")
    (path / "m" / "config.json").write_text('{"hidden_size": 6}')
    (path / "a.txt").write_text("a text")
    return path


@pytest.fixture
def store(work: Path) -> Path:
    """An empty store at `$ARSTORE_STORE`."""
    assert cli("init").code == 0
    return Path(os.environ["ARSTORE_STORE"])


@pytest.fixture
def stocked(store: Path) -> Path:
    """A store with the checkpoint as `w@1`."""
    assert cli("put", "m", "w").code == 0
    return store


# ---- every command


COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "init": (["init"], {"store", "encrypted", "key_file"}),
    "put": (
        ["put", "m", "w2"],
        {"name", "version", "id", "bytes_in", "bytes_stored", "blobs_new", "blobs_reused", "seconds"},
    ),
    "get": (["get", "w", "out"], {"name", "version", "id", "files", "bytes_out", "bytes_read", "seconds"}),
    "ls": (["ls"], {"artifacts"}),
    "show": (["show", "w"], {"name", "version", "id", "identity", "files", "tensors", "blobs", "tiers"}),
    "rm": (["rm", "w"], {"removed"}),
    "pin": (["pin", "w"], {"name", "version", "id", "pinned"}),
    "unpin": (["unpin", "w"], {"name", "version", "id", "pinned"}),
    "tag": (["tag", "w", "w2"], {"name", "version", "id"}),
    "verify": (["verify"], {"checked", "corrupt", "healed"}),
    "stats": (["stats"], {"artifacts", "blobs", "stored_bytes", "dedup_ratio", "tenant"}),
    "tenant add": (["tenant", "add", "team"], {"tenant"}),
    "tenant ls": (["tenant", "ls"], {"tenants"}),
}  # fmt: skip


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


# ---- exit codes


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
    assert sorted(EXIT_CODES.values()) == [1, 2, 3, 10, 11, 12, 13, 14, 15]


def test_a_traceback_only_if_asked_for(stocked: Path) -> None:
    for words in (["show", "x", "-v"], ["--verbose", "show", "x"]):
        ran = cli(*words)
        assert ran.code == 3
        assert ran.err.startswith("arstore: error: show: x: no such name\n")
        assert "Traceback (most recent call last)" in ran.err


# ---- global flags and the environment


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


# ---- prompts, terminals, pipes, signals


def test_nothing_is_asked_without_a_terminal(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("passphrase").write_text("correct horse battery")
    monkeypatch.setenv("ARSTORE_PASSPHRASE_FILE", "passphrase")
    cli("init", "--passphrase")
    monkeypatch.delenv("ARSTORE_PASSPHRASE_FILE")
    for words, code in ((["ls"], 12), (["--store", "other", "init", "--passphrase"], 2)):
        # Its input is a pipe that never ends: to wait for an answer would be to wait for ever.
        done = subprocess.run(
            [*PROGRAM, *words], stdin=subprocess.PIPE, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == code
        assert ERROR.fullmatch(done.stderr), done.stderr
        assert done.stdout == ""


def at_terminal(words: list[str], answers: list[str]) -> tuple[int, str, str]:
    """Run a command at a terminal; return its exit code, what it showed, and what went to its stdout, a pipe.

    Each answer is typed once another prompt has appeared: what is typed before is flushed away.
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, *words], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, start_new_session=True
    ) as process:
        os.close(theirs)
        shown, typed = "", 0
        while select.select([ours], [], [], 30)[0]:
            try:
                shown += os.read(ours, 4096).decode()
            except OSError:  # the other end is closed
                break
            if typed < len(answers) and shown.count("passphrase: ") > typed:
                os.write(ours, answers[typed].encode() + b"\n")
                typed += 1
        else:
            process.kill()
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, shown, out


def test_a_passphrase_is_asked_for_at_a_terminal(work: Path) -> None:
    secret = "correct horse battery"
    code, shown, _ = at_terminal(["init", "--passphrase"], [secret, "another horse"])
    assert code == 2
    assert "do not match" in shown
    code, shown, out = at_terminal(["init", "--passphrase", "--json"], [secret, secret])
    assert code == 0
    assert json.loads(out)["encrypted"] is True
    assert secret not in shown  # it is not echoed
    code, shown, out = at_terminal(["ls", "--json"], [secret])
    assert (code, json.loads(out)) == (0, {"artifacts": []})
    code, shown, out = at_terminal(["ls"], ["wrong horse battery"])
    assert (code, out) == (12, "")
    assert "arstore: error: ls: key: " in shown


def test_progress_is_shown_at_a_terminal_and_nowhere_else(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    Path("large").write_bytes(np.random.default_rng(1).bytes(8 << 20))
    code, shown, out = at_terminal(["put", "large", "x"], [])
    assert code == 0
    assert "8.4/8.4 MB" in shown
    assert out.startswith("x@1 ")
    code, shown, out = at_terminal(["put", "large", "x", "--quiet"], [])
    assert (code, shown, out) == (0, "", "")
    piped = arstore("put", "large", "x")
    assert (piped.code, piped.err) == (0, "")
    assert piped.out.count("\n") == 1


def test_init_keeps_its_advice_out_of_the_data(work: Path) -> None:
    ran = arstore("init")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["store", "encrypted", "key_file"]
    assert re.fullmatch(r"arstore: back up /\S+\.key: without it nothing in this store can be read\n", ran.err)


def test_a_reader_that_leaves_early_is_no_error(stocked: Path) -> None:
    with open_store() as store:
        store.tag("w", "another")
    script = " ".join(f'"{word}"' for word in PROGRAM)
    # The reader is gone before the first line is written: what fits into the pipe's buffer would be no test.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        ["sh", "-c", f'{script} ls; echo "[$?]" >&2'],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.stderr == "[141]\n"  # ended by SIGPIPE, as any other program


def test_interrupted_it_exits_130_and_the_store_is_whole(stocked: Path) -> None:
    Path("large").write_bytes(np.random.default_rng(1).bytes(96 << 20))
    process = stopped("put", "large", "x", "--json", part=".seg", written_bytes=8 << 20)
    resume(process, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err == "arstore: error: put: interrupted; the store is consistent\n"
    assert json.loads(out)["error"]["exit_code"] == 130
    assert [one["name"] for one in cli("ls", "--json").json["artifacts"]] == ["w"]
    assert cli("verify").code == 0
    again = cli("put", "large", "x", "--json").json
    assert again["version"] == 1
    assert again["blobs_reused"] > 0  # what was whole when the interrupt came


def test_interrupted_while_it_waits_for_a_key(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARSTORE_KEY_COMMAND", "sh -c 'touch asked; sleep 60'")
    with subprocess.Popen([*PROGRAM, "init"], stderr=subprocess.PIPE, text=True) as process:
        while not Path("asked").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=50)
    assert (process.returncode, ERROR.fullmatch(err) is not None) == (130, True)


def test_completion_completes(work: Path) -> None:
    script = cli("completion", "bash").out
    assert "complete -o default -F _arstore_completion arstore" in script
    for shell in ("zsh", "fish", "powershell"):
        assert "arstore" in cli("completion", shell).out
    environment = {**os.environ, "_ARSTORE_COMPLETE": "complete_bash", "COMP_WORDS": "arstore unp", "COMP_CWORD": "1"}
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout.split() == ["unpin"]


def test_names_that_the_terminal_lacks_do_not_end_a_command(stocked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors.torch.save_file({"gewicht.äußeres": torch.ones(2)}, "ü.safetensors")
    assert cli("put", "ü.safetensors", "u").code == 0
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    shown = arstore("show", "u")
    assert (shown.code, shown.err) == (0, "")
    assert "gewicht." in shown.out
    assert arstore("get", "u", "ö").code == 0
    assert Path("ö").exists()


# ---- idempotence, dry runs


def test_every_command_can_be_run_again(stocked: Path) -> None:
    twice: list[list[str]] = [
        ["init"], ["pin", "w"], ["unpin", "w"], ["tag", "w", "alias"], ["tag", "w", "w@label"],
        ["put", "m", "labelled@one"], ["put", "m", "labelled@one", "--pin"], ["verify"], ["get", "w", "out"],
        ["tag", "w", "w"],
    ]  # fmt: skip
    for words in twice:
        first = cli(*words, "--json")
        between = holdings()
        second = cli(*words, "--json")
        assert (first.code, second.code) == (0, 0), words
        assert holdings() == between, words
        for key in ("version", "id", "key_file"):
            assert first.json.get(key) == second.json.get(key), words
    [labelled] = [one for one in cli("ls", "--json").json["artifacts"] if one["name"] == "labelled"]
    assert labelled["pinned"] is True
    assert cli("rm", "w").code == 0
    assert cli("rm", "w").code == 0  # the label's version, then w@1: each run drops the newest
    fails(3, "rm", "w")


def test_a_dry_run_changes_nothing(stocked: Path) -> None:
    cli("put", "m", "w@release", "--pin")
    cli("put", "a.txt", "w")
    before = holdings()
    for words, doomed in ((["rm", "w"], [3]), (["rm", "w@release"], [2]), (["rm", "w", "--all-versions"], [1, 2, 3])):
        removed = cli(*words, "--dry-run", "--json").json
        assert removed["dry_run"] is True
        assert [one["version"] for one in removed["removed"]] == doomed
        assert cli(*words, "--dry-run").out.startswith("would drop w@")
        assert holdings() == before
        assert cli("verify").code == 0
    fails(3, "rm", "nothing", "--dry-run")


def test_rm_drops_what_it_names(stocked: Path) -> None:
    for path in ("m", "a.txt", "m"):
        cli("put", path, "w")

    def versions() -> list[int]:
        return [one["version"] for one in cli("ls", "--json").json["artifacts"]]

    assert versions() == [1, 2, 3, 4]
    cli("rm", "w@2")
    assert versions() == [1, 3, 4]
    cli("rm", "w")
    assert versions() == [1, 3]
    assert cli("put", "m", "w", "--json").json["version"] == 5  # a number is never given twice
    fails(2, "rm", "w@1", "--all-versions")
    assert versions() == [1, 3, 5]
    cli("rm", "w", "--all-versions")
    assert versions() == []
    assert cli("put", "m", "w", "--json").json["version"] == 6


# ---- names, versions, ids


def test_versions_labels_and_the_newest(stocked: Path) -> None:
    for n in (2, 3):
        Path("a.txt").write_text(f"text {n}")
        assert cli("put", "a.txt", "w", "--json").json["version"] == n
    labelled = cli("put", "m", "w@v1.0", "--json").json
    assert (labelled["version"], labelled["label"]) == (4, "v1.0")
    Path("a.txt").write_text("text 5")
    cli("put", "a.txt", "w")
    for ref, version in (("w", 5), ("w@5", 5), ("w@v1.0", 4), ("w@4", 4), ("w@1", 1), ("w@03", 3)):
        assert cli("show", ref, "--json").json["version"] == version, ref
    cli("get", "w@2", "two")
    assert Path("two").read_text() == "text 2"
    assert "w has 1, 2, 3, v1.0, 5" in fails(3, "show", "w@6").err
    assert cli("tag", "w@2", "old", "--json").json["version"] == 1
    cli("get", "old", "again")
    assert Path("again").read_text() == "text 2"


def test_a_label_is_listed_beside_its_number_and_keeps_its_version(stocked: Path) -> None:
    cli("put", "a.txt", "w@v1.0")
    cli("put", "m", "w")
    first, second, third = cli("ls").out.splitlines()[1:]
    assert (first.split()[0], second.split()[0], third.split()[0]) == ("w@1", "w@2", "w@3")
    assert second.endswith("Z  @v1.0")
    assert (first[-1], third[-1]) == ("Z", "Z")
    for flags, dropped in (("--keep-last", 1), ["w@1"]), (("--max-bytes", 1), ["w@1", "w@3"]):
        assert cli("gc", *flags, "--dry-run", "--json").json["dropped"] == dropped
    cli("pin", "w@v1.0")
    assert "Z  @v1.0 pinned\n" in cli("ls").out


def test_what_a_tenant_has_is_told_before_it_goes(stocked: Path) -> None:
    cli("tenant", "add", "team")
    assert cli("tenant", "rm", "team", "--dry-run").out == "would remove team, artifacts: 0, 0 B\n"
    stored = [cli("put", "m", name, "--json", "--tenant", "team").json["bytes_stored"] for name in ("x", "y")]
    said = f"has artifacts: 2, {sum(stored)} bytes stored"
    for flags in ([], ["--dry-run"]):
        assert said in fails(15, "tenant", "rm", "team", *flags).err
    before = [stocked.joinpath(name).read_bytes() for name in ("keys/root", "keys/pages")]
    told = cli("tenant", "rm", "team", "--erase", "--dry-run", "--json").json
    said_of_it = {"tenant": "team", "erased": True, "artifacts": 2, "bytes": sum(stored), "still_staged": []}
    assert told == said_of_it | {"dry_run": True}
    assert cli("tenant", "rm", "team", "--erase", "--dry-run").out == "would remove team, artifacts: 2, 24.0 KiB\n"
    assert [stocked.joinpath(name).read_bytes() for name in ("keys/root", "keys/pages")] == before
    assert cli("get", "x", "out", "--tenant", "team").code == 0
    assert cli("tenant", "rm", "team", "--erase", "--json").json == told | {"dry_run": False}
    fails(12, "ls", "--tenant", "team")


def test_ids_and_their_prefixes(stocked: Path) -> None:
    found = cli("show", "w", "--json").json["id"]
    for length in (8, 9, 33, 64):
        assert cli("show", found[:length], "--json").json["id"] == found
    assert cli("get", found[:12], "out").code == 0
    fails(3, "show", found[:7])
    fails(3, "show", found + "0")
    fails(3, "show", found[:-1] + ("0" if found[-1] != "0" else "1"))
    # A name that looks like an id is a name.
    cli("put", "a.txt", found[:8])
    assert cli("show", found[:8], "--json").json["kind"] == "file"
    assert cli("show", found[:9], "--json").json["kind"] == "weights"


def test_an_ambiguous_prefix_is_refused(store: Path) -> None:
    # Two artifacts whose ids begin alike, found by trying models of one file as the store itself would digest them.
    cli("put", "a.txt", "seed", "--model", "?")
    with open_store() as opened:
        manifest: Manifest = opened.get("seed").manifest
        key = opened._parts.keys.tenant.digest_key
    before, after = manifest.packed().split(b'"?"')
    seen: dict[bytes, int] = {}
    for n in range(1_000_000):
        prefix = blake3(before + b'"%d"' % n + after, key=key).digest(length=4)
        if prefix in seen:
            break
        seen[prefix] = n
    pair = [cli("put", "a.txt", "x", "--model", model, "--json").json["id"] for model in (seen[prefix], n)]
    assert pair[0] != pair[1]
    assert pair[0][:8] == pair[1][:8] == prefix.hex()
    assert "2 ids" in fails(2, "show", prefix.hex()).error
    longer = next(n for n in range(8, 64) if pair[0][n] != pair[1][n]) + 1
    for found in pair:
        assert cli("show", found[:longer], "--json").json["id"] == found


GOOD_NAMES = ["a", "A-Z_0.9", "team/model/v1", ".hidden", "a/b@x", "w@1.0", "..", "/", "x" * 512, "n@" + "l" * 128]
BAD_NAMES = [
    "a b", "ü", "a\n", "a\tb", "a:b", "a*", "a\\b", "$(id)", "@", "@1", "a@", "a@b@c", "a@b c", "a@ü", "a@0", "a@-1 ",
    "a@99999999999", "x" * 513, "n@" + "l" * 129, "\udcff", "a\u200bb", "%2e", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD_NAMES, ids=ascii)
def test_good_names(store: Path, name: str) -> None:
    put = cli("put", "a.txt", name, "--json")
    assert put.code == 0, put.err
    assert cli("show", name, "--json").json["id"] == put.json["id"]
    assert cli("get", name, "out").code == 0
    assert cli("rm", name).code == 0
    assert not any(path.name in ("team", "..x") for path in store.parent.iterdir())


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused_everywhere(stocked: Path, name: str) -> None:
    before = holdings()
    for words in (["put", "m", name], ["tag", "w", name], ["show", name], ["rm", name], ["get", name, "out"]):
        assert len(fails(2, *words).err) < 400
    assert holdings() == before
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["w@1", "w@7", "new@3"])
def test_version_numbers_are_given_not_taken(stocked: Path, name: str) -> None:
    before = holdings()
    fails(2, "put", "a.txt", name)
    fails(2, "tag", "w", name)
    assert holdings() == before


def test_a_name_that_begins_with_a_dash_stands_behind_two(store: Path) -> None:
    assert cli("put", "a.txt", "--", "-x").code == 0
    assert cli("get", "--", "-x", "-out").code == 0
    assert Path("-out").read_text() == "a text"
    Path("-in").write_text("in")
    assert cli("put", "--json", "--", "-in", "y").code == 0
    assert cli("rm", "--", "-x").code == 0


# ---- odd arguments

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


# ---- odd files


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
