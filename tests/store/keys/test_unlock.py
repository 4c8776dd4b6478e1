"""Unlock: secrets as a person holds them, and the ways in that they open."""

import json
from pathlib import Path
from typing import Any

import pytest

from arstore.store.disk import Disk
from arstore.store.errors import BadInput, Corrupt, KeyRefused
from arstore.store.keys.unlock import STANZAS_NAME, Secrets, Stanzas, new_key_file, open_masters

OLD, NEW, STORE_ID = bytes([1]) * 32, bytes([2]) * 32, bytes(range(16))


def nobody() -> None:
    return None


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    new_key_file(tmp_path / "home" / "key", Disk(), b"secret")
    return tmp_path / "home" / "key"


@pytest.fixture
def stanzas() -> Stanzas:
    """The ways into a store while a rotation from OLD to NEW is under way."""
    before = Stanzas().adding("key-file", b"old secret", OLD, STORE_ID)
    return before.adding("key-file", b"secret", NEW, STORE_ID).adding_previous(OLD, NEW, STORE_ID)


def opened(directory: Path, stanzas: Stanzas, held: Secrets) -> list[bytes]:
    stanzas.write(directory, Disk())
    return open_masters(directory, held, STORE_ID, nobody)


def test_a_key_file_is_for_its_owner_alone_and_is_not_made_again(key_file: Path) -> None:
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert key_file.read_bytes() == b"secret\n"
    assert new_key_file(key_file, Disk(), b"another") == b"secret"
    assert key_file.read_bytes() == b"secret\n"


def test_a_fresh_key_file_holds_256_random_bits(tmp_path: Path) -> None:
    made = [new_key_file(tmp_path / name, Disk()) for name in ("one", "two")]
    assert len(set(made)) == 2
    assert [len(bytes.fromhex(secret.decode())) for secret in made] == [32, 32]


def test_the_end_of_a_line_is_no_part_of_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (b" a key ", b" a key \n", b" a key \r\n"):
        path.write_bytes(content)
        assert Secrets(key_file=path).get("key-file") == Secrets(passphrase_file=path).get("passphrase") == b" a key "


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "no such file"), (b"", "is empty"), (b"\r\n", "is empty"), (bytes((1 << 20) + 1), "larger")],
)
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(KeyRefused, match=why):
        Secrets(key_file=tmp_path / "key").get("key-file")


def test_a_secret_that_nobody_gave_is_none() -> None:
    assert [Secrets().get(kind) for kind in ("key-file", "passphrase", "command", "open")] == [None] * 4


@pytest.mark.parametrize("command", ["", "/no/such/program", "'", "false", "true"])
def test_a_command_that_gives_no_secret(command: str) -> None:
    if not command:
        assert Secrets(command=command).get("command") is None
        return
    with pytest.raises(KeyRefused, match="ARSTORE_KEY_COMMAND"):
        Secrets(command=command).get("command")


def test_a_rotation_under_way_opens_with_both_secrets(tmp_path: Path, key_file: Path, stanzas: Stanzas) -> None:
    assert opened(tmp_path, stanzas, Secrets(key_file)) == [NEW, OLD]
    key_file.write_bytes(b"old secret")
    assert opened(tmp_path, stanzas, Secrets(key_file)) == [OLD]


def test_a_secret_that_a_rotation_keeps_opens_the_new_master_key_first(tmp_path: Path, key_file: Path) -> None:
    before = Stanzas().adding("key-file", b"secret", OLD, STORE_ID)
    stanzas = before.adding("key-file", b"secret", NEW, STORE_ID).adding_previous(OLD, NEW, STORE_ID)
    assert opened(tmp_path, stanzas, Secrets(key_file)) == [NEW, OLD]


def test_a_rotation_that_is_done_opens_with_the_new_secret_alone(
    tmp_path: Path, key_file: Path, stanzas: Stanzas
) -> None:
    done = stanzas.only_to(NEW)
    assert [way["kind"] for way in done.ways] == ["key-file"]
    assert opened(tmp_path, done, Secrets(key_file)) == [NEW]
    key_file.write_bytes(b"old secret")
    with pytest.raises(KeyRefused, match="does not open this store"):
        opened(tmp_path, done, Secrets(key_file))


def test_a_key_file_that_cannot_be_read_does_not_keep_another_way_from_opening(tmp_path: Path) -> None:
    stanzas = Stanzas().adding("key-file", b"secret", NEW, STORE_ID).adding("command", b"spoken", NEW, STORE_ID)
    held = Secrets(key_file=tmp_path / "unplugged", command="echo spoken")
    assert opened(tmp_path, stanzas, held) == [NEW]
    with pytest.raises(KeyRefused, match="unplugged"):
        opened(tmp_path, stanzas, Secrets(key_file=tmp_path / "unplugged"))


def test_no_secret_stands_in_the_stanzas(tmp_path: Path, stanzas: Stanzas) -> None:
    stanzas.write(tmp_path, Disk())
    text = (tmp_path / STANZAS_NAME).read_text()
    for secret in (b"secret", b"old secret", OLD, NEW):
        assert secret.hex() not in text
    assert "old secret" not in text
    assert Stanzas.read(tmp_path) == stanzas


@pytest.mark.parametrize("ways", [0, 65])
def test_no_way_in_or_too_many_are_corrupt(tmp_path: Path, ways: int) -> None:
    document = {"format": 1, "stanzas": [{"kind": "open", "master": NEW.hex()}] * ways}
    (tmp_path / STANZAS_NAME).write_text(json.dumps(document))
    with pytest.raises(Corrupt, match="can't be read"):
        Stanzas.read(tmp_path)


def passphrase_stanzas(count: int, **parameters: Any) -> Stanzas:
    """Return as many passphrase stanzas, which no passphrase opens."""
    way = {"kind": "passphrase", "salt": bytes(16).hex(), "sealed": bytes(60).hex()} | parameters
    return Stanzas((way,) * count)


@pytest.mark.parametrize(
    ("memory_kib", "iterations"), [(4 << 20, 100), (4 << 20, 2), (1 << 20, 5), (64 << 10, 65), (1 << 19, 9)]
)
def test_a_stanza_that_costs_too_much_is_skipped(tmp_path: Path, memory_kib: int, iterations: int) -> None:
    costly = passphrase_stanzas(63, memory_kib=memory_kib, iterations=iterations, lanes=4)
    cheap = Stanzas().adding("passphrase", b"a passphrase", NEW, STORE_ID)
    assert opened(tmp_path, Stanzas(cheap.ways + costly.ways), Secrets(passphrase=b"a passphrase")) == [NEW]


@pytest.mark.parametrize(("count", "memory_kib", "iterations"), [(63, 1 << 20, 4), (4, 1 << 20, 4), (64, 65 << 10, 3)])
def test_stanzas_that_cost_too_much_together_are_refused(
    tmp_path: Path, count: int, memory_kib: int, iterations: int
) -> None:
    costly = passphrase_stanzas(count, memory_kib=memory_kib, iterations=iterations, lanes=4)
    for held in (Secrets(passphrase=b"a passphrase"), Secrets(command="echo secret")):
        with pytest.raises(Corrupt, match=f"{STANZAS_NAME}: its passphrase stanzas together would take too much time"):
            opened(tmp_path, costly, held)


def test_as_many_passphrases_as_a_file_may_have_are_read_and_one_more_is_not_written(tmp_path: Path) -> None:
    ours = passphrase_stanzas(64, memory_kib=64 << 10, iterations=3, lanes=4)
    ours.write(tmp_path, Disk())
    with pytest.raises(BadInput, match="may have 64 ways in, not 65"):
        Stanzas((*ours.ways, ours.ways[0])).write(tmp_path, Disk())
    assert Stanzas.read(tmp_path) == ours


@pytest.mark.parametrize("parameters", [{}, {"memory_kib": "much"}, {"memory_kib": 1e300, "iterations": 1, "lanes": 1}])
def test_a_passphrase_stanza_without_sound_parameters_is_skipped(tmp_path: Path, parameters: dict[str, Any]) -> None:
    damaged = passphrase_stanzas(63, **parameters)
    with pytest.raises(KeyRefused, match="does not open"):
        opened(tmp_path, damaged, Secrets(passphrase=b"a passphrase"))
