"""Keys: what opens a store and what does not, what the store directory alone gives away, and who sees whose things.

Most of it runs through the real command line. "Gives nothing away" is tested by searching the raw bytes of a whole
store, and the search itself is tested on a store without encryption, where it finds what it looks for.
"""

import contextlib
import json
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from arstore.formats.catalog import Place
from arstore.formats.digest import Digest
from arstore.formats.errors import FormatError
from arstore.formats.frames import FOOTER_INDEX, TAG_BYTES, Binding, SealedFrames
from arstore.formats.keypage import PAGE_BYTES, open_root
from arstore.formats.record import HEADER_BYTES, KIND_BLOB, KIND_VERSION
from arstore.store.access import create_store, open_store
from arstore.store.disk import Disk
from arstore.store.errors import Corrupt, KeyRefused, NoRoom, NotFound
from arstore.store.init import init_store
from arstore.store.keys.unlock import Secrets
from arstore.store.segments.records import OpenRecord
from arstore.store.store import Store
from tests.support.command import Ran, arstore, cli
from tests.support.mortal_disk import killed

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def root() -> Path:
    return Path(os.environ["ARSTORE_STORE"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small checkpoint of two tensors."""
    path = tmp_path / "weights.safetensors"
    values = np.random.default_rng(3)
    save_file({name: values.standard_normal((32, 32), dtype=np.float32) for name in ("first", "second")}, path)
    return path


def works(*words: object) -> Ran:
    ran = cli(*words)
    assert ran.code == 0, ran.err
    return ran


def refused(code: int, *words: object) -> str:
    """Run a command that must end in `code` with one clear line, and return the line."""
    ran = cli(*words)
    assert (ran.code, ran.out) == (code, ""), ran
    assert len(ran.err.splitlines()) <= 2, "one line of error, and perhaps a hint"
    return ran.error


def opens(source: Path) -> None:
    """Check that the store opens, holds what is put, and gives it back."""
    works("put", source, "m")
    out = source.with_name("out")
    works("get", "m", out)
    assert out.read_bytes() == source.read_bytes()


def contents(root: Path) -> bytes:
    """Return the bytes of every file below the store, one after the other."""
    return b"\n".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def segments(root: Path) -> list[Path]:
    return sorted((root / "segments").iterdir())


def places(store: Store) -> list[Place]:
    """Return the place of every record of the store's tenant, blobs and versions."""
    blobs = [row.place for row in store._parts.catalog.all_blobs()]
    return blobs + [row.place for _, row in store._parts.catalog.versions()]


def record_bytes(root: Path, place: Place) -> bytes:
    """Return the payload of a record as it lies in its segment."""
    with (root / "segments" / f"{place.segment:016x}.seg").open("rb") as file:
        file.seek(place.offset + HEADER_BYTES)
        return file.read(place.payload_bytes)


# --- init


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


# --- what the store directory alone gives away

CANARIES = {
    "tensor": "canary.Jackdaws.of.quartz.tensor",
    "file": "canary-Vexing-zephyrs-file.safetensors",
    "directory": "canary-Sphinx-of-black-directory",
    "ref": "canary/Waltz-bad-nymph-ref",
    "label": "canary-Glib-jocks-label",
    "model": "canary Quick wafting zephyrs model",
    "revision": "canary Bright vixens jump revision",
    "text": "canary Five boxing wizards, text of a file",
    "bytes": "canary How vexingly quick, bytes of a tensor!",
    "tenant": "canary-Pack-my-box-tenant",
}


def put_canaries(tmp_path: Path) -> None:
    """Put an artifact in which every canary stands somewhere, as a tenant whose name is one."""
    source = tmp_path / "canaries"
    inner = source / CANARIES["directory"]
    inner.mkdir(parents=True)
    content = CANARIES["bytes"].encode().ljust(64) + np.random.default_rng(1).bytes(4032)
    save_file({CANARIES["tensor"]: np.frombuffer(content, np.uint8)}, inner / CANARIES["file"])
    (inner / "readme").write_text(f"{CANARIES['text']}\n" * 200)
    works("tenant", "add", CANARIES["tenant"])
    flags = ("--model", CANARIES["model"], "--revision", CANARIES["revision"])
    works("--tenant", CANARIES["tenant"], "put", source, f"{CANARIES['ref']}@{CANARIES['label']}", *flags)


ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def readable(root: Path) -> Iterator[bytes]:
    """Yield all there is to read without a key: names, bytes of files, and what zstd frames in them expand to."""
    for path in sorted(root.rglob("*")):
        yield path.relative_to(root).as_posix().encode()
    held = contents(root)
    yield held
    at = held.find(ZSTD_MAGIC)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(held[at:])
        at = held.find(ZSTD_MAGIC, at + 1)


def given_away(root: Path) -> set[str]:
    """Return which canaries can be read: as they are, in capitals, as UTF-16 or in hex."""
    everything = list(readable(root))
    found = set()
    for what, text in CANARIES.items():
        core = text.removeprefix("canary")[1:]
        forms = (core.encode(), core.encode("utf-16-le"), core.encode().hex().encode(), core.upper().encode())
        if any(form in held for form in forms for held in everything):
            found.add(what)
    return found


def test_the_store_directory_alone_gives_nothing_away(tmp_path: Path, root: Path) -> None:
    key = Path(works("init", "--json").json["key_file"])
    put_canaries(tmp_path)
    alone = tmp_path / "alone"
    shutil.copytree(root, alone)
    key.rename(tmp_path / "far-away")
    assert given_away(alone) == set()
    listing = arstore("--store", alone, "--tenant", CANARIES["tenant"], "ls")  # a process: it remembers no key
    assert (listing.code, listing.out) == (12, "")
    # With the key they are all there.
    key.hardlink_to(tmp_path / "far-away")
    out = tmp_path / "out"
    works("--store", alone, "--tenant", CANARIES["tenant"], "get", CANARIES["ref"], out)
    assert (out / CANARIES["directory"] / CANARIES["file"]).exists()


def test_the_search_finds_what_is_not_encrypted(tmp_path: Path, root: Path) -> None:
    works("init", "--no-encryption")
    put_canaries(tmp_path)
    # Names of tenants are sealed there too, under a master key that lies beside them.
    assert given_away(root) == CANARIES.keys() - {"tenant"}
    assert CANARIES["tenant"] in works("tenant", "ls").out


def test_removed_names_give_nothing_away_either(tmp_path: Path, root: Path) -> None:
    works("init")
    put_canaries(tmp_path)
    works("--tenant", CANARIES["tenant"], "tag", CANARIES["ref"], "plain-name")
    works("--tenant", CANARIES["tenant"], "rm", CANARIES["ref"], "--all-versions")
    assert given_away(root) == set()


# --- what opens it and what does not


@pytest.fixture
def stored(root: Path, source: Path) -> Path:
    """A store with a key file and one artifact in it; returns the key file."""
    key = Path(works("init", "--json").json["key_file"])
    works("put", source, "m")
    return key


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


def command(tmp_path: Path, body: str) -> str:
    """Return a key command that runs a line of Python; there is a blank in its path."""
    script = tmp_path / "key command.py"
    script.write_text(f"import sys\n{body}\n")
    return shlex.join([sys.executable, str(script)])


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


# --- who goes before whom


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


# --- an edited config


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


# --- the root of the key tree


def test_the_root_may_be_kept_outside(root: Path, source: Path, tmp_path: Path) -> None:
    made = works("init", "--root-file", tmp_path / "elsewhere" / "root", "--json").json
    kept = Path(made["root_file"])
    assert kept == tmp_path / "elsewhere" / "root"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not (root / "keys" / "root").exists()
    opens(source)
    kept.rename(tmp_path / "aside")
    assert str(kept) in refused(12, "ls")
    assert str(kept) in refused(12, "put", source, "m2")
    assert not kept.exists()
    (tmp_path / "aside").rename(kept)
    works("verify")


def test_a_root_file_that_is_there_is_never_overwritten(root: Path, tmp_path: Path) -> None:
    works("--store", tmp_path / "other", "init", "--root-file", tmp_path / "root")
    before = (tmp_path / "root").read_bytes()
    refused(2, "init", "--root-file", tmp_path / "root")
    assert (tmp_path / "root").read_bytes() == before


def test_an_init_with_a_root_file_that_is_killed_is_run_again(root: Path, source: Path, tmp_path: Path) -> None:
    kept, seen = tmp_path / "elsewhere" / "root", set()

    def init(disk: Disk) -> None:
        init_store(root, disk, Secrets(), root_file=kept)

    for at in count(1):
        for path in (root, kept.parent):
            shutil.rmtree(path, ignore_errors=True)
        died = killed(at, init)
        seen.add(((root / "config.toml").exists(), kept.exists()))
        assert works("init", "--root-file", kept, "--json").json["root_file"] == str(kept)
        assert not kept.with_name(".root.arstore-new").exists()
        assert not (root / "keys" / "root").exists()
        works("ls")
        if not died:
            break
    opens(source)
    assert seen == {(False, False), (True, False), (True, True)}


def test_one_root_is_readable_at_a_time(root: Path, source: Path) -> None:
    """The root before the last commit is effaced: with it, keys that were destroyed since could be had again."""
    create_store()
    for number in range(4):
        with open_store() as store:
            keyring = store._parts.keyring
            keyring.reserve(0, 1)
            found = 0
            held = (root / "keys" / "root").read_bytes()
            assert len(held) == 2 * PAGE_BYTES
            for start in (0, PAGE_BYTES):
                try:
                    root_found = open_root(
                        keyring.master, store._parts.config.store_id, held[start : start + PAGE_BYTES]
                    )
                    assert root_found.epoch == keyring.epoch
                    found += 1
                except FormatError:
                    pass
            assert found == 1, number


# --- one key a record


def test_every_record_has_a_key_of_its_own(root: Path, source: Path, tmp_path: Path) -> None:
    """Also over several puts, which hand each other the keys that were left over, and a put that failed."""
    create_store()
    for number in range(5):
        with open_store() as store:
            if number == 3:
                (tmp_path / "bad.safetensors").write_bytes(b"\x08" + b"\0" * 40)
                with pytest.raises(Exception, match="bad"):
                    store.put(tmp_path / "bad.safetensors", name="bad")
            values = np.random.default_rng(number)
            save_file({f"t{n}": values.standard_normal(64) for n in range(3 + 9 * number)}, source)
            store.put(source, name="m")
    with open_store() as store:
        slots = [place.slot for place in places(store)]
        keys = [store._parts.keyring.key(0, slot) for slot in slots]
    assert len(slots) == 5 + sum(3 + 9 * number for number in range(5)) + 5  # tensors, headers, versions
    assert 0 not in slots
    assert len(set(slots)) == len(set(keys)) == len(slots)


def test_a_restored_catalog_leads_to_no_key_stream_twice(root: Path, tmp_path: Path) -> None:
    """A catalog that was put back offers keys once more that were used since. XOR of two texts would then be open."""
    create_store()
    texts = [np.random.default_rng(number).bytes(4000) for number in range(3)]
    path, found, slots = tmp_path / "text", [], []
    for number, text in enumerate(texts):
        path.write_bytes(text)
        with open_store() as store:
            store.put(path, name="m", kind="file", codec="stored")
            [blob] = store.show("m")[1].blobs
            place = store._parts.catalog.find_blobs([blob.digest])[blob.digest].place
        slots.append(place.slot)
        found.append(record_bytes(root, place))
        if number == 0:
            old, cut = (root / "catalog" / "data.mdb").read_bytes(), segments(root)[0].stat().st_size
        elif number == 1:
            (root / "catalog" / "data.mdb").write_bytes(old)
            os.truncate(segments(root)[0], cut)
    assert slots[1] == slots[2], "the test does not bring about what it is about"
    assert differing(found[1], found[2]) != differing(texts[1], texts[2])


def differing(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one[:4000], two[:4000], strict=True))


def blocks(content: bytes) -> set[bytes]:
    return {content[at : at + 16] for at in range(0, len(content) - 15, 16)}


def test_equal_plaintext_looks_different_everywhere(tmp_path: Path, source: Path) -> None:
    """In two stores with one key file, and for two tenants of one store: other ids, other digests, other bytes."""
    (tmp_path / "key").write_text("one secret for both")
    seen: list[tuple[str, set[Digest], set[bytes]]] = []
    for name in ("a", "b"):
        create_store(tmp_path / name, key_file=tmp_path / "key")
        with open_store(tmp_path / name) as store:
            store.tenants.add("second")
        for tenant in ("default", "second"):
            with open_store(tmp_path / name, tenant=tenant) as store:
                stored = store.put(source, name="m", codec="stored")
                digests = {blob.digest for blob in store.show("m")[1].blobs}
                sealed = b"".join(record_bytes(tmp_path / name, place) for place in places(store))
                seen.append((stored.summary.id, digests, blocks(sealed)))
    assert all(len(held) > 500 for _, _, held in seen)
    for (id_, digests, held), (other_id, other_digests, other_held) in combinations(seen, 2):
        assert id_ != other_id
        assert not digests & other_digests
        assert not held & other_held


def test_without_encryption_equal_tenants_have_other_digests_too(root: Path, source: Path) -> None:
    create_store(encrypted=False)
    ids = set()
    digests: list[Digest] = []
    with open_store() as store:
        store.tenants.add("second")
    for tenant in ("default", "second"):
        with open_store(tenant=tenant) as store:
            ids.add(store.put(source, name="m").summary.id)
            digests += [blob.digest for blob in store.show("m")[1].blobs]
    assert (len(ids), len(set(digests))) == (2, len(digests))


# --- tenants


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def two_tenants(request: pytest.FixtureRequest, root: Path, source: Path) -> Path:
    """A store in which `default` has the artifact `mine` and `second` has `theirs`, of the same content."""
    create_store(encrypted=request.param)
    with open_store() as store:
        store.tenants.add("second")
        store.put(source, name="mine")
    with open_store(tenant="second") as store:
        store.put(source, name="theirs")
    return root


def test_tenants_do_not_see_each_other(two_tenants: Path, tmp_path: Path) -> None:
    listed = {tenant: works("--tenant", tenant, "ls", "--json").json["artifacts"] for tenant in ("default", "second")}
    assert {tenant: [one["name"] for one in found] for tenant, found in listed.items()} == {
        "default": ["mine"], "second": ["theirs"],
    }  # fmt: skip
    [theirs] = listed["second"]
    for name in ("theirs", "theirs@1", theirs["id"], theirs["id"][:12]):
        for verb in ("show", "rm", "pin", "unpin", "verify"):
            refused(3, verb, name)
        refused(3, "get", name, tmp_path / "out")
        refused(3, "tag", name, "new")
    assert not (tmp_path / "out").exists()
    assert works("stats", "--json").json["artifacts"] == 1
    # A name is free for a tenant whatever others have, and what one drops the other keeps.
    works("--tenant", "second", "tag", "theirs", "mine")
    works("--tenant", "second", "rm", "mine")
    works("get", "mine", tmp_path / "out")


def test_an_unknown_tenant(two_tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "third" in refused(12, "--tenant", "third", "ls")
    monkeypatch.setenv("ARSTORE_TENANT", "third")
    refused(12, "ls")
    assert works("--tenant", "second", "ls", "--json").json["artifacts"][0]["name"] == "theirs"  # flags go first
    monkeypatch.setenv("ARSTORE_TENANT", "second")
    assert works("ls", "--json").json["artifacts"][0]["name"] == "theirs"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "a" * 129, "a\nb", "a\0b"])
def test_a_bad_name_for_a_tenant(root: Path, name: str) -> None:
    create_store()
    with open_store() as store, pytest.raises(Exception, match="name"):
        store.tenants.add(name)


def test_a_tenant_is_made_once(two_tenants: Path) -> None:
    refused(15, "tenant", "add", "second")
    assert [one["name"] for one in works("tenant", "ls", "--json").json["tenants"]] == ["default", "second"]


def test_no_record_opens_under_another_tenants_keys(two_tenants: Path) -> None:
    with open_store() as mine, open_store(tenant="second") as theirs:
        encrypted = mine._parts.config.encrypted
        own, other = mine._parts.keys, theirs._parts.keys
        assert own.tenant.id != other.tenant.id
        assert len({own.tenant.digest_key, other.tenant.digest_key, own.tenant.index_key, other.tenant.index_key}) == 4
        keys = [{store._parts.keys.key(place) for place in places(store)} for store in (mine, theirs)]
        assert not encrypted or not keys[0] & keys[1]
        tried = 0
        for kind, found in ((KIND_BLOB, places(theirs)[:-1]), (KIND_VERSION, places(theirs)[-1:])):
            for place in found:
                digest = OpenRecord(theirs._parts.segments, other, place, kind).footer().digest
                OpenRecord(theirs._parts.segments, other, place, kind).check(digest)
                for keys_of in (own, type(own)(own.number, own.tenant, other.keyring, encrypted)):
                    with pytest.raises((FormatError, Corrupt)):
                        OpenRecord(mine._parts.segments, keys_of, place, kind).check(digest)
                    with pytest.raises((FormatError, Corrupt)):
                        OpenRecord(mine._parts.segments, keys_of, place, kind).read_all()
                # Their record keys, but named as mine: the frames are bound to the tenant.
                mixed = type(own)(other.number, own.tenant, other.keyring, encrypted)
                with pytest.raises(FormatError):
                    OpenRecord(mine._parts.segments, mixed, place, kind).read_all()
                tried += 1
        assert tried == 4


def test_one_tenants_catalog_rows_are_not_anothers(two_tenants: Path) -> None:
    with open_store() as mine, open_store(tenant="second") as theirs:
        digests = [blob.digest for blob in theirs.show("theirs")[1].blobs]
        assert len(theirs._parts.catalog.find_blobs(digests)) == len(digests)
        assert mine._parts.catalog.find_blobs(digests) == {}
        with pytest.raises(NotFound):
            mine.get("theirs")


# --- quota


def test_a_full_quota_refuses_and_leaves_the_store_as_it_was(root: Path, source: Path, tmp_path: Path) -> None:
    works("init")
    works("tenant", "add", "small", "--quota", "100KiB")
    small = ("--tenant", "small")
    works(*small, "put", source, "m")

    def state() -> dict[str, Any]:
        stats = works(*small, "stats", "--json").json
        unsteady = ("seconds", "free_bytes", "disk_bytes")
        return {"ls": works(*small, "ls", "--json").json, **{k: v for k, v in stats.items() if k not in unsteady}}

    before, held = state(), sum(path.stat().st_size for path in segments(root))
    large = tmp_path / "large.bin"
    for length in (200_000, 100_000):  # more than the quota; and more than what is left of it
        large.write_bytes(np.random.default_rng(length).bytes(length))
        assert "quota" in refused(14, *small, "put", large, "large")
        assert state() == before
        assert sum(path.stat().st_size for path in segments(root)) <= held + PAGE_BYTES, "space was not given back"
    ran = arstore(*small, "put", large, "large", "--json")
    assert (ran.code, ran.json["error"]["kind"]) == (14, "no-room")
    refused(3, *small, "get", "large", tmp_path / "out")
    works(*small, "verify", "--deep")
    # What is there is still readable, what is stored already fits, and others are not concerned.
    works(*small, "get", "m", tmp_path / "out")
    assert works(*small, "put", source, "again", "--json").json["blobs_new"] == 0
    works("put", large, "large")
    works("verify", "--deep")


def test_versions_count_against_the_quota_too(root: Path, source: Path) -> None:
    """They bring no new blob, but each has a record."""
    quota_bytes = 64 << 10
    create_store()
    with open_store() as store:
        store.tenants.add("small", quota_bytes)
    with open_store(tenant="small") as store:
        store.put(source, name="m")
        with pytest.raises(NoRoom, match="quota"):
            [store.tag("m", f"m{number}") for number in range(40)]
        assert len(store.ls()) > 3
        assert store._parts.catalog.usage_bytes() <= quota_bytes
        assert store.verify().corrupt == ()


@pytest.mark.parametrize("quota", ["0", "-1", "many", "1e6", "10 parsecs"])
def test_a_quota_that_is_none(root: Path, quota: str) -> None:
    works("init")
    ran = arstore("tenant", "add", "t", "--quota", quota)
    assert ran.code == 2 or (quota == "0" and ran.code == 0)


# --- frames

KEYS = st.binary(min_size=32, max_size=32)
IDS = st.binary(min_size=16, max_size=16)
BINDINGS = st.builds(
    Binding, IDS, IDS, st.sampled_from([KIND_BLOB, KIND_VERSION]), st.integers(0, 3), st.just(64), st.integers(1, 640)
)


def seal(frames: SealedFrames, index: int, plain: bytes) -> bytes:
    out = bytearray(len(plain) + TAG_BYTES)
    frames.seal_into(index, plain, memoryview(out))
    return bytes(out)


def opened(frames: SealedFrames, index: int, sealed: bytes, length: int) -> bytes | None:
    """Return what a frame opens to, or None where it is refused; then nothing of it may be left."""
    out = bytearray(b"\xa5" * length)
    try:
        frames.open_into(index, sealed, memoryview(out))
    except FormatError:
        assert not any(out), "a refused frame left bytes behind"
        return None
    return bytes(out)


@given(KEYS, BINDINGS, st.data())
def test_a_frame_opens_at_its_own_place_alone(key: bytes, binding: Binding, data: st.DataObject) -> None:
    frames = SealedFrames(key, binding)
    index = data.draw(st.integers(0, binding.frames_count - 1), "index")
    plain = data.draw(st.binary(min_size=16, max_size=64), "plain")
    sealed = seal(frames, index, plain)
    assert opened(frames, index, sealed, len(plain)) == plain

    others = {*range(binding.frames_count + 1), FOOTER_INDEX} - {index}
    for other in others:
        assert opened(frames, other, sealed, len(plain)) is None
    at = data.draw(st.integers(0, 8 * len(sealed) - 1), "bit")
    flipped = bytearray(sealed)
    flipped[at // 8] ^= 1 << at % 8
    assert opened(frames, index, bytes(flipped), len(plain)) is None
    for cut in (sealed[:-1], sealed[1:], sealed + b"\0", sealed[:TAG_BYTES], b""):
        assert opened(frames, index, cut, len(plain)) is None
    for length in (len(plain) - 1, len(plain) + 1, 0):
        assert opened(frames, index, sealed, length) is None


@given(KEYS, BINDINGS, BINDINGS, st.integers(0, 9))
def test_a_frame_opens_under_its_own_binding_alone(key: bytes, binding: Binding, other: Binding, index: int) -> None:
    """Tenant, instance, kind, codec, frame size and total length: each alone makes it another frame."""
    plain = bytes(range(48))
    sealed = seal(SealedFrames(key, binding), index, plain)
    for name in Binding.__slots__:
        fields = {field: getattr(binding, field) for field in Binding.__slots__} | {name: getattr(other, name)}
        changed = Binding(**fields)
        assert (opened(SealedFrames(key, changed), index, sealed, len(plain)) == plain) == (changed == binding)


@given(KEYS, st.integers(2, 9))
def test_a_record_that_was_cut_does_not_end(key: bytes, frames_count: int) -> None:
    """A middle frame can't pass as the last one, nor the last as a middle one, even with the length it would need."""
    whole = Binding(bytes(16), bytes(16), KIND_BLOB, 0, 64, 64 * frames_count)
    shorter = Binding(bytes(16), bytes(16), KIND_BLOB, 0, 64, 64 * (frames_count - 1))
    plain = bytes(64)
    last_of_shorter = frames_count - 2
    # The bindings differ in length, which alone would do. But the nonces differ too: so does the key stream.
    starts = {seal(SealedFrames(key, binding), last_of_shorter, plain)[:64] for binding in (whole, shorter)}
    assert len(starts) == 2
    sealed = seal(SealedFrames(key, whole), last_of_shorter, plain)
    assert opened(SealedFrames(key, shorter), last_of_shorter, sealed, 64) is None
    sealed = seal(SealedFrames(key, shorter), last_of_shorter, plain)
    assert opened(SealedFrames(key, whole), last_of_shorter, sealed, 64) is None


@given(KEYS, KEYS, BINDINGS)
def test_a_key_is_committed_to(key: bytes, other: bytes, binding: Binding) -> None:
    mine, theirs = SealedFrames(key, binding), SealedFrames(other, binding)
    assert (mine.commitment == theirs.commitment) == (key == other)
    assert (mine.header_check(b"header") == theirs.header_check(b"header")) == (key == other)
    assert len(mine.commitment) == 32
    assert mine.commitment not in (key, bytes(32))
