"""Prompts, progress, pipes and signals, with a terminal and without one."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from arstore import open_store
from tests.support.command import PATIENCE_S, arstore, resume, stopped
from tests.support.stocked import ERROR, PROGRAM, cli, stocked, store, work

__all__ = ["stocked", "store", "work"]  # fixtures


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
