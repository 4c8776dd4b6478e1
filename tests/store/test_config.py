"""Config: a store's settings come back as they were written, and the environment says where things are."""

from pathlib import Path

import pytest

from arstore.store.config import CONFIG_NAME, Config, default_store, default_tenant, read_config, setting, write_config
from arstore.store.disk import Disk
from arstore.store.errors import BadInput, NoStore, StorageFailed

ID = bytes(range(16))


@pytest.mark.parametrize(
    "config",
    [
        Config(ID, True),
        Config(ID, False),
        Config(ID, True, Path('/keys/a "b" \\ \n ü \U0001f511'), Path("/roots/r")),
    ],
)
def test_settings_come_back_as_they_were_written(tmp_path: Path, config: Config) -> None:
    write_config(tmp_path, config, Disk())
    assert read_config(tmp_path) == config


def test_where_no_config_is_there_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(NoStore):
            read_config(place)


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("format = 1", "format = 2", NoStore),
        ("format = 1", "", StorageFailed),
        ("encrypted = true", 'encrypted = "yes"', StorageFailed),
        (ID.hex(), ID.hex()[2:], StorageFailed),
        (ID.hex(), "no hex", StorageFailed),
        ("format = 1", "format =", StorageFailed),
    ],
)
def test_a_config_that_is_not_valid_is_refused(tmp_path: Path, before: str, after: str, error: type[Exception]) -> None:
    text = Config(ID, True).text()
    assert before in text
    (tmp_path / CONFIG_NAME).write_text(text.replace(before, after))
    with pytest.raises(error):
        read_config(tmp_path)


def test_a_variable_goes_before_the_file_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARSTORE_STORE")
    assert default_store() == tmp_path / "share" / "arstore"
    assert default_tenant() == "default"

    file = tmp_path / "settings.toml"
    file.write_text('store = "/from/file"\ntenant = "team"\nhost_dir = 3\n')
    monkeypatch.setenv("ARSTORE_CONFIG", str(file))
    assert default_store() == Path("/from/file")
    assert default_tenant() == "team"
    assert setting("key_file") is None
    with pytest.raises(BadInput, match="host_dir is not text"):
        setting("host_dir")

    monkeypatch.setenv("ARSTORE_STORE", "/from/variable")
    assert default_store() == Path("/from/variable")


@pytest.mark.parametrize("content", [b"store =", b"\xff", None], ids=["no TOML", "no text", "missing"])
def test_a_file_of_settings_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("ARSTORE_CONFIG", str(file))
    with pytest.raises(BadInput, match=str(file)):
        setting("tenant")
